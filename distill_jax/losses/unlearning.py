"""Unlearning losses on the forget set: logits or hidden states in, (sum, weight) out."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distill_jax.losses.cross_entropy import Sum, cross_entropy, token_nll


def max_entropy(logits: jax.Array, mask: jax.Array) -> Sum:
    """Sum KL(uniform ‖ p) = -log V - mean_v log p_v over the masked positions (MaxEnt)."""
    logits = logits.astype(jnp.float32)
    kl = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1) - jnp.log(logits.shape[-1])
    return jnp.sum(kl * mask), jnp.sum(mask)


def gradient_ascent(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> Sum:
    """Sum +log p(target): cross-entropy with its sign turned (the forget half of GradDiff)."""
    total, weight = cross_entropy(logits, targets, mask)
    return -total, weight


def weighted_ascent(logits: jax.Array, targets: jax.Array, mask: jax.Array, power: float) -> Sum:
    """Sum p(target)^α log p(target), the weight p^α without a gradient (WGA, arXiv:2502.19301)."""
    nll = token_nll(logits, targets)
    return -jnp.sum(jax.lax.stop_gradient(jnp.exp(-power * nll)) * nll * mask), jnp.sum(mask)


def lowered_cross_entropy(logits: jax.Array, start: jax.Array, targets: jax.Array, lowering: float) -> jax.Array:
    """Return the cross-entropy [...] from softmax(t - b · onehot(target)) of another model's logits t (UNDIAL).

    Args:
      logits, start: [..., V]; targets: [...]; lowering: b.
    """
    logits, start = logits.astype(jnp.float32), jax.lax.stop_gradient(start.astype(jnp.float32))
    hit = targets[..., None] == jnp.arange(logits.shape[-1])
    q = jax.nn.softmax(start - lowering * hit)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(q * logits, axis=-1)


def squared_distance(hidden: jax.Array, target: jax.Array, mask: jax.Array) -> Sum:
    """Sum mean_d (hidden - target)² over the masked positions (both halves of RMU).

    Args:
      hidden: [B, T, D]; target: broadcasts against it (RMU's c·u [D], or the frozen model's [B, T, D]).
      mask: [B, T].
    """
    error = jnp.mean((hidden.astype(jnp.float32) - target.astype(jnp.float32)) ** 2, axis=-1)
    return jnp.sum(error * mask), jnp.sum(mask)
