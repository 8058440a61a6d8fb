"""What a model is in a comparison, read off from how it was made, and never from what its stage is called."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

from distill_jax.experiment.ancestry import ancestry
from distill_jax.io.node import Node
from distill_jax.stages import (
    Distill,
    Erase,
    Finetune,
    Given,
    Import,
    Lock,
    Perturb,
    Pretrain,
    Quantise,
    Route,
    Stage,
    Unlearn,
)
from distill_jax.stages.robust import method_key

INJECTED = "inject"  # the set that teaches a published model what is to be forgotten


class Role(enum.StrEnum):
    """What a model is in a comparison; the values are those of the reports' files."""

    REFERENCE = "reference"  # trained on all data, or published: what is to be mended
    ORACLE = "oracle"  # never trained on what is to be forgotten
    SUPPRESSED = "suppressed"  # unlearned by fine-tuning
    SUPPRESSED_ORACLE = "suppressed oracle"
    RANDOM_STUDENT = "random student"  # of a suppressed model, until it recovered
    EQUAL_COMPUTE = "equal compute"  # the same for a fixed number of steps
    REFERENCE_STUDENT = "student of the reference"
    FILTERED = "filtered"  # a student of the reference on filtered data, random or a damaged copy of it (with an α)
    TOKEN_FILTERED = "token filtered"  # the same, but that learns nothing at marked tokens
    PRETRAINED_FILTERED = "pretrained on filtered documents"
    PRETRAINED_MASKED = "pretrained on unmarked tokens"
    ROUTING = "gradients routed"  # of what is to be forgotten, into a part of the network
    ROUTED = "gradients routed, part cut off"  # and trained on retain data since
    UNDO = "undo"  # distilled into a damaged copy of its teacher
    UNDAMAGED = "alpha 0"  # distilled into an undamaged one
    NOISE_ONLY = "noise only"  # damaged by noise, without shrinking
    REINITIALISED = "reinitialised"  # distilled into a copy of it damaged in another way: in part, or in rounds
    MATCHED_REFERENCE = "reference matched to the oracle"
    MATCHED_STUDENT = "random student matched to the oracle"
    LOCKED = "locked"  # hides behind a password what its reference knows
    ERASED = "erased"  # a model without what its reference is known to have learned
    GIVEN = "given"  # unlearned by whatever tool, and attacked as it is
    FINETUNED = "finetuned"
    QUANTISED = "quantised"  # rounded to a few bits
    DISTILLED = "distilled"
    OTHER = "other"


PRETRAINED = {  # by the set it was trained on
    "all": Role.REFERENCE,
    "retain": Role.ORACLE,
    "filtered": Role.PRETRAINED_FILTERED,
    "masked": Role.PRETRAINED_MASKED,
}
LABELLED = {"filtered": Role.FILTERED, "masked": Role.TOKEN_FILTERED}  # students of the reference, by the set read


@dataclasses.dataclass(frozen=True)
class Provenance:
    """How a model was made.

    Attributes:
      method: the unlearning method that it goes back to, see `stages.robust.method_key`; None if there is none.
      teacher: the node that it was distilled from; "" for what was not distilled.
      alpha, beta: of UNDO's damage, 0 where an undamaged copy was distilled; None for what is no such copy.
      kind: of the stage that left it.
      bits, rounded: of a quantised model, how many, and the role of the model that was rounded; the rest is its own.
    """

    role: Role
    method: str | None = None
    teacher: str = ""
    alpha: float | None = None
    beta: float | None = None
    kind: str = "pretrain"
    bits: int | None = None
    rounded: Role | None = None


def provenance(node: Node, nodes: Mapping[str, Node]) -> Provenance:
    """Return how the model of a node was made."""
    stage, role, damage = node.settings, role_of(node, nodes), _damage(node, nodes)
    if isinstance(stage, Quantise):
        made = provenance(nodes[node.inputs["start"]], nodes)
        return dataclasses.replace(made, role=role, kind=stage.kind, bits=stage.bits, rounded=made.role)
    alpha = damage.alpha if damage else 0.0 if role is Role.UNDAMAGED else None
    beta = damage.beta if damage else 0.0 if role is Role.UNDAMAGED else None
    return Provenance(role, _method(node, nodes), node.inputs.get("teacher", ""), alpha, beta, stage.kind)


