"""Pretrain: next-token cross-entropy from a random start.

On `all` data this makes the reference; on `retain` data alone the oracle ("data filtering", the gold standard
that unlearning is held against).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from distill_jax.perf import flops
from distill_jax.stages.compiled_step import Objective
from distill_jax.stages.context import Context
from distill_jax.stages.next_token import NextToken
from distill_jax.stages.train_stage import NO_ADAPTERS, TrainStage


@dataclasses.dataclass(frozen=True)
class Pretrain(TrainStage):
    """Train a fresh model on a prepared data set.

    Attributes:
      data: "all" (the reference), "retain" (the oracle), or what a labeller makes: "filtered" documents, or
        "masked" with loss_on "unmarked" or "answer".
    """

    data: str = "all"

    kind: ClassVar[str] = "pretrain"
    retired: ClassVar[Mapping[str, object]] = NO_ADAPTERS

    def objective(self) -> Objective:
        """Return the next token's cross-entropy."""
        return NextToken(self.loss_on)

    def per_member_fields(self) -> tuple[str, ...]:
        """Return what members of one population may differ in."""
        return ("seed", "learning_rate")

    def reads(self) -> str:
        """Return the data set whose rows are the batch."""
        return self.data

    def step_flops(self, ctx: Context) -> dict[str, float]:
        """Return the FLOPs of a step of one member."""
        return {"student": flops.train_step(ctx.model, self.batch, ctx.row_length)}
