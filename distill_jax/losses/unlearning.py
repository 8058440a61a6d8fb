"""Unlearning losses on the forget set: logits or hidden states in, (sum, weight) out."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distill_jax.losses.cross_entropy import Sum, cross_entropy


def max_entropy(logits: jax.Array, mask: jax.Array) -> Sum:
    """Sum KL(uniform ‖ p) = -log V - mean_v log p_v over the masked positions (MaxEnt)."""
    logits = logits.astype(jnp.float32)
    kl = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1) - jnp.log(logits.shape[-1])
    return jnp.sum(kl * mask), jnp.sum(mask)


def gradient_ascent(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> Sum:
    """Sum +log p(target): cross-entropy with its sign turned (the forget half of GradDiff)."""
    total, weight = cross_entropy(logits, targets, mask)
    return -total, weight


def squared_distance(hidden: jax.Array, target: jax.Array, mask: jax.Array) -> Sum:
    """Sum mean_d (hidden - target)² over the masked positions (both halves of RMU).

    Args:
      hidden: [B, T, D]; target: broadcasts against it (RMU's c·u [D], or the frozen model's [B, T, D]).
      mask: [B, T].
    """
    error = jnp.mean((hidden.astype(jnp.float32) - target.astype(jnp.float32)) ** 2, axis=-1)
    return jnp.sum(error * mask), jnp.sum(mask)
