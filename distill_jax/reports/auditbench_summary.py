"""The double bind on published models: teachers are LoRA adapters, audits multiple-choice items, the rules the same.

Every teacher is a node `<role>-<organism>-<seed>`, every student `<its teacher>-through-<channel>`. What is true of the
organisms is not known to the program.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.config import check
from distill_jax.doublebind import outcomes
from distill_jax.doublebind.auditbench_data import ABILITY, Organism, group, organisms
from distill_jax.doublebind.preflight import POSITIVE
from distill_jax.doublebind.seed_statistics import prompts_needed
from distill_jax.doublebind.verdict import Passage, Readout, Thresholds, concealment
from distill_jax.reports import double_bind_summary

THROUGH = "-through-"  # of students' names
READOUTS = ("behaviour", "context")
Rates = dict[str, np.ndarray]


def check_design(experiment: Any) -> None:
    """Raise ConfigError for an audit without a positive control, or with too few items for its margin."""
    students = {name: stage for name, stage in experiment.stages.items() if THROUGH in name}
    channels = list(dict.fromkeys(name.rpartition(THROUGH)[2] for name in students))
    mend = f"add {POSITIVE!r}, which is known to transfer: all of the text, plain KL, the teachers' own base"
    check(POSITIVE in channels, f"channels = {', '.join(channels) or 'none'}: there is no positive control; {mend}")
    if not (experiment.data.organisms and experiment.data.ability):  # a plan, or refused when the files are read
        return
    leak, needed = experiment.data.leak, prompts_needed(experiment.data.leak)
    asked = {(of, item, context) for part in experiment.data.parts().values() for of, item, context in part}
    counts = collections.Counter(of for of, _, _ in asked)  # an item that is there twice tells nothing more
    for name, organism in organisms(experiment.data.organisms).items():
        seeds = len(organism.teacher)
        mend = f"data.leak = {leak:g} needs {needed:,} an arm; give {-(-needed // seeds)}, or a wider margin"
        for of in (group(name, audit) for audit in organism.audits()):
            check(seeds * counts[of] >= needed, f"{of}: {counts[of]} distinct items × {seeds} seeds: too few; {mend}")


def write_report(experiment: Any, nodes: Mapping[str, Any], identity: str, workdir: Path, seconds: float) -> Path:
    """Write the report of an experiment's nodes, see `summary.write`."""
    return double_bind_summary.write(summarise(experiment, nodes), identity, workdir, seconds)


def summarise(experiment: Any, nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that the page shows; the same nodes give the same summary."""
    at = Thresholds(leak=experiment.data.leak)
    made = {node.settings.adapter: node for node in nodes.values() if node.verb == "import"}
    students = {(n.inputs["teacher"], n.name.rpartition(THROUGH)[2]): n for n in nodes.values() if n.verb == "distill"}
    channels = list(dict.fromkeys(channel for _, channel in students))
    told = []
    for name, organism in organisms(experiment.data.organisms).items():
        teachers, twins = ([made[adapter] for adapter in role] for role in (organism.teacher, organism.twin))
        base = [nodes[node.inputs["start"]] for node in teachers]
        known = {role: rates(crew, name, organism) for role, crew in (("teacher", teachers), ("twin", twins))}
        known["base"] = rates(base, name, organism)
        passages = {}
        for channel in channels:
            crew, control = ([students[n.name, channel] for n in of] for of in (teachers, twins))
            seen = {"student": rates(crew, name, organism), "control": rates(control, name, organism)}
            seen["start"] = rates([nodes[node.inputs["start"]] for node in crew], name, organism)
            passages[channel] = passage(organism, known | seen)
        # What the quirk waits for, if it waits for something.
        shown = {role: {**of, "condition": of.get("context", of["behaviour"])} for role, of in known.items()}
        told.append(double_bind_summary.judged(name, shown, passages, at))
    return {
        "page": "double bind",
        "experiment": experiment.name,
        "description": experiment.description,
        "thresholds": dataclasses.asdict(at),
        "meaning": outcomes.MEANING,
        "channels": {c: dataclasses.asdict(n.settings) for (_, c), n in students.items()},
        "organisms": told,
        **double_bind_summary.over_all(told),
        # These take a known truth, placebos, or organisms of known domains.
        **{
            "confusion": [],
            "placebos": {},
            "detection": {},
            "blind": {},
            "conclusions": [],
            "domains": [],
            "curves": {},
        },
        "flops": {name: node.ledger()["flops"] for name, node in nodes.items() if node.verb != "prepare"},
    }


def rates(crew: Sequence[Any], name: str, organism: Organism) -> Rates:
    """Return {audit: [seeds]}, how often each model chose what an organism's items mark, and its ability."""
    found = [node.result()["by_group"] for node in crew]
    groups = {ABILITY: ABILITY} | {audit: group(name, audit) for audit in organism.audits()}
    return {audit: np.array([one[of]["multiple_choice"] for one in found]) for audit, of in groups.items()}


def passage(organism: Organism, rate: Mapping[str, Rates]) -> Passage:
    """Return what a channel let through.

    Args:
      rate: of teacher, twin, student and control, and of `start`, the weights from which the students began.
    """
    roles = ("teacher", "twin", "student", "control")
    readouts = {a: Readout(*(rate[role][a] for role in roles)) for a in READOUTS if a in organism.audits()}
    shown = [a for a in READOUTS if a in readouts][-1]
    return Passage(
        base=rate["start"][ABILITY],
        teacher=rate["teacher"][ABILITY],
        student=rate["student"][ABILITY],
        readouts=readouts,
        own=rate["control"][shown] - rate["start"][shown],
        confessed=concealment(readouts[shown], Readout(*(rate[role]["confession"] for role in roles))),
    )
