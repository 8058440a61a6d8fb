"""Count floating-point operations from shapes: what a computation needs, not what a compiler made of it.

A multiply-add is 2 operations; norms, softmax, activations and the embedding's gather are not counted; a backward
pass costs twice its forward; rematerialisation is not counted. Attention is counted over all T × T pairs of a
row, as it is executed.
"""

from __future__ import annotations

import math
import re
from typing import cast

from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters import partial_eval as pe

from distill_jax.models.attention_kernels import VISITED
from distill_jax.models.transformer_config import TransformerConfig


def forward(cfg: TransformerConfig, rows: int, length: int, *, layers: int | None = None, head: bool = True) -> float:
    """Return the FLOPs of a forward pass over [rows, length] tokens, up to `layers`, with the head or without."""
    tokens = rows * length
    depth = cfg.layers if layers is None else layers
    attention = 2 * cfg.hidden * cfg.head_dim * (2 * cfg.heads + 2 * cfg.kv_heads)
    pairs = 4 * length * cfg.heads * cfg.head_dim
    mlp = 6 * cfg.hidden * cfg.mlp
    return float(tokens * (depth * (attention + pairs + mlp) + head * 2 * cfg.hidden * cfg.vocab))


def train_step(
    cfg: TransformerConfig, rows: int, length: int, *, layers: int | None = None, lora_rank: int = 0
) -> float:
    """Return the FLOPs of a forward and a backward pass.

    With adapters the backward pass goes through the frozen matrices, but not to them: no gradient of a weight is made.
    """
    full = 3 * forward(cfg, rows, length, layers=layers, head=layers is None)
    if not lora_rank:
        return full
    tokens, depth, gated = rows * length, cfg.layers if layers is None else layers, cfg.hidden + cfg.mlp
    heads = 2 * (cfg.hidden + cfg.heads * cfg.head_dim) + 2 * (cfg.hidden + cfg.kv_heads * cfg.head_dim)
    frozen = forward(cfg, rows, length, layers=layers, head=layers is None)
    frozen -= tokens * depth * 4 * length * cfg.heads * cfg.head_dim  # pairs of tokens: no weight is in them
    return full - frozen + 3 * 2.0 * tokens * depth * lora_rank * (heads + 3 * gated)


def prefix_step(cfg: TransformerConfig, rows: int, length: int, prefix: int) -> float:
    """Return the FLOPs of a forward and a backward pass that train a prefix, of so many tokens, to frozen weights."""
    tokens = rows * length
    pairs = tokens * cfg.layers * 4.0 * cfg.heads * cfg.head_dim
    frozen = forward(cfg, rows, length) - length * pairs  # no weight is in the pairs
    return 3 * (forward(cfg, rows, length) + prefix * pairs) - frozen


def decode(cfg: TransformerConfig, prompts: int, width: int, new: int) -> float:
    """Return the FLOPs of a greedy decode: the prompts' prefill, then one token at a time from the cache."""
    prefill = forward(cfg, prompts, width, head=False) + 2.0 * prompts * cfg.hidden * cfg.vocab
    one = forward(cfg, prompts, 1) + prompts * cfg.layers * 4.0 * (width + new) * cfg.heads * cfg.head_dim
    return prefill + (new - 1) * one


def executed(jaxpr: Jaxpr) -> float:
    """Return the FLOPs of a traced function's products, with what rematerialisation computes again.

    A loop counts as often as it runs, a kernel as often as its grid has cells (attention's as often as it computes
    one), what each device does of its own for all devices, of a choice the dearer branch; what no output depends on is
    left out.
    """
    return _products(pe.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _products(jaxpr: Jaxpr) -> float:
    total = 0.0
    for one in jaxpr.eqns:
        inner = [_products(j) for j in jaxprs_in_params(one.params)]
        if one.primitive.name == "dot_general":
            (contracted, _), _ = one.params["dimension_numbers"]
            left, out = (cast(ShapedArray, var.aval) for var in (one.invars[0], one.outvars[0]))
            total += 2.0 * out.size * math.prod(left.shape[i] for i in contracted)
        elif inner:
            total += max(inner) if one.primitive.name == "cond" else _runs(one) * sum(inner)
    return total


def _runs(one: JaxprEqn) -> float:
    """Return how often an operation runs the functions inside it, on all devices together."""
    if one.primitive.name == "pallas_call":
        return math.prod(one.params["grid_mapping"].grid)
    if one.primitive.name == "shard_map":
        return math.prod(one.params["mesh"].shape[axis] for axis in one.params["newly_manual_axes"])
    if visited := re.search(VISITED, str(one.params.get("name", ""))):  # of the cells of the kernels inside it
        return int(visited[1]) / int(visited[2])
    length: int = one.params.get("length", 1)
    return length
