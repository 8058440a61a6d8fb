"""What acts on a forward pass beside a model's weights: a prefix that every text has before it, and steering.

A prefix is keys and values of each layer ("prefix tuning", arXiv 2101.00190), {"prefix": {"key", "value"}} of
[L, S, K, H], already rotated to the places -S to -1: each segment of a packed row and each padded prompt has it right
before its first token, whose place stays 0. Of tokens it is what these would have left in a cache there, so that an
untrained prefix is a prompt. Steering is a vector of each layer that is added to the residual stream which leaves it,
{"steering": [L, D]}. Both take the place of adapters wherever something trains or is measured as a population.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from distill_jax.models import transformer
from distill_jax.models.transformer import CachedInputs, Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.types import PyTree

AXES = {
    "key": P("layers", None, "kv_heads", "head_dim"),
    "value": P("layers", None, "kv_heads", "head_dim"),
    "held": P(None),
}
Prefix = dict[str, dict[str, jax.Array]]


def of(tree: PyTree) -> bool:
    """Return whether a tree is of insertions, and neither weights nor adapters."""
    return "prefix" in tree or "steering" in tree


def logical_axes(tree: PyTree) -> PyTree:
    """Return the logical axes of a tree of insertions."""
    axes: dict[str, PyTree] = {}
    if "prefix" in tree:
        axes["prefix"] = {name: AXES[name] for name in tree["prefix"]}
    if "steering" in tree:
        axes["steering"] = P("layers", "embed")
    return axes


def prefix_of(cfg: TransformerConfig, params: Params, tokens: jax.Array, held: jax.Array | None = None) -> Prefix:
    """Return the prefix that tokens [S] are to whatever follows them, fp32.

    Args:
      held: of tokens that are padded on the left, 1 where they are none [S]; None if there is no padding.
    """
    count = tokens.shape[0]
    there = jnp.ones(count, jnp.int32) if held is None else held
    inputs = CachedInputs(tokens[None], jnp.arange(-count, 0)[None], there[None])
    _, cache = transformer.decode_step(cfg, params, transformer.empty_cache(cfg, 1, count), 0, inputs)
    prefix = {name: x[:, 0].astype(jnp.float32) for name, x in zip(("key", "value"), cache, strict=True)}
    return {"prefix": prefix if held is None else prefix | {"held": held.astype(jnp.float32)}}


def prefix_shape(cfg: TransformerConfig, count: int) -> PyTree:
    """Return a prefix of so many tokens as shapes."""
    shape = jax.ShapeDtypeStruct((cfg.layers, count, cfg.kv_heads, cfg.head_dim), jnp.float32)
    return {"prefix": {"key": shape, "value": shape}}
