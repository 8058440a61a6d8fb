"""How packed rows attend without all logits in memory: by a platform's kernels, or block by block.

Axes as in `attention`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from distill_jax.models.attention_blockwise import blockwise
from distill_jax.models.attention_rows import NAME, Logits, Rows, in_one_batch, lengthened
from distill_jax.sharding.mesh import first_device
from distill_jax.types import PyTree

if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SplashAttentionKernel

VISITED = r"visits_(\d+)_of_(\d+)$"  # in the name of a kernel's function: how many of a grid's blocks it computes
SPLASH_BLOCKS = (512, 256, 128)  # the first that divides; a TPU's lanes are 128


def splash(rows: Rows, logits: Logits) -> jax.Array:
    """Attend by JAX's splash attention, which takes the scale with the queries, and heads of any width."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    length, heads = rows.q.shape[1:3]
    q, k, v, segments = lengthened(rows, -(-length // SPLASH_BLOCKS[-1]) * SPLASH_BLOCKS[-1])
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
    """Attend by cuDNN's kernel, with rows and heads filled up to what it takes."""
    length, width = rows.q.shape[1], rows.q.shape[3]
    q, k, v, segments = lengthened(rows, -(-length // 64) * 64)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -width % 8))) for x in (q, k, v))
    return checkpoint_name(_cudnn(Rows(q, k, v, segments), logits), NAME)[:, :length, :, :width]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _cudnn(rows: Rows, logits: Logits) -> jax.Array:
    return _cudnn_forward(rows, logits)[0]


def _cudnn_call(rows: Rows, logits: Logits) -> jax.Array:
    """Call cuDNN.

    It knows segments only in a layout that JAX does not offer, so that they come as a mask [B, 1, T, T], which all
    heads share; with a mask it knows no window either, which is then in it. Nothing else of that size exists.
    """
    segments, place = rows.segments, jnp.arange(rows.q.shape[1])
    mask = segments[:, :, None] == segments[:, None, :]  # padding sees itself: no query is without a key
    if logits.window:
        mask &= place[:, None] - place[None, :] < logits.window
    return jax.nn.dot_product_attention(
        rows.q, rows.k, rows.v, mask=mask[:, None], scale=logits.scale, is_causal=True, implementation="cudnn"
    )


def _cudnn_forward(rows: Rows, logits: Logits) -> tuple[jax.Array, Rows]:
    def forward(rows: Rows) -> jax.Array:
        return _cudnn_call(rows, logits)

    return in_one_batch(forward)(rows), rows


def _cudnn_backward(logits: Logits, rows: Rows, gradient: jax.Array) -> tuple[PyTree]:
    def backward(rows: Rows, gradient: jax.Array) -> PyTree:
        def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return _cudnn_call(Rows(q, k, v, rows.segments), logits)

        return jax.vjp(forward, *rows[:3])[1](gradient)

    dq, dk, dv = in_one_batch(backward)(rows, gradient)
    of_segments: PyTree = None
    return (Rows(dq, dk, dv, of_segments),)


_cudnn.defvjp(_cudnn_forward, _cudnn_backward)


def triton(rows: Rows, logits: Logits) -> jax.Array:
    """Attend by our own kernels for NVIDIA GPUs."""
    from distill_jax.models import attention_triton

    return attention_triton.attend(rows, logits)


Implementation = Callable[[Rows, Logits], jax.Array]  # of one device's rows and heads
IMPLEMENTATIONS: dict[str, Implementation] = {
    "blockwise": blockwise,
    "splash": splash,
    "cudnn": cudnn,
    "triton": triton,
}
