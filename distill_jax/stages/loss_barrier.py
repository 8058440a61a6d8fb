"""LossBarrier: how far a model's weights are from another's, and what the loss does on the straight line between them.

A model that was only nudged lies close to where it began, with no rise of the loss in between; one that was trained
anew lies elsewhere. The barrier is the most by which the loss at (1 - t) R + t W exceeds (1 - t) L(R) + t L(W), t from
0 to 1 (linear mode connectivity, arXiv 1912.05671; the barrier's definition is arXiv 2110.06296's).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.config import SettingError
from distill_jax.data.data_config import DataConfig
from distill_jax.data.random_stream import random_stream
from distill_jax.data.records import Rows
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.mesh import tracing
from distill_jax.stages.context import Context, Node, seed_for
from distill_jax.stages.next_token import NextToken
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.train.batch import PackedRows

NORMS, WHOLE = "norms", "all"


@dataclasses.dataclass(frozen=True)
class LossBarrier(Stage):
    """Measure the distance in weights and the loss barrier between two models of one shape.

    Attributes:
      start, reference: the models W and R.
      sets: on whose rows the loss is measured.
      rows: how many of each.
      points: on the line, both ends among them.
      seed: of the choice of rows.
    """

    start: str = stage_input()
    reference: str = stage_input()
    sets: tuple[str, ...] = ("retain", "forget")
    rows: int = 64
    points: int = 11
    seed: int = 0

    kind: ClassVar[str] = "barrier"
    leaves_model: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.sets or len(set(self.sets)) < len(self.sets):
            raise SettingError("sets", self.sets, "give at least one, each once")
        if self.rows < 1:
            raise SettingError("rows", self.rows, "must be at least 1")
        if self.points < 3:
            raise SettingError("points", self.points, "must be at least 3, the ends and one between them")

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError if the data lack a set."""
        super().validate(model, data)
        for name in self.sets:
            data.check_set("sets", name)

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of a forward pass at every point."""
        return self.points * len(self.sets) * flops.forward(ctx.model, self.rows, ctx.row_length)

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Measure each node's model."""
        mesh = ctx.mesh()
        for node in nodes:
            stage: LossBarrier = node.settings
            own, other = (ctx.params(node.inputs[role], mesh) for role in ("start", "reference"))
            with ctx.clock.spent_on("evaluate"):
                places = np.linspace(0, 1, stage.points)
                losses = {name: stage.losses(ctx, mesh, (own, other), places, name) for name in stage.sets}
                distance = relative_distance(own, other)
            result = {"distance": distance, "losses": {name: each.tolist() for name, each in losses.items()}}
            barriers = {name: barrier(each) for name, each in losses.items()}
            tokens = {"evaluation": stage.points * len(stage.sets) * stage.rows * ctx.row_length}
            costs = ledger({"evaluation": stage.estimate_flops(ctx)}, tokens, ctx.clock.lap(), devices=mesh.size)
            node.finish(result | {"barrier": barriers}, costs)

    def losses(
        self, ctx: Context, mesh: Mesh, models: tuple[Params, Params], places: np.ndarray, name: str
    ) -> np.ndarray:
        """Return the mean loss on rows of a set at each place on the line, 0 where the reference is."""
        rows = Rows(ctx.data / f"{name}.array_record")
        chosen = random_stream(seed_for(self.seed, "barrier"), name).permutation(len(rows))[: self.rows]
        columns = np.moveaxis(rows.gather(chosen), 1, 0)
        loss_on = "answer" if ctx.data_config.MEASURE == "exact_match" else "all"
        loss = loss_between(ctx.model, mesh, loss_on, ctx.run.loss_chunk)
        return np.array([float(loss(*models, np.float32(t), columns)) for t in places])


def barrier(losses: np.ndarray) -> float:
    """Return the most by which losses at evenly spaced places exceed the line between the first and the last."""
    return float(np.max(losses - np.linspace(losses[0], losses[-1], len(losses))))


@functools.cache
def loss_between(cfg: TransformerConfig, mesh: Mesh, loss_on: str, chunk: int = 0) -> jax.stages.Wrapped:
    """Return loss(own, other, t, rows [3, B, T]) -> the mean cross-entropy of (1 - t) other + t own."""

    def loss(own: Params, other: Params, t: jax.Array, columns: jax.Array) -> jax.Array:
        between = jax.tree.map(lambda w, r: (1 - t) * r + t * w, own, other)
        with tracing(mesh):
            term = NextToken(loss_on).loss_terms(cfg, chunk, between, PackedRows(*columns))["cross_entropy"]
        return term.total / jnp.maximum(term.weight, 1.0)

    return jax.jit(loss)


def relative_distance(own: Params, other: Params) -> dict[str, float]:
    """Return |W - R| / |R| of all weights, of each module's matrices, of the embedding and of the norms."""
    gaps, sizes = (squares(tree) for tree in (jax.tree.map(jnp.subtract, own, other), other))
    return {part: float(np.sqrt(gaps[part] / sizes[part])) if sizes[part] else 0.0 for part in sizes}


def squares(tree: Params) -> Mapping[str, float]:
    """Return the sum of squares of weights by part."""
    out: dict[str, float] = {WHOLE: 0.0}
    for path, w in jax.tree_util.tree_leaves_with_path(tree):
        names = [entry.key for entry in path]
        part = NORMS if names[-1] == "scale" else names[1] if names[0] == "layers" else names[0]
        size = float(jnp.sum(jnp.square(w.astype(jnp.float32))))
        out[part], out[WHOLE] = out.get(part, 0.0) + size, out[WHOLE] + size
    return out
