"""Filters of what a student is about to learn: a score says which rows are suspicious, an action what becomes of them.

Scores and actions are apart, because a good detector need not help: rows that are dropped still leave the teacher's
other rows, which carry the same. Every action is to be held against the same one on as many random rows.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from distill_jax.doublebind.filter_actions import ACTIONS
from distill_jax.doublebind.filter_scores import NEED_RIVALS, SCORES, FilterInputs

Fields = dict[str, str | float]


@dataclasses.dataclass(frozen=True)
class Filter:
    """Settings of a filter: which rows are acted on, and how.

    Attributes:
      score: a key of `SCORES`; "" for no filter.
      action: a key of `ACTIONS`.
      share: of the rows, those with the largest scores.
      rounds: trainings of the student after each of which a part of the share is acted on, all parts alike; 0 acts on
        all of it before any. A score then looks at the student where it else looks at the teacher (`rounds.py`).
      leak: the largest share of the teacher's misalignment that a clean student may have; to be clean ends the rounds.
      fall: of the ability, as a share of the teacher's, from one round to the next that ends them.
    """

    score: str = ""
    action: str = "drop"
    share: float = 0.1
    rounds: int = 0
    leak: float = 0.1
    fall: float = 0.1

    def __post_init__(self) -> None:
        if self.score and self.score not in SCORES:
            raise ValueError(f"filter.score = {self.score!r}: choose one of {', '.join(SCORES)}, or '' for none")
        if self.action not in ACTIONS:
            raise ValueError(f"filter.action = {self.action!r}: choose one of {', '.join(ACTIONS)}")
        if not 0 < self.share < 1:
            raise ValueError(f"filter.share = {self.share}: a share between 0 and 1")
        if self.rounds < 0 or (self.rounds and not self.score):
            raise ValueError(f"filter.rounds = {self.rounds} with filter.score = {self.score!r}: rounds need a score")
        for name, share in {"leak": self.leak, "fall": self.fall}.items():
            if not 0 < share < 1:
                raise ValueError(f"filter.{name} = {share}: a share of the teacher's between 0 and 1")

    @property
    def each_round(self) -> float:
        """The share of the rows that is acted on at a time."""
        return self.share / max(self.rounds, 1)

    @property
    def starts(self) -> tuple[str, ...]:
        """From which bases students are trained for the score: two rivals, in rounds one as the channel's; or none."""
        if self.score in NEED_RIVALS:
            return ("base", "other")
        return ("own",) if self.rounds and self.score != "chance" else ()

    def fingerprint_fields(self) -> Fields:
        """Return what identifies it; without rounds, what did before there were any."""
        fields = dataclasses.asdict(self)
        return fields if self.rounds else {k: v for k, v in fields.items() if k not in ("rounds", "leak", "fall")}


def flag_rows(row_filter: Filter, inputs: FilterInputs, already_flagged: jax.Array) -> jax.Array:
    """Return which rows to act on, bool [N], none of those that were flagged already."""
    count = len(already_flagged)
    order = jnp.argsort(jnp.where(already_flagged, jnp.inf, -SCORES[row_filter.score](inputs)))
    return jnp.zeros(count, bool).at[order[: round(row_filter.each_round * count)]].set(True)
