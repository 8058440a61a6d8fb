"""Attention in plain JAX, a block of logits at a time; on any device.

Axes as in `attention`; of n blocks, each of t queries or keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from distill_jax.models.attention_rows import MASKED, NAME, Logits, Rows, in_one_batch, lengthened
from distill_jax.models.head import softcap
from distill_jax.types import PyTree

BLOCK = 512  # queries, and keys, whose logits exist at a time: on an H100 those of 4 rows of 8 heads stay in the L2


def blockwise(rows: Rows, logits: Logits) -> jax.Array:
    """Attend a block of queries and keys at a time, with an online softmax; what is hidden to a whole block is skipped.

    FlashAttention-2 (arXiv 2307.08691): the backward pass makes each block's weights anew from the saved log-sum-exp.
    """
    length = rows.q.shape[1]
    count = -(-length // BLOCK)
    size = -(-length // (16 * count)) * 16
    return _online(lengthened(rows, count * size), logits, size)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _online(rows: Rows, logits: Logits, size: int) -> jax.Array:
    return _online_forward(rows, logits, size)[0]


Three = tuple[jax.Array, jax.Array, jax.Array]  # what a pass over the blocks sums up


def _blocks(rows: Rows, size: int) -> Rows:
    """Cut along T into n blocks of t tokens: q [n, B, K, G, t, H]; k, v [n, B, K, t, H]; segments [n, B, t]."""
    kv_heads = rows.k.shape[2]
    keys, values = (_cut(x, size, kv_heads)[:, :, :, 0] for x in (rows.k, rows.v))
    segments = rows.segments.reshape(len(rows.segments), -1, size).swapaxes(0, 1)
    return Rows(_cut(rows.q, size, kv_heads), keys, values, segments)


def _cut(x: jax.Array, size: int, kv_heads: int) -> jax.Array:
    """[B, T, N, H] -> [n, B, K, G, t, H]."""
    x = x.reshape(x.shape[0], -1, size, kv_heads, x.shape[2] // kv_heads, x.shape[3])
    return x.transpose(1, 0, 3, 4, 2, 5)


def _join(x: jax.Array) -> jax.Array:
    """[n, B, K, G, t, H] -> [B, T, N, H]."""
    n, b, kv, g, t, h = x.shape
    return x.transpose(1, 0, 4, 2, 3, 5).reshape(b, n * t, kv * g, h)


Pair = tuple[jax.Array, jax.Array]  # the numbers of a block of queries and of one of keys


def _over_pairs(step: Callable[[Pair, Three], Three], start: Three, blocks: Rows, window: int) -> Three:
    """Fold step over the pairs of blocks of which something is visible.

    The pair is part of what the loop carries: a table of them would be a constant, which `in_one_batch` may not see.
    """
    count, size = len(blocks.q), blocks.q.shape[-2]
    before = (window + size - 2) // size if window else count  # blocks of keys before its own that a query may see

    def one(carry: tuple[Pair, Three], _: None) -> tuple[tuple[Pair, Three], None]:
        (i, j), sums = carry
        last = j == i
        following = i + last, jnp.where(last, jnp.maximum(i + 1 - before, 0), j + 1)
        return (following, step((i, j), sums)), None

    pairs = sum(min(i, before) + 1 for i in range(count))
    zero = jnp.zeros((), jnp.int32)
    return jax.lax.scan(one, ((zero, zero), start), None, length=pairs)[0][1]


def _block_logits(blocks: Rows, i: jax.Array, j: jax.Array, logits: Logits) -> tuple[jax.Array, jax.Array]:
    """Return a pair's capped logits, fp32 [B, K, G, t, s], and which are visible, [B, 1, 1, t, s]."""
    x = jnp.einsum("BKGtH,BKsH->BKGts", blocks.q[i], blocks.k[j], preferred_element_type=jnp.float32)
    size = x.shape[-1]
    place = jnp.arange(size)
    distance = (i - j) * size + place[:, None] - place[None, :]
    near = (distance >= 0) & (distance < logits.window) if logits.window else distance >= 0
    query_segments, key_segments = blocks.segments[i][:, :, None], blocks.segments[j][:, None, :]
    visible = near & (query_segments == key_segments) & (query_segments > 0)
    return softcap(x * logits.scale, logits.softcap), visible[:, None, None]


