"""The layers of a decoder: rotary positions, attention, gated MLP and norms, with their weights.

Axes are those of `models.transformer`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.models.remat import named
from distill_jax.models.transformer_config import ACTIVATIONS, TransformerConfig
from distill_jax.sharding.mesh import constrain, gather
from distill_jax.types import PyTree

Cache = tuple[jax.Array, jax.Array]
Angles = tuple[jax.Array, jax.Array]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # q [B, T, N, H], k and v [B, S, K, H] -> like q

# Axes of one matrix (without the stacked L axis) that face its input and its output. In key_value and gate_up two
# matrices share a tensor: axis 0 tells them apart and belongs to neither side.
FANS = {
    "embedding": ((0,), (1,)),
    "unembedding": ((1,), (0,)),
    "query": ((0,), (1, 2)),
    "key_value": ((1,), (2, 3)),
    "output": ((0, 1), (2,)),
    "gate_up": ((1,), (2,)),
    "down": ((0,), (1,)),
}

# Logical axes of a layer's matrices, without the axes that stack them.
MATRIX_AXES = {
    "query": ("embed", "heads", "head_dim"),
    "key_value": ("embed", "kv_heads", "head_dim"),
    "output": ("heads", "head_dim", "embed"),
    "gate_up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}

Initializer = Callable[..., PyTree]  # boxes the array with the names of its axes, until `nn.unbox`


def normal(cfg: TransformerConfig, *axes: str) -> Initializer:
    """Draw a matrix with the config's standard deviation, and name its axes."""
    return nn.with_logical_partitioning(nn.initializers.normal(cfg.init_std), axes)


def _zeros(*axes: str) -> Initializer:
    return nn.with_logical_partitioning(nn.initializers.zeros, axes)


def rotary(cfg: TransformerConfig, positions: jax.Array, local: bool = False) -> Angles:
    """Return the rotary (cos, sin) of positions [B, T], each fp32 [B, T, 1, H], for all layers of a kind at once.

    Args:
      local: for the local layers of a config that gives them a base of their own.
    """
    theta, scaling = (cfg.local_rope_theta, ()) if local else (cfg.rope_theta, cfg.rope_scaling)
    half = cfg.head_dim // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if len(scaling) == 1:
        frequency = frequency / scaling[0]
    elif scaling:
        factor, low, high, length = scaling
        # Slow frequencies turn `factor` times slower, fast ones are kept, and between them lies a ramp.
        turns = length * frequency / (2 * math.pi)
        kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        frequency = kept * frequency + (1 - kept) * frequency / factor
    angle = (positions[..., None].astype(jnp.float32) * frequency)[:, :, None]
    sin = jnp.sin(angle)
    return jnp.tile(jnp.cos(angle), 2), jnp.concatenate([-sin, sin], axis=-1)


