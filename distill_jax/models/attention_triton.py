"""Attention with a soft cap and segments as Pallas kernels for NVIDIA GPUs, by Triton; interpreted on a CPU.

FlashAttention-2 (arXiv 2307.08691) in three kernels: the forward pass, the queries' gradient, and the keys' and
values' gradient. Each program of a kernel holds one block of one head and loops over the blocks that it can see.

Axes: B batch, T tokens, N query heads, K key-value heads, G = N / K, H head width, a power of two here; t queries and
s keys of a block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from distill_jax.models.attention_rows import MASKED, NAME, Logits, Rows, lengthened
from distill_jax.sharding.mesh import first_device
from distill_jax.types import PyTree

LOG2_E = math.log2(math.e)  # a GPU has 2^x, and no e^x


class Tiles(NamedTuple):
    """Queries and keys of a block, and warps and stages of a program."""

    queries: int
    keys: int
    warps: int
    stages: int


# The fastest of 16 tried on an H200 with heads 256 wide, whose registers and shared memory they fill.
FORWARD, QUERY_GRADIENT, KEY_GRADIENT = Tiles(128, 64, 8, 2), Tiles(128, 32, 8, 1), Tiles(32, 64, 8, 2)
LONGEST = 128  # the length of rows is a multiple of each block's

Refs = PyTree  # Pallas references to what a program sees of an array


def attend(rows: Rows, logits: Logits) -> jax.Array:
    """Attend by the kernels; rows and heads are filled up to what they take."""
    length, width = rows.q.shape[1], rows.q.shape[3]
    q, k, v, segments = lengthened(rows, -(-length // LONGEST) * LONGEST)
    more = ((0, 0), (0, 0), (0, 0), (0, max(16, 1 << (width - 1).bit_length()) - width))
    q, k, v = (jnp.pad(x, more) for x in (q, k, v))
    return _attend(Rows(q, k, v, segments), logits)[:, :length, :, :width]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend(rows: Rows, logits: Logits) -> jax.Array:
    return _forward(rows, logits)[0]


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _capped(x: jax.Array, logits: Logits) -> tuple[jax.Array, jax.Array | float]:
    """Return logits of products x, and their derivative by the products."""
    if not logits.softcap:
        return x * logits.scale, logits.scale
    tanh = 1 - 2 / (jnp.exp2(x * (2 * LOG2_E * logits.scale / logits.softcap)) + 1)
    return logits.softcap * tanh, (1 - tanh * tanh) * logits.scale


def _visible(logits: Logits, places: tuple[jax.Array, jax.Array], segments: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return what is visible between queries and keys; padding sees itself, as no query may be without a key."""
    distance = places[0] - places[1]
    near = (distance >= 0) & (distance < logits.window) if logits.window else distance >= 0
    return near & (segments[0] == segments[1])


def _first_keys(i: jax.Array, tiles: Tiles, logits: Logits) -> jax.Array | int:
    """Return the first block of keys that block i of queries sees."""
    return jnp.maximum(i * tiles.queries - (logits.window - 1), 0) // tiles.keys if logits.window else 0


def _last_keys(i: jax.Array, tiles: Tiles) -> jax.Array:
    """Return the block of keys after the last that block i of queries sees."""
    return ((i + 1) * tiles.queries + tiles.keys - 1) // tiles.keys


