"""Pretrain: next-token cross-entropy from a random start.

On `all` data this makes the reference; on `retain` data alone the oracle ("data filtering", the gold standard
that unlearning is held against).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from distill_jax.losses.chunked import over_tokens
from distill_jax.losses.cross_entropy import cross_entropy
from distill_jax.models import transformer
from distill_jax.models.transformer import TransformerConfig
from distill_jax.perf import flops
from distill_jax.stages.context import Context, Node
from distill_jax.stages.train_stage import TrainStage
from distill_jax.stages.training import Program, enrol, finish_models, train
from distill_jax.train.batch import PackedRows
from distill_jax.train.layout import ShardedMembers
from distill_jax.train.settings import Training
from distill_jax.train.step import Term, make_step


@dataclasses.dataclass(frozen=True)
class Pretrain(TrainStage):
    """Train a fresh model on a prepared data set.

    Attributes:
      data: "all" (the reference) or "retain" (the oracle).
    """

    data: str = "all"

    kind: ClassVar[str] = "pretrain"

    def __post_init__(self):
        super().__post_init__()
        if self.lora_rank:
            raise ValueError(f"lora_rank = {self.lora_rank}: pretraining starts from no model to attach adapters to")

    def data_sets(self) -> dict[str, str]:
        """Return {setting: name} of the data sets that the settings choose."""
        return {"data": self.data}

    def per_member_fields(self) -> tuple[str, ...]:
        """Return what members of one population may differ in."""
        return ("seed", "learning_rate")

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node at its most steps."""
        return self.steps * self._step_flops(ctx) + self.estimate_evaluation_flops(ctx)

    def _step_flops(self, ctx: Context) -> float:
        return flops.train_step(ctx.model, self.batch, ctx.row_length)

    def train_job(self, ctx: Context, nodes: Sequence[Node]) -> Program:
        """Return what the nodes run as one population."""
        return Program(
            **enrol(nodes),
            settings=self,
            build=functools.partial(build, ctx.model, self.alike(self.per_member_fields()), ctx.run.loss_chunk),
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


def language_model(cfg: TransformerConfig, settings: Training, chunk: int, params: Any, batch: PackedRows) -> Term:
    """Return the cross-entropy of a batch as a loss term of coefficient 1."""
    mask = batch.target_mask(settings.loss_on)
    hidden = transformer.hidden_states(cfg, params, batch.tokens, batch.segments)[:, :-1]
    head = transformer.head(params)

    def loss(hidden, targets, mask):
        return cross_entropy(transformer.unembed(cfg, head, hidden), targets, mask)

    return Term(1.0, *over_tokens(loss, chunk, hidden, batch.tokens[:, 1:], mask))


@functools.cache
def build(cfg: TransformerConfig, settings: Training, chunk: int, mesh: Any) -> Any:
    """Return the compiled step; equal stages get the same one."""

    def objective(params, batch, _):
        return {"cross_entropy": language_model(cfg, settings, chunk, params, batch)}

    no_teacher = lambda params, batch: None  # noqa: E731
    return make_step(objective, no_teacher, settings, ShardedMembers(mesh, cfg))