def _put(x: jax.Array, i: jax.Array, block: jax.Array) -> jax.Array:
    """Set x[i]. As a slice, which a loop updates in place: `x.at[i]` would be a scatter."""
    return jax.lax.dynamic_update_index_in_dim(x, block, i, 0)


def _online_forward(rows: Rows, logits: Logits, size: int) -> tuple[jax.Array, tuple[Rows, jax.Array, jax.Array]]:
    summed = in_one_batch(functools.partial(_weighted_values, logits, size))
    out, log_sum = (checkpoint_name(x, NAME) for x in summed(rows))
    return out, (rows, out, log_sum)


def _online_backward(
    logits: Logits, size: int, saved: tuple[Rows, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[PyTree]:
    dq, dk, dv = in_one_batch(functools.partial(_gradients, logits, size))(*saved, gradient)
    of_segments: PyTree = None
    return (Rows(dq, dk, dv, of_segments),)


_online.defvjp(_online_forward, _online_backward)


def _weighted_values(logits: Logits, size: int, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Return what queries attend to, [B, T, N, H], and the log-sum-exp of their logits, fp32 [B, T, N, 1]."""
    blocks = _blocks(rows, size)

    def one(pair: Pair, sums: Three) -> Three:
        (i, j), (top, total, out) = pair, sums
        x, visible = _block_logits(blocks, i, j, logits)
        x = jnp.where(visible, x, MASKED)
        new = jnp.maximum(top[i], jnp.max(x, axis=-1))
        weights, kept = jnp.exp(x - new[..., None]), jnp.exp(top[i] - new)
        product = jnp.einsum(
            "BKGts,BKsH->BKGtH", weights.astype(rows.v.dtype), blocks.v[j], preferred_element_type=jnp.float32
        )
        total = _put(total, i, kept * total[i] + jnp.sum(weights, axis=-1))
        return _put(top, i, new), total, _put(out, i, kept[..., None] * out[i] + product)

    shape = blocks.q.shape
    top, total = jnp.full(shape[:-1], MASKED, jnp.float32), jnp.zeros(shape[:-1], jnp.float32)
    top, total, out = _over_pairs(one, (top, total, jnp.zeros(shape, jnp.float32)), blocks, logits.window)
    log_sum = top + jnp.log(total)
    return _join((out / total[..., None]).astype(rows.v.dtype)), _join(log_sum[..., None])


def _gradients(logits: Logits, size: int, rows: Rows, *of_queries: jax.Array) -> Three:
    """Return the gradients of queries, keys and values.

    Args:
      of_queries: what they attended to, the log-sum-exp of their logits, and the gradient of the former.
    """
    blocks, kv_heads, dtype = _blocks(rows, size), rows.k.shape[2], rows.q.dtype
    out, log_sum, d_out = (_cut(x, size, kv_heads) for x in of_queries)
    # Σ_s weight · d_weight of each query, which a softmax's gradient subtracts.
    mean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)

    def one(pair: Pair, sums: Three) -> Three:
        (i, j), (dq, dk, dv) = pair, sums
        x, visible = _block_logits(blocks, i, j, logits)
        weights = jnp.where(visible, jnp.exp(x - log_sum[i]), 0.0)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        d_weights = product("BKGtH,BKsH->BKGts", d_out[i], blocks.v[j])
        dx = weights * (d_weights - mean[i]) * logits.scale
        if logits.softcap:
            dx = dx * (1 - jnp.square(x / logits.softcap))
        dx, weights = dx.astype(dtype), weights.astype(dtype)
        dq = _put(dq, i, dq[i] + product("BKGts,BKsH->BKGtH", dx, blocks.k[j]))
        dk = _put(dk, j, dk[j] + product("BKGts,BKGtH->BKsH", dx, blocks.q[i]))
        return dq, dk, _put(dv, j, dv[j] + product("BKGts,BKGtH->BKsH", weights, d_out[i]))

    dq, dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in blocks[:3])
    dq, dk, dv = _over_pairs(one, (dq, dk, dv), blocks, logits.window)
    dq, dk, dv = (_join(x).astype(dtype) for x in (dq, dk[:, :, :, None], dv[:, :, :, None]))
    return dq, dk, dv
