"""LoRA: low-rank adapters beside a decoder's frozen matrices (arXiv 2106.09685).

Each layer's product with a matrix W gets a second path: x W + (alpha / rank) x A B. A is drawn from N(0, 1/fan_in), B
starts at zero, and only they train. Adapters are a tree of their own, {module: {matrix: {"a", "b"}}} with the layers
stacked on a leading L axis: it takes the weights' place wherever something trains, is saved, or makes up a population,
while one frozen base serves all members.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from distill_jax.models import transformer
from distill_jax.models.transformer import FANS, Params, TransformerConfig

Adapters = Any
SCALE = "lora_scale"  # beside a base's weights: what x A B is multiplied with


def base(params: Params, rank: int, alpha: float) -> Params:
    """Return frozen weights (or their shapes) that adapters of this rank can be attached to."""
    return dict(params, **{SCALE: np.float32(alpha / rank)})


def attach(trained: Any, frozen: Params | None) -> Params:
    """Return a whole model's params: `trained` itself without a base, else the base with these adapters beside it."""
    if frozen is None:
        return trained
    weights = {name: value for name, value in frozen.items() if name != SCALE}
    scaled = lambda pair: {"a": pair["a"], "b": pair["b"] * frozen[SCALE]}  # noqa: E731
    return dict(weights, lora=jax.tree.map(scaled, trained, is_leaf=_is_pair))


def merge(params: Params, adapters: Adapters, rank: int, alpha: float) -> Params:
    """Return plain weights, W + (alpha / rank) A B: the same function as with the adapters beside them."""

    def merged(module: str, name: str, w: jax.Array) -> jax.Array:
        pair = adapters.get(module, {}).get(name)
        if pair is None:
            return w
        lead = _axes(name, w)[0]
        a = pair["a"].reshape(*w.shape[:lead], -1, rank)
        b = pair["b"].reshape(*w.shape[:lead], rank, -1)
        delta = jnp.matmul(a, b, precision="highest") * (alpha / rank)
        return w + delta.reshape(w.shape).astype(w.dtype)

    layers = {m: {n: merged(m, n, w) for n, w in group.items()} for m, group in params["layers"].items()}
    return dict(params, layers=layers)


def init(cfg: TransformerConfig, rank: int, key: jax.Array) -> Adapters:
    """Draw fresh fp32 adapters for every matrix of the layers: they change nothing yet."""
    weights = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))["layers"]

    def pair(w: jax.ShapeDtypeStruct, name: str, key: jax.Array) -> dict[str, jax.Array]:
        lead, inputs, outputs = _axes(name, w)
        a = jax.random.normal(key, (*w.shape[:lead], *inputs, rank)) / math.sqrt(math.prod(inputs))
        return {"a": a, "b": jnp.zeros((*w.shape[:lead], rank, *outputs))}

    matrices = [(m, n) for m in sorted(weights) for n in sorted(weights[m]) if n in FANS]
    keys = jax.random.split(key, len(matrices))
    out: dict[str, dict[str, Any]] = {}
    for (module, name), k in zip(matrices, keys, strict=True):
        out.setdefault(module, {})[name] = pair(weights[module][name], name, k)
    return out


def logical_axes(cfg: TransformerConfig, tree: Any) -> Any:
    """Return the logical axes of what a tree holds, a model's weights or adapters to them; rank is on no axis."""
    weights = transformer.logical_axes(cfg)
    if "embedding" in tree:
        return weights
    out: dict[str, dict[str, Any]] = {}
    for module, group in tree.items():
        for name in group:
            axes = weights["layers"][module][name]
            lead, inputs, _ = _axes(name, axes)
            cut = lead + len(inputs)
            pair = {"a": P(*axes[:cut], None), "b": P(*axes[:lead], None, *axes[cut:])}
            out.setdefault(module, {})[name] = pair
    return out


def _is_pair(node: Any) -> bool:
    return isinstance(node, dict) and set(node) == {"a", "b"}


def _axes(name: str, stacked: Any) -> tuple[int, Any, Any]:
    """Return how many axes stack matrices, and the parts of a shape (or of its axes' names) that face in and out."""
    shape = tuple(getattr(stacked, "shape", stacked))
    faces_in, faces_out = FANS[name]
    lead = 1 + faces_in[0]  # the layers, and the axis that tells two matrices of one tensor apart
    return lead, tuple(shape[1 + i] for i in faces_in), tuple(shape[1 + i] for i in faces_out)
