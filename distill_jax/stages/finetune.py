"""Finetune: next-token cross-entropy from a finished model, all its weights or adapters to them.

This makes a model organism of a published model, with text that shows a quirk; and on text without it, its benign twin.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

from distill_jax.perf import flops
from distill_jax.stages import pretrain
from distill_jax.stages.context import PARTS, Context, Node
from distill_jax.stages.training import Program, enrol, finish_models, train
from distill_jax.train.settings import Training, of_training


@dataclasses.dataclass(frozen=True)
class Finetune(Training):
    """Train a finished model further on a prepared data set.

    Attributes:
      start: the node whose model is trained; with `lora_rank` it stays as it is, and the node keeps adapters to it.
      data: the prepared set.
    """

    start: str = ""
    data: str = "forget"

    VERB: ClassVar[str] = "finetune"
    INPUTS: ClassVar[tuple[str, ...]] = ("start",)

    @property
    def MEMBER(self) -> tuple[str, ...]:  # type: ignore[override]
        """Nodes that differ only here train as one population; adapters share their base."""
        return ("seed", "learning_rate") if self.lora_rank else ("seed", "learning_rate", "start")


def program(ctx: Context, nodes: Sequence[Node]) -> Program:
    """Return what the nodes run as one population."""
    settings = nodes[0].settings
    return Program(
        **enrol(nodes),
        settings=settings,
        build=functools.partial(pretrain.build, ctx.model, of_training(settings.alike()), ctx.run.loss_chunk),
        reads=settings.data,
        teacher="",
        base=nodes[0].inputs["start"] if settings.lora_rank else "",
        flops={"student": _step_flops(ctx, settings)},
    )


def run(ctx: Context, nodes: Sequence[Node]) -> None:
    """Train the nodes."""
    settings, what = nodes[0].settings, program(ctx, nodes)
    outcome = train(
        ctx,
        what,
        lambda mesh: ctx.starts(nodes, mesh),
        evaluate_at=lambda s: s > 0 and s % settings.evaluate_every == 0,
        planned_flops=plan(ctx, settings) * len(nodes),
    )
    finish_models(ctx, what, outcome)


def _step_flops(ctx: Context, settings: Finetune) -> float:
    return flops.train_step(ctx.model, settings.batch, ctx.row_length, lora_rank=settings.lora_rank)


def plan(ctx: Context, settings: Finetune) -> float:
    """Return the FLOPs of one node at its most steps."""
    looks = settings.steps // settings.evaluate_every + 1
    return settings.steps * _step_flops(ctx, settings) + looks * ctx.evaluation_flops(*PARTS)
