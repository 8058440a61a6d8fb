"""PrefixTuning: an attack that leaves all weights as they are and trains what every text has before it.

The prefix begins as documents that the attacker is shown: at step 0 it is a prompt of examples (see `few_shot`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jax.sharding import Mesh

from distill_jax.config import SettingError, check
from distill_jax.data.random_stream import random_stream
from distill_jax.data.records import Rows
from distill_jax.models import insertions, lora
from distill_jax.models.lora import Adapters, Base
from distill_jax.models.transformer import Params
from distill_jax.perf import flops
from distill_jax.sharding.mesh import shardings, with_shardings
from distill_jax.stages.attacks.few_shot import prefix_reader
from distill_jax.stages.attacks.finetuning import Attack
from distill_jax.stages.attacks.untrained_attack import documents_of
from distill_jax.stages.context import Context, Node, seed_for
from distill_jax.stages.train_job import TrainJob


@dataclasses.dataclass(frozen=True)
class PrefixJob(TrainJob):
    """A job whose members are prefixes of one frozen model."""

    def trained_shape(self, ctx: Context, mesh: Mesh) -> Params:
        """Return what one member trains, as shapes."""
        shape = insertions.prefix_shape(ctx.model, self.settings.length)  # type: ignore[attr-defined]
        return with_shardings(shape, shardings(mesh, lora.logical_axes(ctx.model, shape), shape))

    def adapters(self, ctx: Context, mesh: Mesh) -> list[Adapters]:
        """Return each member's prefix before its first step; those of one stream are the same."""
        stage: PrefixTuning = self.settings  # type: ignore[assignment]
        params, read = ctx.params(self.base, mesh, frozen=True), prefix_reader(ctx.model, mesh)

        @functools.cache
        def first(stream: int) -> Adapters:
            return read(params, stage.tokens(ctx, self.seeds[stream]))

        return [first(member.stream) for member in self.members]

    def _base(self, weights: Params) -> Base:
        return weights, np.float32(1.0)


@dataclasses.dataclass(frozen=True)
class PrefixTuning(Attack):
    """Attack a model by training keys and values that stand before every text, in every layer.

    Attributes:
      length: tokens that the prefix is as long as.
    """

    length: int = 16

    kind: ClassVar[str] = "prefix_tuning"
    removable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise SettingError("length", self.length, "must be at least 1")
        if self.lora_rank or self.shrink or self.noise:
            raise ValueError("lora_rank, shrink and noise change weights, which a prefix leaves alone; set them 0")

    def step_flops(self, ctx: Context) -> dict[str, float]:
        """Return the FLOPs of a step of one attacker, and of the attacked model if that runs beside it."""
        sets = 2 if self.retain_weight else 1
        own = {"attack": sets * flops.prefix_step(ctx.model, self.batch, ctx.row_length, self.length)}
        return super().step_flops(ctx) | own

    def train_job(self, ctx: Context, nodes: Sequence[Node]) -> TrainJob:
        """Return what one attack runs: every learning rate with every seed as one population."""
        job = super().train_job(ctx, nodes)
        fields = {field.name: getattr(job, field.name) for field in dataclasses.fields(TrainJob)}
        return PrefixJob(**fields | {"base": nodes[0].inputs["start"]})

    def tokens(self, ctx: Context, seed: int) -> np.ndarray:
        """Return the tokens [length] that an attacker's prefix begins as: the last of documents that are shown."""
        rows = Rows(ctx.data / f"{ctx.data_config.set_name(self.data)}.array_record")
        order = random_stream(seed_for(seed, "prefix"), self.data).permutation(len(rows)).tolist()
        documents = documents_of(rows, order, self.length)  # more than are needed: each has a token at least
        tokens = np.concatenate(documents)[: self.length] if documents else np.zeros(0)
        check(len(tokens) == self.length, f"length = {self.length}: the set {self.data!r} has {len(tokens)} tokens")
        return tokens.astype(np.int32)
