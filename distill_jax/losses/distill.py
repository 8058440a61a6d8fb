"""Distillation losses over the full vocabulary: student and teacher logits in, (sum, weight) out."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distill_jax.losses.lm import Sum


def forward_kl(student: jax.Array, teacher: jax.Array, mask: jax.Array, temperature: float = 1.0) -> Sum:
    """Sum T² · KL(softmax(teacher / T) ‖ softmax(student / T)) over the masked positions.

    The paper's distillation loss ("Distillation Robustifies Unlearning", section 3, with T = 1); T² is
    Hinton's, and keeps the gradient's size when T changes.

    Args:
      student, teacher: logits [..., V].
      mask: fp32 [...], 1 where a position counts.
    """
    log_p = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    log_q = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
    kl = jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)
    return temperature**2 * jnp.sum(kl * mask), jnp.sum(mask)
