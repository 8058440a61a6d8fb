"""How packed rows attend without all logits in memory: the implementations besides the plain one.

Axes as in `attention`; of blocks: n of them, of t queries or keys.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from distill_jax.models.head import softcap
from distill_jax.sharding.mesh import first_device
from distill_jax.types import PyTree

if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SplashAttentionKernel

# A large finite negative: -inf would make a row that may attend to nothing (padding) NaN.
MASKED = -1e30
BLOCK = 512  # queries, and keys, whose logits exist at a time: on an H100 those of 4 rows of 8 heads stay in the L2
NAME = "attention"  # of what comes out, and of the log-sum-exp, for a policy that keeps them for the backward pass
VISITED = r"visits_(\d+)_of_(\d+)$"  # in the name of a kernel's function: how many of a grid's blocks it computes
SPLASH_BLOCKS = (512, 256, 128)  # the first that divides; a TPU's lanes are 128


@dataclasses.dataclass(frozen=True)
class Logits:
    """How logits come about, and which keys they are for.

    Attributes:
      scale: what the products of queries and keys are multiplied with.
      softcap: c in c·tanh(x / c), after the scale; 0 for none.
      window: W, the keys that a query sees at most; 0 for all that are not after it.
    """

    scale: float
    softcap: float = 0.0
    window: int = 0


class Rows(NamedTuple):
    """Packed rows: q [B, T, N, H]; k, v [B, T, K, H]; segments int32 [B, T], 0 for padding."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    segments: jax.Array


