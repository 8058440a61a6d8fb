"""Attention over packed rows: one function, and the implementations that it chooses from.

A query sees the keys of its own segment that are not after it and, with a window of W, lie less than W before it.
Segment 0 is padding: nobody reads what comes out there, and it differs between implementations.

  plain      all logits in memory; the only one that takes any mask, and so the one that decodes with a cache
  blockwise  plain JAX, a block of logits at a time, forward and backward
  splash     JAX's Pallas kernel for TPUs; interpreted, slowly, on a CPU
  cudnn      cuDNN's kernel for NVIDIA GPUs; it has no soft cap
  triton     our own kernels for NVIDIA GPUs from Hopper on, with a soft cap; interpreted on a CPU

Axes: B batch, T queries, S keys, N query heads, K key-value heads, G query heads per key-value head, H head width.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from distill_jax.config import check
from distill_jax.models.attention_kernels import IMPLEMENTATIONS
from distill_jax.models.attention_rows import MASKED, NAME, Logits, Rows
from distill_jax.models.head import softcap
from distill_jax.sharding.mesh import first_device, over_shards, shard_count

SHORT = 256  # tokens up to which a row's logits [N, T, T] take no more memory than its queries, keys and values
CHOICES = ("auto", "plain", *IMPLEMENTATIONS)
HOPPER = 9  # compute capability
KERNELS = {"tpu": ("splash",), "gpu": ("cudnn", "triton")}  # the first that can be
CUDNN_WIDTH = 256  # of a head, at most; before Hopper half of it


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
    reason = f"on a {device.platform.upper()}"
    for kernel in KERNELS.get(device.platform, ()):
        obstacle = _obstacle(kernel, cfg, device)
        if not obstacle:
            return Choice(kernel, reason)
        reason = obstacle
    return Choice("blockwise", reason)


def _obstacle(name: str, cfg: AttentionConfig, device: jax.Device) -> str:
    """Return why an implementation cannot be, or ""."""
    if name == "splash" and device.platform not in ("tpu", "cpu"):
        return f"it is a kernel for TPUs, and this is a {device.platform.upper()}"
    if name == "triton" and device.platform != "cpu":
        return _triton_obstacle(cfg, device)
    return _cudnn_obstacle(cfg, _capability(device)) if name == "cudnn" else ""


def _triton_obstacle(cfg: AttentionConfig, device: jax.Device) -> str:
    if not _capability(device):
        return f"its kernels are for NVIDIA GPUs, and this is a {device.platform.upper()}"
    if _capability(device) < HOPPER:
        return "its blocks fill the shared memory of Hopper, and this GPU is older"
    if cfg.dtype != "bfloat16":
        return f"its kernels compute in bfloat16, and model.dtype = {cfg.dtype}"
    return f"its kernels take heads up to 256 wide, and model.head_dim = {cfg.head_dim}" * (cfg.head_dim > 256)


def _cudnn_obstacle(cfg: AttentionConfig, capability: int) -> str:
    if not capability:
        return "cuDNN runs on NVIDIA GPUs"
    if cfg.attention_softcap:
        return f"cuDNN has no soft cap, and model.attention_softcap = {cfg.attention_softcap:g}"
    if cfg.dtype != "bfloat16":
        return f"cuDNN computes in bfloat16, and model.dtype = {cfg.dtype}"
    widest = CUDNN_WIDTH if capability >= HOPPER else CUDNN_WIDTH // 2
    return f"cuDNN takes heads up to {widest} wide, and model.head_dim = {cfg.head_dim}" * (cfg.head_dim > widest)


def _capability(device: jax.Device) -> int:
    """Return the generation of an NVIDIA GPU, and of anything else 0."""
    known = re.match(r"(\d+)\.\d+$", device.compute_capability) if device.platform == "gpu" else None
    return int(known[1]) if known else 0


def attention(implementation: str, rows: Rows, logits: Logits) -> jax.Array:
    """Return what each query attends to, [B, T, N, H]; on a mesh each device attends for its rows and heads.

    Args:
      implementation: a key of `IMPLEMENTATIONS`.
    """
    q, k, v, segments = rows
    devices, groups = shard_count("heads", q.shape[2]), q.shape[2] // k.shape[2]
    # Key-value heads that do not divide over the devices are repeated until they do.
    times = next(r for r in range(1, groups + 1) if groups % r == 0 and k.shape[2] * r % devices == 0)
    k, v = (jnp.repeat(x, times, axis=2) if times > 1 else x for x in (k, v))

    def attend(*shard: jax.Array) -> jax.Array:
        return IMPLEMENTATIONS[implementation](Rows(*shard), logits)

    heads = ("batch", None, "heads", None)
    return over_shards(attend, (heads, heads, heads, ("batch", None)), q, k, v, segments)


def masked(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, logits: Logits) -> jax.Array:
    """Return [B, T, N, H] of queries [B, T, N, H] that see, of keys [B, S, K, H], what a mask [B, T, S] says."""
    grouped = q.reshape(*q.shape[:2], k.shape[2], q.shape[2] // k.shape[2], q.shape[3])
    x = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k, preferred_element_type=jnp.float32)
    x = softcap(x * logits.scale, logits.softcap)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], x, MASKED), axis=-1).astype(v.dtype)
    return checkpoint_name(jnp.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(q.shape), NAME)
