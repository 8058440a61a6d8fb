"""What is computed of one block of the vocabulary for some tokens; shared by plain JAX and by the TPU's kernels.

Blocks of logits are [v, n]: v tokens of the vocabulary by n positions. What belongs to a position is [n] or [1, n], and
broadcasts against them.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from distill_jax.losses.distillation import CROSS_ENTROPIES, LOG_ZERO
from distill_jax.losses.head_loss import Comparison


@dataclasses.dataclass(frozen=True)
class BlockLoss:
    """A comparison of two heads' distributions, block by block.

    Attributes:
      cap: c in c·tanh(x / c) of both heads' logits; 0 for none.
      vocab: V; size: rows of it that a device has, the rest of its blocks being padding; width: of the student's hidden
        states, D. All are filled in by `blockwise`.
    """

    comparison: Comparison
    cap: float
    vocab: int = 0
    size: int = 0
    width: int = 0

    @property
    def gradient_sum(self) -> float | None:
        """Σ_v of the derivatives by log p_v, where it is known beforehand."""
        return -1.0 if self.comparison.divergence.name in CROSS_ENTROPIES else None

    def raw_logits(self, rows: jax.Array, hidden: jax.Array) -> jax.Array:
        """Return fp32 logits [v, n] of rows [v, D] and hidden states [n, D], before the cap."""
        return jax.lax.dot_general(rows, hidden, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)

    def scaled(self, raw: jax.Array) -> jax.Array:
        """Return logits with the cap and the temperature."""
        capped = self.cap * jnp.tanh(raw / self.cap) if self.cap else raw
        return capped / self.comparison.divergence.temperature

    def log_probabilities(self, scaled: jax.Array, lse: jax.Array | float, first: jax.Array | int) -> jax.Array:
        """Return log p of a block that begins at row `first`; `LOG_ZERO` in padding."""
        return jnp.where(self._rows(scaled, first) < self.size, scaled - lse, LOG_ZERO)

    def of_token(self, like: jax.Array, token: jax.Array, first: jax.Array | int) -> jax.Array:
        """Return log q that has all its mass on the device's row `token`, which may be on another device."""
        return jnp.where(self._rows(like, first) == token, 0.0, LOG_ZERO)

    def of_uniform(self, like: jax.Array, first: jax.Array | int) -> jax.Array:
        """Return log q = -log V."""
        return jnp.where(self._rows(like, first) < self.size, -math.log(self.vocab), LOG_ZERO)

    def _rows(self, like: jax.Array, first: jax.Array | int) -> jax.Array:
        return first + jax.lax.broadcasted_iota(jnp.int32, like.shape, 0)

    def value(self, log_q: jax.Array, log_p: jax.Array) -> jax.Array:
        """Return each position's divergence in this block, [n]."""
        return jax.vmap(self.comparison.divergence.of_log_probabilities, in_axes=1)(log_q, log_p)

    def value_and_sum(self, log_q: jax.Array, log_p: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return each position's divergence and the sum of its derivatives by log p, both [n]."""
        value, by_log_p = self._derivatives(log_q, log_p)
        return value, jnp.sum(by_log_p, axis=0)

    def value_and_gradient(
        self, log_q: jax.Array, log_p: jax.Array, raw: jax.Array, gradient_sum: jax.Array | float
    ) -> tuple[jax.Array, jax.Array]:
        """Return each position's divergence [n] and its derivatives by the raw logits [v, n].

        With G = Σ_v ∂/∂log p_v over the whole vocabulary, ∂/∂z_v = ∂/∂log p_v - p_v G.
        """
        value, by_log_p = self._derivatives(log_q, log_p)
        _, through_cap = jax.vjp(self.scaled, raw)
        (by_raw,) = through_cap(by_log_p - jnp.exp(log_p) * gradient_sum)
        return value, by_raw

    def _derivatives(self, log_q: jax.Array, log_p: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, pull = jax.vjp(lambda x: self.value(log_q, x), log_p)
        return value, pull(jnp.ones_like(value))[0]


def add_log_sum_exp(carry: tuple[jax.Array, jax.Array], scaled: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Add a block [v, n] to the running maximum and the sum of exponentials relative to it."""
    highest, total = carry
    new = jnp.maximum(highest, jnp.max(scaled, axis=0, keepdims=highest.ndim == 2))
    here = jnp.sum(jnp.exp(scaled - new), axis=0, keepdims=highest.ndim == 2)
    return new, total * jnp.exp(highest - new) + here
