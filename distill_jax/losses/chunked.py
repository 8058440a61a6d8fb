"""Apply a function to a chunk of tokens at a time, so that [B, T, V] logits never exist at once."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill_jax.losses.cross_entropy import Sum


def over_tokens(loss: Callable[..., Sum], chunk: int, *arrays: jax.Array) -> Sum:
    """Sum `loss` over chunks of the arrays' T positions, recomputing each in the backward pass.

    A chunk takes the same few positions of all rows, so that every device has its share of each: a chunk of whole rows
    would lie on one device.

    Args:
      loss: takes one slice [B, t, ...] of every array, the last of which is the mask, and returns (sum, weight).
      chunk: tokens B · t at a time, but at least one position; 0 applies the loss to everything at once.
      arrays: each [B, T, ...]; the last is the mask. Positions added to fill the last chunk have mask 0.
    """
    if not chunk:
        return loss(*arrays)

    @jax.checkpoint
    def add(total: Sum, slices: tuple[jax.Array, ...]) -> tuple[Sum, None]:
        of_chunk = loss(*slices)
        return (total[0] + of_chunk[0], total[1] + of_chunk[1]), None

    return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), _slices(chunk, *arrays))[0]


def map_tokens(f: Callable[..., jax.Array], chunk: int, *arrays: jax.Array) -> jax.Array:
    """Return f of every position [B, T], computed in the chunks of `over_tokens`.

    Args:
      f: takes one slice [B, t, ...] of every array and returns a number a position, [B, t].
    """
    if not chunk:
        return f(*arrays)
    rows, length = arrays[0].shape[:2]
    out = jax.lax.map(jax.checkpoint(lambda slices: f(*slices)), _slices(chunk, *arrays))
    return jnp.moveaxis(out, 0, 1).reshape(rows, -1)[:, :length]


def _slices(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Cut [B, T, ...] into [T / t, B, t, ...], filled up with zeros."""
    rows, length = arrays[0].shape[:2]
    width = min(max(chunk // rows, 1), length)
    extra = -length % width

    def cut(a: jax.Array) -> jax.Array:
        padded = jnp.pad(a, [(0, 0), (0, extra)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(padded.reshape(rows, -1, width, *a.shape[2:]), 1, 0)

    return tuple(cut(a) for a in arrays)
