"""Attention over packed rows: one function, and the implementations that it chooses from.

A query sees the keys of its own segment that are not after it and, with a window of W, lie less than W before it.
Segment 0 is padding: nobody reads what comes out there, and it differs between implementations.

  plain      all logits in memory; the only one that takes any mask, and so the one that decodes with a cache
  blockwise  plain JAX, a block of logits at a time, forward and backward
  splash     JAX's Pallas kernel for TPUs; interpreted, slowly, on a CPU
  cudnn      cuDNN's kernel for NVIDIA GPUs; it has no soft cap

Axes: B batch, T queries, S keys, N query heads, K key-value heads, G query heads per key-value head, H head width.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.config import check
from distill_jax.models.head import softcap
from distill_jax.sharding.mesh import first_device, over_shards, shard_count
from distill_jax.types import PyTree

if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SplashAttentionKernel

# A large finite negative: -inf would make a row that may attend to nothing (padding) NaN.
MASKED = -1e30
SHORT = 256  # tokens up to which a row's logits [N, T, T] take no more memory than its queries, keys and values
BLOCK = 512  # queries, and keys, whose logits exist at a time: on an H100 those of 4 rows of 8 heads stay in the L2
SPLASH_BLOCKS = (512, 256, 128)  # the first that divides; a TPU's lanes are 128
CUDNN_WIDTH = 256  # of a head, at most; before Hopper 128


class AttentionConfig(Protocol):
    """What a choice reads of a decoder's config."""

    @property
    def attention(self) -> str:
        """A name in `CHOICES`."""

    @property
    def attention_softcap(self) -> float:
        """The cap of attention logits; 0 for none."""

    @property
    def head_dim(self) -> int:
        """H."""

    @property
    def dtype(self) -> str:
        """Of the computation."""


class Choice(NamedTuple):
    """An implementation, and why it is that one."""

    implementation: str
    reason: str


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


def choose(cfg: AttentionConfig, length: int) -> Choice:
    """Return the implementation for rows of `length` tokens on the devices that are traced for.

    Raises:
      ConfigError: if the config names one that cannot be.
    """
    device = first_device()
    if cfg.attention != "auto":
        reason = _obstacle(cfg.attention, cfg, device)
        check(not reason, f'model.attention = "{cfg.attention}": {reason}; set it to "auto" or "blockwise"')
        return Choice(cfg.attention, "named in the config")
    if device.platform == "cpu":
        return Choice("plain", "on a CPU")
    if length <= SHORT:
        return Choice("plain", f"rows of {length} tokens, up to {SHORT}")
    kernel = {"tpu": "splash", "gpu": "cudnn"}.get(device.platform, "blockwise")
    reason = _obstacle(kernel, cfg, device)
    return Choice("blockwise", reason) if reason else Choice(kernel, f"on a {device.platform.upper()}")


def _obstacle(name: str, cfg: AttentionConfig, device: jax.Device) -> str:
    """Return why an implementation cannot be, or ""."""
    if name == "splash" and device.platform not in ("tpu", "cpu"):
        return f"it is a kernel for TPUs, and this is a {device.platform.upper()}"
    if name != "cudnn":
        return ""
    capability = re.match(r"(\d+)\.\d+$", device.compute_capability) if device.platform == "gpu" else None
    if capability is None:
        return "cuDNN runs on NVIDIA GPUs"
    if cfg.attention_softcap:
        return f"cuDNN has no soft cap, and model.attention_softcap = {cfg.attention_softcap:g}"
    if cfg.dtype != "bfloat16":
        return f"cuDNN computes in bfloat16, and model.dtype = {cfg.dtype}"
    widest = CUDNN_WIDTH if int(capability[1]) >= 9 else CUDNN_WIDTH // 2
    return f"cuDNN takes heads up to {widest} wide, and model.head_dim = {cfg.head_dim}" * (cfg.head_dim > widest)


