"""Quantise: round a model's matrices to a few bits, to the nearest, as deployment does.

It is an attack as well: what unlearning moved by less than half a step is as it was before. A matrix has one scale for
each of its outputs, max |w| / (2^(bits - 1) - 1); embeddings and vectors stay as they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from distill_jax.config import SettingError
from distill_jax.io.checkpoint import FINAL
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_layers import FANS
from distill_jax.stages.context import PARTS, Context, Node
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.stages.untrained import finish_untrained


@dataclasses.dataclass(frozen=True)
class Quantise(Stage):
    """Round a model's matrices to the nearest of so many bits.

    Attributes:
      start: the node whose weights are rounded; the rounded ones are kept as floats.
      bits: 2 to 8.
    """

    start: str = stage_input()
    bits: int = 8

    kind: ClassVar[str] = "quantise"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise SettingError("bits", self.bits, "must be from 2 to 8")

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node: only its evaluation."""
        return ctx.evaluation_flops(*PARTS)

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Round one model, and measure what it still can do."""
        mesh = ctx.mesh()
        for node in nodes:
            rounded = functools.partial(round_to_nearest, bits=node.settings.bits)
            params = jax.jit(rounded)(ctx.params(node.inputs["start"], mesh))
            node.checkpoints.save(FINAL, params)
            finish_untrained(ctx, node, mesh, params, {"steps": 0})


def round_to_nearest(params: Params, bits: int) -> Params:
    """Return the weights with every matrix of the layers rounded to `bits` bits, a scale an output."""
    top = 2 ** (bits - 1) - 1

    def rounded(path: tuple[object, ...], w: jax.Array) -> jax.Array:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        if "layers" not in names or names[-1] not in FANS:
            return w
        inputs = tuple(1 + axis for axis in FANS[names[-1]][0])  # behind the axis of layers
        scale = jnp.max(jnp.abs(w), axis=inputs, keepdims=True) / top
        return jnp.round(w / jnp.where(scale > 0, scale, 1)) * scale

    return jax.tree_util.tree_map_with_path(rounded, params)
