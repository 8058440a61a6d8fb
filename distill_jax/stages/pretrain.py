"""Pretrain: next-token cross-entropy from a random start.

On `all` data this makes the reference; on `retain` data alone the oracle ("data filtering", the gold standard
that unlearning is held against).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

from distill_jax.perf import flops
from distill_jax.stages.compiled_step import Objective, compiled_step
from distill_jax.stages.context import Context, Node
from distill_jax.stages.next_token import NextToken
from distill_jax.stages.train_job import TrainJob, make_members
from distill_jax.stages.train_stage import NO_ADAPTERS, TrainStage
from distill_jax.stages.training import finish_models, train


@dataclasses.dataclass(frozen=True)
class Pretrain(TrainStage):
    """Train a fresh model on a prepared data set.

    Attributes:
      data: "all" (the reference) or "retain" (the oracle).
    """

    data: str = "all"

    kind: ClassVar[str] = "pretrain"
    retired: ClassVar[Mapping[str, object]] = NO_ADAPTERS

    def objective(self) -> Objective:
        """Return the next token's cross-entropy."""
        return NextToken(self.loss_on)

    def data_sets(self) -> dict[str, str]:
        """Return {setting: name} of the data sets that the settings choose."""
        return {"data": self.data}

    def per_member_fields(self) -> tuple[str, ...]:
        """Return what members of one population may differ in."""
        return ("seed", "learning_rate")

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node at its most steps."""
        return self.steps * self._step_flops(ctx) + self.evaluation_flops(ctx)

    def _step_flops(self, ctx: Context) -> float:
        return flops.train_step(ctx.model, self.batch, ctx.row_length)

    def train_job(self, ctx: Context, nodes: Sequence[Node]) -> TrainJob:
        """Return what the nodes run as one population."""
        return TrainJob(
            **make_members(nodes),
            settings=self,
            build=functools.partial(compiled_step, self.compile_key(ctx.model, ctx.run.loss_chunk)),
            reads=self.data,
            teacher="",
            flops={"student": self._step_flops(ctx)},
        )

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Train the nodes."""
        job = self.train_job(ctx, nodes)
        outcome = train(
            ctx,
            job,
            lambda mesh: [ctx.fresh(node, mesh) for node in nodes],
            evaluate_at=lambda s: s > 0 and s % self.evaluate_every == 0,
            planned_flops=self.estimate_flops(ctx) * len(nodes),
        )
        finish_models(ctx, job, outcome)