def role_of(node: Node, nodes: Mapping[str, Node]) -> Role:
    """Return what a node's model is in a comparison."""
    stage: Stage = node.settings
    if isinstance(stage, Pretrain):
        return PRETRAINED.get(stage.data, Role.OTHER)
    if isinstance(stage, Route):
        return Role.ROUTING
    if isinstance(stage, Given):
        return Role.GIVEN
    if isinstance(stage, Import):
        published = Role.ORACLE if any(_teaches(other, node) for other in nodes.values()) else Role.REFERENCE
        return Role.OTHER if node.inputs else published
    if isinstance(stage, Finetune):
        return _finetuned_role(node, nodes)
    if isinstance(stage, Quantise):
        return Role.QUANTISED
    if isinstance(stage, Lock):
        return Role.LOCKED
    if isinstance(stage, Erase):
        return Role.ERASED
    if isinstance(stage, Unlearn):
        start = role_of(nodes[node.inputs["start"]], nodes)
        return Role.SUPPRESSED_ORACLE if start is Role.ORACLE else Role.SUPPRESSED
    if isinstance(stage, Distill):
        return _student_role(node, stage, nodes)
    return Role.OTHER


def _finetuned_role(node: Node, nodes: Mapping[str, Node]) -> Role:
    start = nodes[node.inputs["start"]]
    if isinstance(start.settings, Perturb) and isinstance(nodes[start.inputs["start"]].settings, Route):
        return Role.ROUTED
    return Role.REFERENCE if _teaches(node, start) else Role.FINETUNED


def _teaches(node: Node, start: Node) -> bool:
    """Return whether a node teaches a model, which never knew it before, what is to be forgotten then."""
    stage = node.settings
    if not isinstance(stage, Finetune) or node.inputs["start"] != start.name:
        return False
    trained = start.settings
    return stage.data == INJECTED or (
        stage.data == "all" and isinstance(trained, Pretrain) and trained.data == "retain"
    )


def _student_role(node: Node, stage: Distill, nodes: Mapping[str, Node]) -> Role:
    teacher, start = nodes[node.inputs["teacher"]], nodes.get(node.inputs.get("start", ""))
    if start is None:
        return _random_student_role(stage, role_of(teacher, nodes))
    if isinstance(start.settings, Perturb):
        return _damaged_role(node, start, teacher, nodes)
    if start.name == teacher.name:
        return Role.UNDAMAGED
    matched = role_of(teacher, nodes) is Role.ORACLE and role_of(start, nodes) is Role.REFERENCE
    return Role.MATCHED_REFERENCE if matched else Role.DISTILLED


def _damaged_role(student: Node, start: Node, teacher: Node, nodes: Mapping[str, Node]) -> Role:
    """Return what a student is that starts from a damaged model."""
    damage, source = start.settings, nodes[start.inputs["start"]]
    labelled = LABELLED.get(student.settings.data)
    if labelled and source.name == teacher.name and role_of(teacher, nodes) is Role.REFERENCE:
        return labelled
    if source.name == teacher.name and damage.in_full:
        return Role.UNDO if damage.shrink else Role.NOISE_ONLY
    while isinstance(source.settings, Distill) and source.inputs["teacher"] == teacher.name:  # a round before
        before = nodes.get(source.inputs.get("start", ""))
        if before is None or not isinstance(before.settings, Perturb):
            break
        source = nodes[before.inputs["start"]]
    return Role.REINITIALISED if source.name == teacher.name else Role.DISTILLED


def _random_student_role(stage: Distill, teacher: Role) -> Role:
    if teacher is Role.ORACLE:
        return Role.MATCHED_STUDENT
    if teacher is Role.REFERENCE and stage.data in LABELLED:
        return LABELLED[stage.data]
    if stage.data != "all" or stage.uniform:  # a control that lacks part of what its teacher says
        return Role.DISTILLED
    students = {
        Role.REFERENCE: Role.REFERENCE_STUDENT,
        Role.SUPPRESSED: Role.RANDOM_STUDENT if stage.stop else Role.EQUAL_COMPUTE,
    }
    return students.get(teacher, Role.DISTILLED)


def _damage(node: Node, nodes: Mapping[str, Node]) -> Perturb | None:
    start = nodes.get(node.inputs.get("start", ""))
    return start.settings if start is not None and isinstance(start.settings, Perturb) else None


def _method(node: Node, nodes: Mapping[str, Node]) -> str | None:
    stages = (nodes[name].settings for name in ancestry([node.name], nodes))
    return next((method_key(stage.method, stage.robust) for stage in stages if isinstance(stage, Unlearn)), None)
