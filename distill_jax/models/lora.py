"""LoRA: low-rank adapters beside a decoder's frozen matrices (arXiv 2106.09685).

Each layer's product with a matrix W gets a second path: x W + (alpha / rank) x A B. A is drawn from N(0, 1/fan_in), B
starts at zero, and only they train. Adapters are a tree of their own, {module: {matrix: {"a", "b"}}} with the layers
stacked on a leading L axis: it takes the weights' place wherever something trains, is saved, or makes up a population,
while one frozen base serves all members.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from distill_jax.models import insertions, transformer
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.models.transformer_layers import FANS
from distill_jax.types import PyTree

Adapters = PyTree  # {module: {matrix: {"a", "b"}}}
Pair = dict[str, jax.Array]
T = TypeVar("T")
Base = tuple[Params, np.float32]  # frozen weights, and what x A B is multiplied with


def base(params: Params, rank: int, alpha: float) -> Base:
    """Return what adapters of this rank can be attached to, from frozen weights (or their shapes)."""
    return params, np.float32(alpha / rank)


def attach(trained: PyTree, frozen: Base | None) -> Params:
    """Return a whole model's params: `trained` itself without a base, else the base with these adapters beside it.

    What trains may also be what a forward pass has inserted (`models.insertions`), beside a base all the same.
    """
    if frozen is None:
        return trained
    weights, scale = frozen
    if insertions.of(trained):
        return dict(weights, **trained)
    scaled = {
        module: {name: {"a": pair["a"], "b": pair["b"] * scale} for name, pair in group.items()}
        for module, group in trained.items()
    }
    return dict(weights, lora=scaled)


def merge(params: Params, adapters: Adapters, alpha: float, dtype: str = "float32") -> Params:
    """Return plain weights, W + (alpha / rank) A B, summed in fp32: the function with the adapters beside them.

    The layers' matrices are taken out of `params` one by one, so that no second copy of the model exists.

    Args:
      dtype: what each sum is rounded to.
    """
    layers = params.pop("layers")
    for module, group in adapters.items():
        for name, pair in group.items():
            w = layers[module].pop(name)
            lead = len(_axes(name, w.shape)[0])
            layers[module][name] = _merged(w, pair, alpha, lead, dtype)
    return dict(params, layers=layers)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _merged(w: jax.Array, pair: Pair, alpha: float, lead: int, dtype: str) -> jax.Array:
    stack, rank = w.shape[:lead], pair["a"].shape[-1]
    a, b = pair["a"].reshape(*stack, -1, rank), pair["b"].reshape(*stack, rank, -1)
    delta = jnp.matmul(a, b, precision="highest") * (alpha / rank)
    return (w + delta.reshape(w.shape)).astype(dtype)


def init(cfg: TransformerConfig, rank: int, key: jax.Array) -> Adapters:
    """Draw fresh fp32 adapters for every matrix of the layers: they change nothing yet."""
    weights = transformer.shapes(cfg)["layers"]
    out: dict[str, dict[str, Pair]] = {}
    matrices = [(m, n) for m in sorted(weights) for n in sorted(weights[m]) if n in FANS]
    for (module, name), k in zip(matrices, jax.random.split(key, len(matrices)), strict=True):
        lead, inputs, outputs = _axes(name, weights[module][name].shape)
        a = jax.random.normal(k, (*lead, *inputs, rank)) / math.sqrt(math.prod(inputs))
        out.setdefault(module, {})[name] = {"a": a, "b": jnp.zeros((*lead, rank, *outputs))}
    return out


def logical_axes(cfg: TransformerConfig, tree: PyTree) -> PyTree:
    """Return the logical axes of what a tree holds, a model's weights or adapters to them; rank is on no axis."""
    weights = transformer.logical_axes(cfg)
    if "embedding" in tree:
        return weights
    if insertions.of(tree):
        return insertions.logical_axes(tree)
    out: dict[str, dict[str, dict[str, P]]] = {}
    for module, group in tree.items():
        for name in group:
            lead, inputs, outputs = _axes(name, weights["layers"][module][name])
            out.setdefault(module, {})[name] = {"a": P(*lead, *inputs, None), "b": P(*lead, None, *outputs)}
    return out


def _axes(name: str, stacked: Sequence[T]) -> tuple[tuple[T, ...], tuple[T, ...], tuple[T, ...]]:
    """Split a shape (or its axes' names): the axes that stack matrices, those that face the input, and the output."""
    faces_in, faces_out = FANS[name]
    lead = 1 + faces_in[0]  # the layers, and the axis that tells two matrices of one tensor apart
    return tuple(stacked[:lead]), tuple(stacked[1 + i] for i in faces_in), tuple(stacked[1 + i] for i in faces_out)
