"""Apply a loss to a chunk of tokens at a time, so that [B, T, V] logits never exist at once."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill_jax.losses.lm import Sum
from distill_jax.sharding.mesh import ways


def over_tokens(loss: Callable[..., Sum], chunk: int, *arrays: jax.Array) -> Sum:
    """Sum `loss` over chunks of the arrays' [B, T] positions, recomputing each in the backward pass.

    A chunk is a few positions of every row, so that rows stay on their devices.

    Args:
      loss: takes one slice [B, t, ...] of every array, the last of which is the mask, and returns (sum, weight).
      chunk: tokens at a time on each device, but at least one of every row; 0 applies the loss to everything at once.
      arrays: each [B, T, ...]; the last is the mask. Positions added to fill the last chunk have mask 0.
    """
    if not chunk:
        return loss(*arrays)
    rows, length = arrays[0].shape[:2]
    width = min(max(chunk * ways("batch", rows) // rows, 1), length)
    pad = lambda x: jnp.pad(x, [(0, 0), (0, -length % width)] + [(0, 0)] * (x.ndim - 2))  # noqa: E731
    cut = lambda x: jnp.moveaxis(x.reshape(rows, -1, width, *x.shape[2:]), 1, 0)  # noqa: E731

    @jax.checkpoint
    def add(total: Sum, piece: tuple[jax.Array, ...]) -> tuple[Sum, None]:
        part = loss(*piece)
        return (total[0] + part[0], total[1] + part[1]), None

    return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), tuple(cut(pad(x)) for x in arrays))[0]
