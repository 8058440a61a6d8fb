"""Apply a loss to a chunk of tokens at a time, so that [B, T, V] logits never exist at once."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill_jax.losses.lm import Sum


def over_tokens(loss: Callable[..., Sum], chunk: int, *arrays: jax.Array) -> Sum:
    """Sum `loss` over chunks of the arrays' flattened [B, T] positions, recomputing each in the backward pass.

    Args:
      loss: takes one slice [chunk, ...] of every array, the last of which is the mask, and returns (sum, weight).
      chunk: tokens at a time; 0 applies the loss to everything at once.
      arrays: each [B, T, ...]; the last is the mask. Positions added to fill the last chunk have mask 0.
    """
    if not chunk:
        return loss(*arrays)
    flat = [a.reshape(-1, *a.shape[2:]) for a in arrays]
    extra = -flat[0].shape[0] % chunk
    slices = [jnp.pad(a, [(0, extra)] + [(0, 0)] * (a.ndim - 1)).reshape(-1, chunk, *a.shape[1:]) for a in flat]

    @jax.checkpoint
    def add(total: Sum, piece: tuple[jax.Array, ...]) -> tuple[Sum, None]:
        part = loss(*piece)
        return (total[0] + part[0], total[1] + part[1]), None

    return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), tuple(slices))[0]
