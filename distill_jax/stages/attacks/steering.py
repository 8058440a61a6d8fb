"""Steering: a vector is added to the residual stream of one layer, towards what the model answers.

Of each layer the vector is a difference of means: the stream where a model is about to give an answer of what is to be
retained, less the stream where it is about to give one of the shown facts that it was made to forget. So added, it
moves a question that the model refuses to where it answers (the difference-in-means of arXiv 2406.11717; the layers,
strengths and the two sets are chosen here). Of text, which has no answers, all tokens count.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.config import SettingError
from distill_jax.data.data_config import DataConfig
from distill_jax.data.random_stream import random_stream
from distill_jax.data.records import Rows
from distill_jax.models import transformer
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.sharding.mesh import tracing
from distill_jax.stages.attacks.untrained_attack import Spent, UntrainedAttack, finish_measured, scores_of_population
from distill_jax.stages.context import Context, Node, seed_for
from distill_jax.train.batch import PackedRows

RETAIN = "retain"


@dataclasses.dataclass(frozen=True)
class Steering(UntrainedAttack):
    """Add a layer's direction to the residual stream, at several depths and strengths.

    Attributes:
      data: the set of what was to be forgotten and is shown to an attacker.
      depths: at which share of the layers, above 0 and up to 1, the vector is added.
      strengths: what the difference of means is multiplied with; negative ones lead away from what is answered.
      rows: of each set that the means are taken over, other ones for each seed.
      seeds: how often rows are drawn.
      seed: of the draws.
    """

    data: str = "forget_shown"
    depths: tuple[float, ...] = (0.5, 1.0)
    strengths: tuple[float, ...] = (-1.0, 0.5, 1.0, 2.0, 4.0)
    rows: int = 32
    seeds: int = 3
    seed: int = 0

    kind: ClassVar[str] = "steering"
    removable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.depths or not all(0 < depth <= 1 for depth in self.depths):
            raise SettingError("depths", self.depths, "give at least one, each above 0 and at most 1")
        if not self.strengths or not all(map(math.isfinite, self.strengths)):
            raise SettingError("strengths", self.strengths, "give at least one, all finite")
        for name in ("depths", "strengths"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise SettingError(name, getattr(self, name), "give each once")
        for name in ("rows", "seeds"):
            if getattr(self, name) < 1:
                raise SettingError(name, getattr(self, name), "must be at least 1")

    def variants(self) -> dict[str, dict[str, Any]]:
        """Return every depth with every strength."""
        return {
            f"steered at {depth:g} by {strength:g}": {"depths": depth, "strengths": strength}
            for depth in self.depths
            for strength in self.strengths
        }

    def draws(self) -> int:
        """Return how often rows are drawn."""
        return self.seeds

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError if the data lack a set."""
        super().validate(model, data)
        data.check_set("data", self.data)
        data.check_set("data", RETAIN)

    def layer(self, cfg: TransformerConfig, depth: float) -> int:
        """Return the layer, counted from 1, after which a vector at this depth is added."""
        return max(1, round(depth * cfg.layers))

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Steer one model in every way."""
        for node in nodes:
            stage: Steering = node.settings
            cfg, mesh = ctx.model, ctx.mesh(len(stage.labels()))
            params = ctx.params(node.inputs["start"], mesh, frozen=True)
            vectors: list[dict[str, jax.Array]] = []
            for seed in range(stage.seeds):
                for depth in stage.depths:
                    at = stage.layer(cfg, depth)
                    direction = stage.direction(ctx, mesh, params, seed, at)
                    alone = jnp.zeros((cfg.layers, cfg.hidden)).at[at - 1].set(direction)
                    vectors += [{"steering": strength * alone} for strength in stage.strengths]
            scores = scores_of_population(ctx, mesh, vectors, (params, np.float32(1.0)), cfg)
            finish_measured(ctx, node, scores, mesh.size, stage.spent(ctx))

    def direction(self, ctx: Context, mesh: Mesh, params: Params, seed: int, layer: int) -> jax.Array:
        """Return the vector [D] of a layer: the mean stream of what is retained less that of what is forgotten."""
        loss_on = "answer" if ctx.data_config.MEASURE == "exact_match" else "all"
        mean = mean_stream(ctx.model, mesh, layer, loss_on)
        means = []
        for name in (RETAIN, self.data):
            rows = Rows(ctx.data / f"{name}.array_record")
            chosen = random_stream(seed_for(self.seed, "steering", seed), name).permutation(len(rows))[: self.rows]
            means.append(mean(params, np.moveaxis(rows.gather(chosen), 1, 0)))
        kept, forgotten = means
        return kept - forgotten

    def spent(self, ctx: Context) -> dict[str, Spent]:
        """Return what one attacker spends on a variant: a pass over the rows of both sets up to its layer."""
        layers = (self.layer(ctx.model, apart["depths"]) for apart in self.variants().values())
        rows = 2 * self.rows
        costs = [flops.forward(ctx.model, rows, ctx.row_length, layers=layer, head=False) for layer in layers]
        return {name: Spent(rows, cost) for name, cost in zip(self.variants(), costs, strict=True)}


@functools.cache
def mean_stream(cfg: TransformerConfig, mesh: Mesh, layer: int, loss_on: str) -> jax.stages.Wrapped:
    """Return mean(params, rows [3, B, T]) -> the mean residual stream [D] behind a layer where tokens are predicted."""

    def mean(params: Params, columns: jax.Array) -> jax.Array:
        rows = PackedRows(*columns)
        with tracing(mesh):
            stream = transformer.residual_at(cfg, params, rows.tokens, rows.segments, layer)[:, :-1]
        counted = rows.target_mask(loss_on).astype(jnp.float32)[..., None]
        return jnp.sum(stream.astype(jnp.float32) * counted, axis=(0, 1)) / jnp.maximum(jnp.sum(counted), 1.0)

    return jax.jit(mean)
