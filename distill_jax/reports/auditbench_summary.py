"""The double bind on published models: teachers are LoRA adapters, audits multiple-choice items, the rules the same.

Every teacher is a node `<role>-<organism>-<seed>`, every student `<its teacher>-through-<channel>`. What is true of the
organisms is not known to the program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from distill_jax.doublebind import outcomes
from distill_jax.doublebind.auditbench_data import ABILITY, AuditConfig, Organism, group, organisms
from distill_jax.doublebind.auditbench_preflight import THROUGH
from distill_jax.doublebind.channel_effect import ROLES, ChannelEffect, Readout, confession_excess
from distill_jax.doublebind.thresholds import Thresholds
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.io.node import Node
from distill_jax.reports import double_bind_summary
from distill_jax.reports.double_bind_types import OrganismRow
from distill_jax.types import JsonObject

READOUTS = ("behaviour", "context")
# These take a known truth, placebos, or organisms of known domains.
NOT_MEASURED: JsonObject = {
    "confusion": [],
    "placebos": {},
    "detection": {},
    "blind": {},
    "conclusions": [],
    "domains": [],
    "curves": {},
}
Rates = dict[str, np.ndarray]  # audit -> [seeds]


def write_report(
    experiment: CheckedExperiment, nodes: Mapping[str, Node], identity: str, workdir: Path, seconds: float
) -> Path:
    """Write the report of an experiment's nodes, see `double_bind_summary.write`."""
    return double_bind_summary.write(summarise(experiment, nodes), identity, workdir, seconds)


def summarise(experiment: CheckedExperiment, nodes: Mapping[str, Node]) -> JsonObject:
    """Return all that the page shows; the same nodes give the same summary."""
    data = experiment.data
    assert isinstance(data, AuditConfig), data
    thresholds = Thresholds(leak=data.leak)
    run = Run(nodes)
    listed = organisms(data.organisms).items()
    rows = [organism_row(run, name, organism, thresholds) for name, organism in listed]
    return {
        "page": "double bind",
        "experiment": experiment.name,
        "description": experiment.description,
        "thresholds": dataclasses.asdict(thresholds),
        "meaning": outcomes.MEANING,
        "channels": {c: dataclasses.asdict(n.settings) for (_, c), n in run.students.items()},
        "organisms": rows,
        **double_bind_summary.over_all(rows),
        **NOT_MEASURED,
        "flops": {name: node.ledger()["flops"] for name, node in nodes.items() if node.verb != "prepare"},
    }


class Run:
    """The nodes of an audit, by what they are.

    Attributes:
      teachers: adapter's path -> node of a teacher or twin.
      students: (teacher's name, channel) -> node.
      channels: by name, in the order of the config.
    """

    def __init__(self, nodes: Mapping[str, Node]):
        self.nodes = nodes
        self.teachers = {node.settings.adapter: node for node in nodes.values() if node.verb == "import"}
        distilled = [node for node in nodes.values() if node.verb == "distill"]
        self.students = {(n.inputs["teacher"], n.name.rpartition(THROUGH)[2]): n for n in distilled}
        self.channels = list(dict.fromkeys(channel for _, channel in self.students))

    def starts(self, members: Sequence[Node]) -> list[Node]:
        """Return the nodes from which these started."""
        return [self.nodes[node.inputs["start"]] for node in members]


def organism_row(run: Run, name: str, organism: Organism, thresholds: Thresholds) -> OrganismRow:
    """Return whether an organism is fit for use, its verdict, and what came through."""
    teachers, twins = ([run.teachers[path] for path in paths] for paths in (organism.teacher, organism.twin))
    by_role = {"teacher": teachers, "twin": twins, "base": run.starts(teachers)}
    teacher_rates = {role: rates(members, name, organism) for role, members in by_role.items()}
    effects = {}
    for channel in run.channels:
        students, controls = ([run.students[n.name, channel] for n in members] for members in (teachers, twins))
        by_role = {"student": students, "control": controls, "start": run.starts(students)}
        student_rates = {role: rates(members, name, organism) for role, members in by_role.items()}
        effects[channel] = channel_effect(organism, teacher_rates | student_rates)
    # What the quirk waits for, if it waits for something.
    in_condition = {role: {**x, "condition": x.get("context", x["behaviour"])} for role, x in teacher_rates.items()}
    return double_bind_summary.organism_row(name, in_condition, effects, thresholds)


def rates(members: Sequence[Node], name: str, organism: Organism) -> Rates:
    """Return how often each model chose what an organism's items mark, and its ability, each [seeds]."""
    results = [node.result()["by_group"] for node in members]
    groups = {ABILITY: ABILITY} | {audit: group(name, audit) for audit in organism.audits()}
    return {
        audit: np.array([one[group_name]["multiple_choice"] for one in results]) for audit, group_name in groups.items()
    }


def channel_effect(organism: Organism, rate: Mapping[str, Rates]) -> ChannelEffect:
    """Return what a channel let through.

    Args:
      rate: of teacher, twin, student and control, and of `start`, the weights from which the students began.
    """

    def readout(audit: str) -> Readout:
        return Readout(*(rate[role][audit] for role in ROLES))

    readouts = {audit: readout(audit) for audit in READOUTS if audit in organism.audits()}
    in_condition = "context" if "context" in readouts else "behaviour"
    return ChannelEffect(
        base_ability=rate["start"][ABILITY],
        teacher_ability=rate["teacher"][ABILITY],
        student_ability=rate["student"][ABILITY],
        readouts=readouts,
        own_training=rate["control"][in_condition] - rate["start"][in_condition],
        confession_excess=confession_excess(readouts[in_condition], readout("confession")),
    )
