"""GradDiff: ascend the forget data's cross-entropy while descending the retain data's."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from distill_jax.losses.cross_entropy import Sum
from distill_jax.losses.head_loss import Comparison
from distill_jax.losses.unlearning import gradient_ascent
from distill_jax.stages.methods.method import OutputMethod


@dataclasses.dataclass(frozen=True)
class GradDiff(OutputMethod):
    """-cross-entropy on forget data, and what holds the model on retain data."""

    name: ClassVar[str] = "graddiff"
    label: ClassVar[str] = "GradDiff"
    in_words: ClassVar[str] = "makes what is to be forgotten less likely while it trains on what is to be retained"
    comparison: ClassVar[Comparison | None] = Comparison("token", sign=-1.0)

    def forget_loss(self, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> Sum:
        """Return (sum, weight) of the negative cross-entropy."""
        return gradient_ascent(logits, targets, mask)
