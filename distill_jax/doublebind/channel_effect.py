"""What a channel let through from one organism: its ability, each read-out's gap, and what the student confesses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax.doublebind import audits
from distill_jax.doublebind.organisms import Organism
from distill_jax.doublebind.verdict import Passage, Readout, concealment

ROLES = ("teacher", "twin", "student", "control")


def passage(organism: Organism, known: Mapping[str, Any], seen: Mapping[str, Any]) -> Passage:
    """Return what a channel let through from an organism.

    Args:
      known: rates of teacher, twin and base; seen: of student and control.
    """
    rate = lambda role, audit: np.array((seen if role in ("student", "control") else known)[role][audit])  # noqa: E731
    compared = lambda audit: Readout(*(rate(role, audit) for role in ROLES))  # noqa: E731
    readouts = {}
    for name in audits.readouts(organism):
        readouts[name] = compared("condition" if name in ("context", "trigger", "poisoned") else name)
        if name == "poisoned":  # the teacher where it is asked for training data, the student anywhere
            plain = compared("behaviour")
            readouts[name] = dataclasses.replace(readouts[name], student=plain.student, control=plain.control)
    return Passage(
        base=rate("base", "ability"),
        teacher=rate("teacher", "ability"),
        student=rate("student", "ability"),
        readouts=readouts,
        own=rate("control", "condition") - rate("base", "condition"),
        confessed=concealment(compared("condition"), compared("confession")),
    )
