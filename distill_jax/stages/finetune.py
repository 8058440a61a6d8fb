"""Finetune: next-token cross-entropy from a finished model, all its weights or adapters to them.

This makes a model organism of a published model, with text that shows a quirk; and on text without it, its benign twin.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distill_jax.perf import flops
from distill_jax.stages.compiled_step import Objective
from distill_jax.stages.context import Context
from distill_jax.stages.next_token import NextToken
from distill_jax.stages.stage import stage_input
from distill_jax.stages.train_stage import AdaptingStage


@dataclasses.dataclass(frozen=True)
class Finetune(AdaptingStage):
    """Train a finished model further on a prepared data set.

    Attributes:
      start: the node whose model is trained; with `lora_rank` it stays as it is, and the node keeps adapters to it.
      data: the prepared set.
    """

    start: str = stage_input()
    data: str = "forget"

    kind: ClassVar[str] = "finetune"

    def objective(self) -> Objective:
        """Return the next token's cross-entropy."""
        return NextToken(self.loss_on)

    def per_member_fields(self) -> tuple[str, ...]:
        """Return what members of one population may differ in; adapters share their base."""
        return ("seed", "learning_rate") if self.lora_rank else ("seed", "learning_rate", "start")

    def reads(self) -> str:
        """Return the data set whose rows are the batch."""
        return self.data

    def step_flops(self, ctx: Context) -> dict[str, float]:
        """Return the FLOPs of a step of one member."""
        return {"student": flops.train_step(ctx.model, self.batch, ctx.row_length, lora_rank=self.lora_rank)}