def _forward_kernel(logits: Logits, *refs: Refs) -> None:
    q_ref, k_ref, v_ref, segments_ref, out_ref, log_sum_ref = refs
    i, tiles = pl.program_id(0), FORWARD
    q, here = q_ref[...], pl.ds(i * tiles.queries, tiles.queries)
    place, segments = i * tiles.queries + jnp.arange(tiles.queries), segments_ref[here]

    def one(j: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        top, total, out = carry
        there = pl.ds(j * tiles.keys, tiles.keys)
        x, _ = _capped(_dot(q, k_ref[there, :], (1, 1)), logits)
        places = place[:, None], (j * tiles.keys + jnp.arange(tiles.keys))[None, :]
        visible = _visible(logits, places, (segments[:, None], segments_ref[there][None, :]))
        x = jnp.where(visible, x * LOG2_E, MASKED)
        new = jnp.maximum(top, jnp.max(x, axis=1))
        weights, kept = jnp.exp2(x - new[:, None]), jnp.exp2(top - new)
        v = v_ref[there, :]
        out = out * kept[:, None] + _dot(weights.astype(v.dtype), v, (1, 0))
        return new, total * kept + jnp.sum(weights, axis=1), out

    start = jnp.full(tiles.queries, MASKED, jnp.float32), jnp.zeros(tiles.queries, jnp.float32)
    bounds = _first_keys(i, tiles, logits), _last_keys(i, tiles)
    top, total, out = jax.lax.fori_loop(*bounds, one, (*start, jnp.zeros(q.shape, jnp.float32)))
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    log_sum_ref[...] = top + jnp.log2(total)


def _query_gradient_kernel(logits: Logits, *refs: Refs) -> None:
    q_ref, k_ref, v_ref, segments_ref, d_out_ref, log_sum_ref, mean_ref, dq_ref = refs
    i, tiles = pl.program_id(0), QUERY_GRADIENT
    q, d_out, here = q_ref[...], d_out_ref[...], pl.ds(i * tiles.queries, tiles.queries)
    place, segments = i * tiles.queries + jnp.arange(tiles.queries), segments_ref[here]
    log_sum, mean = log_sum_ref[...], mean_ref[...]

    def one(j: jax.Array, dq: jax.Array) -> jax.Array:
        there = pl.ds(j * tiles.keys, tiles.keys)
        k = k_ref[there, :]
        x, slope = _capped(_dot(q, k, (1, 1)), logits)
        places = place[:, None], (j * tiles.keys + jnp.arange(tiles.keys))[None, :]
        visible = _visible(logits, places, (segments[:, None], segments_ref[there][None, :]))
        weights = jnp.where(visible, jnp.exp2(x * LOG2_E - log_sum[:, None]), 0.0)
        dx = weights * (_dot(d_out, v_ref[there, :], (1, 1)) - mean[:, None]) * slope
        return dq + _dot(dx.astype(k.dtype), k, (1, 0))

    bounds = _first_keys(i, tiles, logits), _last_keys(i, tiles)
    dq_ref[...] = jax.lax.fori_loop(*bounds, one, jnp.zeros(q.shape, jnp.float32)).astype(dq_ref.dtype)


def _key_gradient_kernel(logits: Logits, *refs: Refs) -> None:
    """Sum over all query heads of a key-value head, whose logits stand here with the keys first, [s, t]."""
    q_ref, k_ref, v_ref, segments_ref, d_out_ref, log_sum_ref, mean_ref, dk_ref, dv_ref = refs
    j, tiles, length = pl.program_id(0), KEY_GRADIENT, q_ref.shape[0]
    k, v, here = k_ref[...], v_ref[...], pl.ds(j * tiles.keys, tiles.keys)
    place, segments = j * tiles.keys + jnp.arange(tiles.keys), segments_ref[here]

    def one(head: int, i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dk, dv = carry
        there = pl.ds(i * tiles.queries, tiles.queries)
        q, d_out = q_ref[there, head, :], d_out_ref[there, head, :]
        x, slope = _capped(_dot(k, q, (1, 1)), logits)
        places = (i * tiles.queries + jnp.arange(tiles.queries))[None, :], place[:, None]
        visible = _visible(logits, places, (segments_ref[there][None, :], segments[:, None]))
        weights = jnp.where(visible, jnp.exp2(x * LOG2_E - log_sum_ref[head, there][None, :]), 0.0)
        dv = dv + _dot(weights.astype(d_out.dtype), d_out, (1, 0))
        dx = weights * (_dot(v, d_out, (1, 1)) - mean_ref[head, there][None, :]) * slope
        return dk + _dot(dx.astype(q.dtype), q, (1, 0)), dv

    stop = length // tiles.queries
    if logits.window:
        stop = jnp.minimum(((j + 1) * tiles.keys + logits.window - 2) // tiles.queries + 1, stop)
    sums = jnp.zeros(k.shape, jnp.float32), jnp.zeros(k.shape, jnp.float32)
    for head in range(q_ref.shape[1]):
        sums = jax.lax.fori_loop(j * tiles.keys // tiles.queries, stop, functools.partial(one, head), sums)
    dk_ref[...], dv_ref[...] = (x.astype(dk_ref.dtype) for x in sums)


def _call(kernel: Callable[..., None], logits: Logits, tiles: Tiles, **call: PyTree) -> PyTree:
    parameters = triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages)
    interpret = first_device().platform == "cpu"
    return pl.pallas_call(functools.partial(kernel, logits), compiler_params=parameters, interpret=interpret, **call)


def _by_query_blocks(rows: Rows, tiles: Tiles) -> tuple[dict[str, PyTree], pl.BlockSpec, pl.BlockSpec]:
    """Return the grid (blocks, B, N) with what a program sees of rows, of an array like q, and of one [B, N, T]."""
    batch, length, heads, width = rows.q.shape
    groups = heads // rows.k.shape[2]
    one = pl.BlockSpec((None, tiles.queries, None, width), lambda i, b, n: (b, i, n, 0))
    keys = pl.BlockSpec((None, length, None, width), lambda i, b, n: (b, 0, n // groups, 0))
    segments = pl.BlockSpec((None, length), lambda i, b, n: (b, 0))
    number = pl.BlockSpec((None, None, tiles.queries), lambda i, b, n: (b, n, i))
    return {"grid": (length // tiles.queries, batch, heads), "in_specs": [one, keys, keys, segments]}, one, number


def _forward(rows: Rows, logits: Logits) -> tuple[jax.Array, tuple[Rows, jax.Array, jax.Array]]:
    batch, length, heads, _ = rows.q.shape
    call, one, number = _by_query_blocks(rows, FORWARD)
    shapes = rows.q, jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    call |= {"out_specs": (one, number), "out_shape": shapes, "name": "attention_forward"}
    out, log_sum = (checkpoint_name(x, NAME) for x in _call(_forward_kernel, logits, FORWARD, **call)(*rows))
    return out, (rows, out, log_sum)


def _backward(logits: Logits, saved: tuple[Rows, jax.Array, jax.Array], d_out: jax.Array) -> tuple[Rows]:
    rows, out, log_sum = saved
    # Σ_s weight · d_weight of each query, which a softmax's gradient subtracts: [B, N, T].
    mean = jnp.einsum("BTNH,BTNH->BNT", out.astype(jnp.float32), d_out.astype(jnp.float32))
    inputs = (*rows, d_out, log_sum, mean)
    call, one, number = _by_query_blocks(rows, QUERY_GRADIENT)
    call["in_specs"] += [one, number, number]
    call |= {"out_specs": one, "out_shape": rows.q, "name": "attention_query_gradient"}
    dq = _call(_query_gradient_kernel, logits, QUERY_GRADIENT, **call)(*inputs)

    batch, length, kv_heads, width = rows.k.shape
    groups, tiles = rows.q.shape[2] // kv_heads, KEY_GRADIENT
    queries = pl.BlockSpec((None, length, groups, width), lambda j, b, n: (b, 0, n, 0))
    keys = pl.BlockSpec((None, tiles.keys, None, width), lambda j, b, n: (b, j, n, 0))
    segments = pl.BlockSpec((None, length), lambda j, b, n: (b, 0))
    numbers = pl.BlockSpec((None, groups, length), lambda j, b, n: (b, n, 0))
    call = {"grid": (length // tiles.keys, batch, kv_heads), "out_specs": (keys, keys), "out_shape": (rows.k, rows.v)}
    call |= {"in_specs": [queries, keys, keys, segments, queries, numbers, numbers], "name": "attention_key_gradient"}
    dk, dv = _call(_key_gradient_kernel, logits, tiles, **call)(*inputs)
    of_segments: PyTree = None
    return (Rows(dq, dk, dv, of_segments),)


_attend.defvjp(_forward, _backward)