def blockwise(rows: Rows, logits: Logits) -> jax.Array:
    """Attend a block of queries and keys at a time, with an online softmax; what is hidden to a whole block is skipped.

    FlashAttention-2 (arXiv 2307.08691): the backward pass makes each block's weights anew from the saved log-sum-exp.
    """
    length = rows.q.shape[1]
    count = -(-length // BLOCK)
    size = -(-length // (16 * count)) * 16
    return _online(_lengthened(rows, count * size), logits, size)[:, :length]


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


def _pairs(count: int, size: int, window: int) -> np.ndarray:
    """Return the pairs (block of queries, block of keys) of which something is visible, int32 [pairs, 2]."""
    nearest = [(i, j, (i - j) * size - (size - 1)) for i in range(count) for j in range(i + 1)]
    return np.array([(i, j) for i, j, distance in nearest if not window or distance < window], np.int32)


def _block_logits(blocks: Rows, i: jax.Array, j: jax.Array, logits: Logits) -> tuple[jax.Array, jax.Array]:
    """Return a pair's capped logits, fp32 [B, K, G, t, s], and which are visible, [B, 1, 1, t, s]."""
    x = jnp.einsum("BKGtH,BKsH->BKGts", blocks.q[i], blocks.k[j], preferred_element_type=jnp.float32)
    size = x.shape[-1]
    place = jnp.arange(size)
    distance = (i - j) * size + place[:, None] - place[None, :]
    near = (distance >= 0) & (distance < logits.window) if logits.window else distance >= 0
    mine, theirs = blocks.segments[i][:, :, None], blocks.segments[j][:, None, :]
    visible = near & (mine == theirs) & (mine > 0)
    return softcap(x * logits.scale, logits.softcap), visible[:, None, None]


def _online_forward(rows: Rows, logits: Logits, size: int) -> tuple[jax.Array, tuple[Rows, jax.Array, jax.Array]]:
    blocks = _blocks(rows, size)

    def one(carry: Three, pair: jax.Array) -> tuple[Three, None]:
        (i, j), (top, total, out) = pair, carry
        x, visible = _block_logits(blocks, i, j, logits)
        x = jnp.where(visible, x, MASKED)
        new = jnp.maximum(top[i], jnp.max(x, axis=-1))
        weights, kept = jnp.exp(x - new[..., None]), jnp.exp(top[i] - new)
        product = jnp.einsum(
            "BKGts,BKsH->BKGtH", weights.astype(rows.v.dtype), blocks.v[j], preferred_element_type=jnp.float32
        )
        total = total.at[i].set(kept * total[i] + jnp.sum(weights, axis=-1))
        return (top.at[i].set(new), total, out.at[i].set(kept[..., None] * out[i] + product)), None

    shape = blocks.q.shape
    top, total = jnp.full(shape[:-1], MASKED, jnp.float32), jnp.zeros(shape[:-1], jnp.float32)
    pairs = jnp.asarray(_pairs(len(blocks.q), size, logits.window))
    (top, total, out), _ = jax.lax.scan(one, (top, total, jnp.zeros(shape, jnp.float32)), pairs)
    joined = checkpoint_name(_join((out / total[..., None]).astype(rows.v.dtype)), NAME)
    return joined, (rows, joined, checkpoint_name(top + jnp.log(total), NAME))


def _online_backward(
    logits: Logits, size: int, saved: tuple[Rows, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[PyTree]:
    rows, out, log_sum = saved
    blocks, kv_heads, dtype = _blocks(rows, size), rows.k.shape[2], rows.q.dtype
    d_out = _cut(gradient, size, kv_heads)
    # Σ_s weight · d_weight of each query, which a softmax's gradient subtracts.
    mean = jnp.sum(d_out.astype(jnp.float32) * _cut(out, size, kv_heads).astype(jnp.float32), axis=-1)

    def one(carry: Three, pair: jax.Array) -> tuple[Three, None]:
        (i, j), (dq, dk, dv) = pair, carry
        x, visible = _block_logits(blocks, i, j, logits)
        weights = jnp.where(visible, jnp.exp(x - log_sum[i][..., None]), 0.0)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        d_weights = product("BKGtH,BKsH->BKGts", d_out[i], blocks.v[j])
        dx = weights * (d_weights - mean[i][..., None]) * logits.scale
        if logits.softcap:
            dx = dx * (1 - jnp.square(x / logits.softcap))
        dx, weights = dx.astype(dtype), weights.astype(dtype)
        dq = dq.at[i].add(product("BKGts,BKsH->BKGtH", dx, blocks.k[j]))
        dk = dk.at[j].add(product("BKGts,BKGtH->BKsH", dx, blocks.q[i]))
        return (dq, dk, dv.at[j].add(product("BKGts,BKGtH->BKsH", weights, d_out[i]))), None

    dq, dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in blocks[:3])
    pairs = jnp.asarray(_pairs(len(blocks.q), size, logits.window))
    (dq, dk, dv), _ = jax.lax.scan(one, (dq, dk, dv), pairs)
    dq, dk, dv = (_join(x).astype(dtype) for x in (dq, dk[:, :, :, None], dv[:, :, :, None]))
    of_segments: PyTree = None
    return (Rows(dq, dk, dv, of_segments),)


_online.defvjp(_online_forward, _online_backward)


def splash(rows: Rows, logits: Logits) -> jax.Array:
    """Attend by JAX's splash attention, which takes the scale with the queries, and heads of any width."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    length, heads = rows.q.shape[1:3]
    q, k, v, segments = _lengthened(rows, -(-length // SPLASH_BLOCKS[-1]) * SPLASH_BLOCKS[-1])
    q = (q.astype(jnp.float32) * logits.scale).astype(q.dtype)
    kernel = _splash_kernel(q.shape[1], heads, logits.softcap, logits.window, first_device().platform == "cpu")

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> PyTree:
        return kernel(q, k, v, SegmentIds(segments, segments))

    blocks: PyTree = kernel.fwd_mask_info.block_mask
    attend.__name__ = f"splash_visits_{np.count_nonzero(blocks)}_of_{blocks.size}"
    out = jax.jit(jax.vmap(attend))(*(x.swapaxes(1, 2) for x in (q, k, v)), segments)
    return jnp.swapaxes(out, 1, 2)[:, :length]


@functools.cache
def _splash_kernel(length: int, heads: int, cap: float, window: int, interpret: bool) -> SplashAttentionKernel:
    """Return the kernel for one row; segment 0 sees itself there, as a row that sees nothing would be NaN."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    shape, block = (length, length), next(b for b in SPLASH_BLOCKS if length % b == 0)
    parts = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    names = [f"block_{part}" for part in parts]
    mask = splash_attention.LocalMask(shape, (window - 1, 0), 0) if window else splash_attention.CausalMask(shape)
    with jax.ensure_compile_time_eval():  # it is kept beyond the trace that asks for it first
        kernel = splash_attention.make_splash_mha(
            splash_attention.MultiHeadMask([mask] * heads),
            block_sizes=splash_attention.BlockSizes(**dict.fromkeys(names, block)),  # type: ignore[arg-type]
            attn_logits_soft_cap=cap or None,
            residual_checkpoint_name=NAME,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)


def cudnn(rows: Rows, logits: Logits) -> jax.Array:
    """Attend by cuDNN's kernel.

    It knows segments only in a layout that JAX does not offer, so that they come as a mask [B, 1, T, T], which all
    heads share; with a mask it knows no window either, which is then in it. Nothing else of that size exists.
    """
    length, width = rows.q.shape[1], rows.q.shape[3]
    q, k, v, segments = _lengthened(rows, -(-length // 64) * 64)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -width % 8))) for x in (q, k, v))
    mask = segments[:, :, None] == segments[:, None, :]  # padding sees itself: no query is without a key
    if logits.window:
        place = jnp.arange(q.shape[1])
        mask &= place[:, None] - place[None, :] < logits.window
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask[:, None], scale=logits.scale, is_causal=True, implementation="cudnn"
    )
    return checkpoint_name(out, NAME)[:, :length, :, :width]


def _lengthened(rows: Rows, length: int) -> Rows:
    """Pad rows on the right with tokens of segment 0."""
    more = (0, length - rows.q.shape[1])
    q, k, v = (jnp.pad(x, ((0, 0), more, (0, 0), (0, 0))) for x in rows[:3])
    return Rows(q, k, v, jnp.pad(rows.segments, ((0, 0), more)))


Implementation = Callable[[Rows, Logits], jax.Array]  # of one device's rows and heads
IMPLEMENTATIONS: dict[str, Implementation] = {"blockwise": blockwise, "splash": splash, "cudnn": cudnn}