def attention(
    implementation: str, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, logits: Logits
) -> jax.Array:
    """Return what each query of packed rows attends to, [B, T, N, H].

    On a mesh each device attends for its rows and heads.

    Args:
      implementation: a key of `IMPLEMENTATIONS`.
      q: [B, T, N, H]; k, v: [B, T, K, H].
      segments: int32 [B, T].
    """
    attend = functools.partial(IMPLEMENTATIONS[implementation], logits=logits)
    devices, groups = shard_count("heads", q.shape[2]), q.shape[2] // k.shape[2]
    # Key-value heads that do not divide over the devices are repeated until they do.
    times = next(r for r in range(1, groups + 1) if groups % r == 0 and k.shape[2] * r % devices == 0)
    k, v = (jnp.repeat(x, times, axis=2) if times > 1 else x for x in (k, v))
    heads = ("batch", None, "heads", None)
    return over_shards(attend, (heads, heads, heads, ("batch", None)), q, k, v, segments)


def masked(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float, cap: float) -> jax.Array:
    """Return [B, T, N, H] of queries [B, T, N, H] that see what a mask [B, T, S] says of keys [B, S, K, H]."""
    grouped = q.reshape(*q.shape[:2], k.shape[2], q.shape[2] // k.shape[2], q.shape[3])
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k, preferred_element_type=jnp.float32)
    logits = softcap(logits * scale, cap)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], logits, MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(q.shape)


