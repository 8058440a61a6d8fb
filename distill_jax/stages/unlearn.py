"""Unlearn: fine-tune a model so that it no longer shows what the forget data taught it.

How is the method's matter (`stages/methods`, one file each). What they suppress comes back under a few steps of
fine-tuning: that is what distilling afterwards is for.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from distill_jax.config import added
from distill_jax.data.data_config import DataConfig
from distill_jax.stages.compiled_step import compiled_step
from distill_jax.stages.context import Context, Node
from distill_jax.stages.methods import METHODS, UnlearningMethod
from distill_jax.stages.stage import stage_input
from distill_jax.stages.train_job import TrainJob, make_members
from distill_jax.stages.train_stage import AdaptingStage
from distill_jax.stages.training import finish_models, train


@dataclasses.dataclass(frozen=True)
class Unlearn(AdaptingStage):
    """Suppress the forget data in a trained model.

    Attributes:
      start: the node whose model is unlearned.
      method: a key of `METHODS`.
      forget_weight, retain_weight: γ and α, the coefficients of the two terms.
      hold, layer, steer, train_layers: of the methods that have them; one that the chosen method does not read must
        keep its default, and so cannot change an identity.
    """

    start: str = stage_input()
    method: str = "maxent"
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    hold: str = added("cross_entropy")
    layer: int = 1
    steer: float = 6.5
    train_layers: int = 1

    kind: ClassVar[str] = "unlearn"

    def __post_init__(self):
        super().__post_init__()
        if self.method not in METHODS:
            raise ValueError(f"method = {self.method!r}: choose one of {', '.join(METHODS)}")
        method = METHODS[self.method]
        for name in unread_settings(self.method):
            default = getattr(Unlearn, name)
            if getattr(self, name) != default:
                fix_hint = f"{method.label} does not read it; leave it at {default!r}"
                raise ValueError(f"{name} = {getattr(self, name)!r}: {fix_hint}")
        if self.lora_rank and not method.takes_adapters:
            fix_hint = f"{method.label} trains chosen weights themselves; use 0, or another method"
            raise ValueError(f"lora_rank = {self.lora_rank}: {fix_hint}")
        self.objective()  # which checks its own settings

    def objective(self) -> UnlearningMethod:
        """Return the method with these settings."""
        return METHODS[self.method].of(self)

    def per_member_fields(self) -> tuple[str, ...]:
        """Return what members of one population may differ in: not what the method reads, nor a start they share."""
        shares_start = self.lora_rank or self.objective().needs_frozen
        free = ("learning_rate", "forget_weight", "retain_weight", "seed", *(() if shares_start else ("start",)))
        return tuple(name for name in free if name not in self.objective().settings())

    def validate(self, model: Any, data: DataConfig) -> None:
        """Raise ValueError if the data have no answers to train on, or the method cannot be applied to the model."""
        super().validate(model, data)
        self.objective().check_model(model)

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node at its most steps."""
        return self.steps * sum(self._step_flops(ctx).values()) + self.evaluation_flops(ctx)

    def _step_flops(self, ctx: Context) -> dict[str, float]:
        return self.objective().step_flops(ctx.model, self.batch, ctx.row_length, self.lora_rank)

    def train_job(self, ctx: Context, nodes: Sequence[Node]) -> TrainJob:
        """Return what the nodes run as one population."""
        return TrainJob(
            **make_members(nodes, "forget", "retain"),
            settings=self,
            build=functools.partial(compiled_step, self.compile_key(ctx.model, ctx.run.loss_chunk)),
            reads={"forget": "forget", "retain": "retain"},
            teacher=nodes[0].inputs["start"] if self.objective().needs_frozen else "",
            base=nodes[0].inputs["start"] if self.lora_rank else "",
            flops=self._step_flops(ctx),
        )

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Unlearn the nodes."""
        job = self.train_job(ctx, nodes)
        outcome = train(
            ctx,
            job,
            lambda mesh: ctx.starts(nodes, mesh),
            evaluate_at=lambda s: s > 0 and s % self.evaluate_every == 0,
            planned_flops=self.estimate_flops(ctx) * len(nodes),
        )
        finish_models(ctx, job, outcome)


def unread_settings(method: str) -> tuple[str, ...]:
    """Return the settings that are there for other methods than this."""
    own = {field.name for field in dataclasses.fields(Unlearn)} - {
        field.name for field in dataclasses.fields(AdaptingStage)
    }
    others = {name for other in METHODS.values() for name in other.settings()} & own
    return tuple(sorted(others - {*METHODS[method].settings()}))