def rope(x: jax.Array, cos_sin: Angles) -> jax.Array:
    """Rotate x [B, T, N, H], the first half of H against the second."""
    cos, sin = cos_sin
    y = x.astype(jnp.float32)
    return (y * cos + jnp.roll(y, x.shape[-1] // 2, axis=-1) * sin).astype(x.dtype)


def dense(x: jax.Array, w: jax.Array, inputs: int = 1) -> jax.Array:
    """Contract the last `inputs` axes of x [B, T, ...] with the first of w.

    As one two-dimensional product: XLA's CPU backend runs its weight gradient twice as fast as the same einsum's.
    """
    rows, shape_in, shape_out = x.shape[:-inputs], w.shape[:inputs], w.shape[inputs:]
    y = x.reshape(math.prod(rows), math.prod(shape_in)) @ w.reshape(math.prod(shape_in), math.prod(shape_out))
    return y.reshape(rows + shape_out)


def gathered_dense(x: jax.Array, w: jax.Array, axes: Sequence[str | None], inputs: int = 1) -> jax.Array:
    """Return `dense`, with a weight that is divided over `fsdp` put together before the product.

    Not where there are fewer tokens than w has rows, as in a step of decoding: there sums of products are smaller.
    """
    tokens, rows = math.prod(x.shape[:-inputs]), math.prod(w.shape[:inputs])
    return dense(x, gather(w, *axes) if tokens >= rows else w, inputs)


def project(module: nn.Module, name: str, x: jax.Array, w: jax.Array, index: int | None = None) -> jax.Array:
    """Return x w, in x's dtype, plus x a b where the params carry an adapter to the module's matrix `name`.

    Args:
      name: a key of `FANS`, which tells how many of w's axes face x.
      index: which of two matrices that share a tensor w is.
    """
    inputs, axes = len(FANS[name][0]), MATRIX_AXES[name]
    y = gathered_dense(x, w.astype(x.dtype), axes, inputs)
    if module.has_variable("lora", name):
        pair: PyTree = module.get_variable("lora", name)
        a, b = ((pair[k] if index is None else pair[k][index]).astype(x.dtype) for k in "ab")
        narrow = gathered_dense(x, a, (*axes[:inputs], None), inputs)
        y += gathered_dense(narrow, b, (None, *axes[inputs:]))
    return named(y, name)


class RMSNorm(nn.Module):
    """x / rms(x) · (1 + scale) over the last axis, computed in fp32."""

    cfg: TransformerConfig
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = jnp.asarray(self.param("scale", _zeros(self.axis), x.shape[-1:]))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.cfg.norm_eps)
        return (y * (1.0 + scale)).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    cfg: TransformerConfig
    attend: Attend

    @nn.compact
    def __call__(
        self, x: jax.Array, angles: Angles, cache: Cache | None, slot: jax.Array | int
    ) -> tuple[jax.Array, Cache | None]:
        c, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        shape_q, shape_kv = (c.hidden, c.heads, c.head_dim), (2, c.hidden, c.kv_heads, c.head_dim)
        w_q = self.param("query", normal(c, *MATRIX_AXES["query"]), shape_q)
        w_kv = self.param("key_value", normal(c, "two", *MATRIX_AXES["key_value"]), shape_kv)
        w_o = self.param("output", normal(c, *MATRIX_AXES["output"]), (c.heads, c.head_dim, c.hidden))

        q = project(self, "query", x, w_q)
        k, v = (project(self, "key_value", x, w_kv[i], i) for i in (0, 1))
        if c.qkv_bias:
            q, k, v = (y + b.astype(dtype) for y, b in zip((q, k, v), self._biases(), strict=True))
        if c.qk_norm:
            q, k = (RMSNorm(c, "head_dim", name=f"{n}_norm")(y) for n, y in (("query", q), ("key", k)))
        q, k = rope(q, angles), rope(k, angles)
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k, slot, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v, slot, axis=1)
            cache = (k, v)
        out = constrain(self.attend(q, *self._behind_prefix(k, v)), "batch", None, "heads", None)
        return project(self, "output", out, w_o), cache

    def _behind_prefix(self, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return keys and values [B, S, K, H] behind those of a prefix [S', K, H], if the params carry one."""
        if not self.has_variable("prefix", "key"):
            return k, v
        pair: list[PyTree] = [self.get_variable("prefix", name) for name in ("key", "value")]
        before = [jnp.broadcast_to(x.astype(k.dtype), (k.shape[0], *x.shape)) for x in pair]
        k, v = (jnp.concatenate(both, axis=1) for both in zip(before, (k, v), strict=True))
        return k, v

    def _biases(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return what is added to queries [N, H], keys and values [K, H]."""
        c = self.cfg
        query: PyTree = self.param("query_bias", _zeros("heads", "head_dim"), (c.heads, c.head_dim))
        pair: PyTree = self.param("key_value_bias", _zeros("two", "kv_heads", "head_dim"), (2, c.kv_heads, c.head_dim))
        return query, pair[0], pair[1]


class MLP(nn.Module):
    """A gated MLP: down(activation(x gate) · x up)."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.cfg
        w_in = self.param("gate_up", normal(c, "two", *MATRIX_AXES["gate_up"]), (2, c.hidden, c.mlp))
        w_out = self.param("down", normal(c, *MATRIX_AXES["down"]), (c.mlp, c.hidden))
        gate, up = (project(self, "gate_up", x, w_in[i], i) for i in (0, 1))
        wide = constrain(ACTIVATIONS[c.activation](gate) * up, "batch", None, "mlp")
        return project(self, "down", wide, w_out)


class Layer(nn.Module):
    """One pre- and, if so configured, post-normalised block of the residual stream."""

    cfg: TransformerConfig
    attend: Attend

    @nn.compact
    def __call__(
        self, x: jax.Array, angles: Angles, cache: Cache | None = None, slot: jax.Array | int = 0
    ) -> tuple[jax.Array, Cache | None]:
        norm = functools.partial(RMSNorm, self.cfg)
        post = norm if self.cfg.post_norms else _no_norm
        y = norm(name="pre_attention_norm")(x)
        y, cache = Attention(self.cfg, self.attend, name="attention")(y, angles, cache, slot)
        x = x + post(name="post_attention_norm")(y)
        y = MLP(self.cfg, name="mlp")(norm(name="pre_mlp_norm")(x))
        return constrain(x + post(name="post_mlp_norm")(y), "batch", None, None), cache


def _no_norm(name: str) -> Callable[[jax.Array], jax.Array]:
    del name
    return lambda y: y