def blockwise(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, logits: Logits) -> jax.Array:
    """Attend a block of queries and keys at a time, with an online softmax; what is hidden to a whole block is skipped.

    FlashAttention-2 (arXiv 2307.08691): the backward pass makes each block's weights anew from the saved log-sum-exp.
    """
    length = q.shape[1]
    count = -(-length // BLOCK)
    size = -(-length // (16 * count)) * 16
    q, k, v, segments = (_lengthened(x, count * size) for x in (q, k, v, segments))
    return _online(q, k, v, segments, logits, size)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _online(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, logits: Logits, size: int) -> jax.Array:
    return _online_forward(q, k, v, segments, logits, size)[0]


Three = tuple[jax.Array, jax.Array, jax.Array]  # what a pass over the blocks sums up


class _Blocks(NamedTuple):
    """Inputs cut along T into blocks of t tokens: q [n, B, K, G, t, H], k, v [n, B, K, t, H], segments [n, B, t]."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    segments: jax.Array


def _cut(x: jax.Array, size: int, kv_heads: int) -> jax.Array:
    """[B, T, N, H] -> [n, B, K, G, t, H]."""
    x = x.reshape(x.shape[0], -1, size, kv_heads, x.shape[2] // kv_heads, x.shape[3])
    return x.transpose(1, 0, 3, 4, 2, 5)


def _join(x: jax.Array) -> jax.Array:
    """[n, B, K, G, t, H] -> [B, T, N, H]."""
    n, b, kv, g, t, h = x.shape
    return x.transpose(1, 0, 4, 2, 3, 5).reshape(b, n * t, kv * g, h)


def _blocks(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, size: int) -> _Blocks:
    kv_heads = k.shape[2]
    keys, values = (_cut(x, size, kv_heads)[:, :, :, 0] for x in (k, v))
    return _Blocks(_cut(q, size, kv_heads), keys, values, segments.reshape(len(segments), -1, size).swapaxes(0, 1))


def _pairs(count: int, size: int, window: int) -> np.ndarray:
    """Return the pairs (block of queries, block of keys) of which something is visible, int32 [pairs, 2]."""
    nearest = [(i, j, (i - j) * size - (size - 1)) for i in range(count) for j in range(i + 1)]
    return np.array([(i, j) for i, j, distance in nearest if not window or distance < window], np.int32)


def _block_logits(blocks: _Blocks, i: jax.Array, j: jax.Array, logits: Logits) -> tuple[jax.Array, jax.Array]:
    """Return a pair's capped logits, fp32 [B, K, G, t, s], and which are visible, [B, 1, 1, t, s]."""
    x = jnp.einsum("BKGtH,BKsH->BKGts", blocks.q[i], blocks.k[j], preferred_element_type=jnp.float32)
    size = x.shape[-1]
    place = jnp.arange(size)
    distance = (i - j) * size + place[:, None] - place[None, :]
    near = (distance >= 0) & (distance < logits.window) if logits.window else distance >= 0
    mine, theirs = blocks.segments[i][:, :, None], blocks.segments[j][:, None, :]
    visible = near & (mine == theirs) & (mine > 0)
    return softcap(x * logits.scale, logits.softcap), visible[:, None, None]


def _online_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, logits: Logits, size: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    blocks = _blocks(q, k, v, segments, size)

    def one(carry: Three, pair: jax.Array) -> tuple[Three, None]:
        (i, j), (top, total, out) = pair, carry
        x, visible = _block_logits(blocks, i, j, logits)
        x = jnp.where(visible, x, MASKED)
        new = jnp.maximum(top[i], jnp.max(x, axis=-1))
        weights, kept = jnp.exp(x - new[..., None]), jnp.exp(top[i] - new)
        product = jnp.einsum(
            "BKGts,BKsH->BKGtH", weights.astype(v.dtype), blocks.v[j], preferred_element_type=jnp.float32
        )
        total = total.at[i].set(kept * total[i] + jnp.sum(weights, axis=-1))
        return (top.at[i].set(new), total, out.at[i].set(kept[..., None] * out[i] + product)), None

    rows = blocks.q.shape[:-1]
    start = (jnp.full(rows, MASKED, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros(blocks.q.shape, jnp.float32))
    pairs = jnp.asarray(_pairs(len(blocks.q), size, logits.window))
    (top, total, out), _ = jax.lax.scan(one, start, pairs)
    joined = _join((out / total[..., None]).astype(v.dtype))
    return joined, (q, k, v, segments, joined, top + jnp.log(total))


def _online_backward(
    logits: Logits, size: int, saved: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, k, v, segments, out, log_sum = saved
    blocks, kv_heads = _blocks(q, k, v, segments, size), k.shape[2]
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
        dx, weights = dx.astype(q.dtype), weights.astype(q.dtype)
        dq = dq.at[i].add(product("BKGts,BKsH->BKGtH", dx, blocks.k[j]))
        dk = dk.at[j].add(product("BKGts,BKGtH->BKsH", dx, blocks.q[i]))
        return (dq, dk, dv.at[j].add(product("BKGts,BKGtH->BKsH", weights, d_out[i]))), None

    dq, dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in blocks[:3])
    pairs = jnp.asarray(_pairs(len(blocks.q), size, logits.window))
    (dq, dk, dv), _ = jax.lax.scan(one, (dq, dk, dv), pairs)
    dk, dv = (_join(x[:, :, :, None]).astype(k.dtype) for x in (dk, dv))
    return _join(dq).astype(q.dtype), dk, dv, None


_online.defvjp(_online_forward, _online_backward)


def splash(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, logits: Logits) -> jax.Array:
    """Attend by JAX's splash attention, which takes the scale with the queries, and heads of any width."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    length = q.shape[1]
    scaled = (q.astype(jnp.float32) * logits.scale).astype(q.dtype)
    padded = -(-length // SPLASH_BLOCKS[-1]) * SPLASH_BLOCKS[-1]
    *heads, segments = (_lengthened(x, padded) for x in (scaled, k, v, segments))
    kernel = _splash_kernel(padded, q.shape[2], logits.softcap, logits.window, first_device().platform == "cpu")
    ids = SegmentIds(segments, segments)
    out: PyTree = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in heads), ids)
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
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, logits: Logits) -> jax.Array:
    """Attend by cuDNN's kernel.

    It knows segments only in a layout that JAX does not offer, so that they come as a mask [B, 1, T, T], which all
    heads share; with a mask it knows no window either, which is then in it. Nothing else of that size exists.
    """
    length, width = q.shape[1], q.shape[3]
    q, k, v, segments = (_lengthened(x, -(-length // 64) * 64) for x in (q, k, v, segments))
    q, k, v = (jnp.pad(x, ((0, 0),) * 3 + ((0, -width % 8),)) for x in (q, k, v))
    place = jnp.arange(q.shape[1])
    mask = segments[:, :, None] == segments[:, None, :]  # padding sees itself: no query is without a key
    if logits.window:
        mask &= place[:, None] - place[None, :] < logits.window
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask[:, None], scale=logits.scale, is_causal=True, implementation="cudnn"
    )
    return out[:, :length, :, :width]


def _lengthened(x: jax.Array, length: int) -> jax.Array:
    """Pad [B, T, ...] with zeros on the right, which are of segment 0."""
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *((0, 0),) * (x.ndim - 2)))


Implementation = Callable[..., jax.Array]  # (q, k, v, segments, logits) of one device's rows and heads -> like q
IMPLEMENTATIONS: dict[str, Implementation] = {"blockwise": blockwise, "splash": splash, "cudnn": cudnn}
CHOICES = ("auto", "plain", *IMPLEMENTATIONS)
