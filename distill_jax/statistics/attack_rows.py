"""What attackers measure as they train: the rows of an attack, each with the learning rate and seed that it is of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from distill_jax.config import check
from distill_jax.types import JsonObject

# Kinds of rows with how many prompts of each fact were answered right ("correct"), or each document's "bits".
FACTS, KEPT = "facts", "kept"  # of what is held out from attackers; of what is to be retained
SCORES = "evaluation"  # the kind of rows with a score for each part


class Attacker(NamedTuple):
    """One member of an attack: its peak learning rate, and which of the attack's seeds is its own."""

    learning_rate: float
    seed: int

    @property
    def label(self) -> str:
        """The member's name in the metrics; six digits tell learning rates apart."""
        return f"lr={self.learning_rate:g},seed={self.seed}"


def attackers(learning_rates: Sequence[float], seeds: int) -> list[Attacker]:
    """Return an attack's members: every learning rate with every seed."""
    return [Attacker(rate, seed) for seed in range(seeds) for rate in learning_rates]


@dataclasses.dataclass(frozen=True)
class AttackRow:
    """One measurement of one attacker.

    Attributes:
      kind: SCORES, FACTS or KEPT.
      scores: {part: score} of an evaluation; None where it is not finite.
      items: of FACTS and KEPT, how many prompts of each fact were answered right, or each document's bits.
    """

    kind: str
    step: int
    attacker: Attacker
    scores: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    items: Sequence[float] = ()


def attack_rows(rows: Iterable[JsonObject], members: Iterable[Attacker]) -> list[AttackRow]:
    """Return the measurements among an attack's metrics, as `io.metrics` reads them.

    Raises:
      ConfigError: if one is of none of the members.
    """
    by_label = {member.label: member for member in members}
    measured = [row for row in rows if row["kind"] in (SCORES, FACTS, KEPT)]
    for row in measured:
        known = ", ".join(by_label)
        check(row["member"] in by_label, f"metrics of {row['member']!r}: no attacker of this node, which has {known}")
    return [_measurement(row, by_label[row["member"]]) for row in measured]


def _measurement(row: JsonObject, attacker: Attacker) -> AttackRow:
    kind, step = row["kind"], row["step"]
    if kind == SCORES:
        scores = {part: score for part, score in row.items() if part not in ("kind", "step", "member")}
        return AttackRow(kind, step, attacker, scores=scores)
    return AttackRow(kind, step, attacker, items=row["bits"] if "bits" in row else row["correct"])
