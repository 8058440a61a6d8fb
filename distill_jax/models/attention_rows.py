"""What every implementation of attention takes: packed rows, and how their logits come about."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.types import PyTree

# A large finite negative: -inf would make a row that may attend to nothing (padding) NaN.
MASKED = -1e30
NAME = "attention"  # of what comes out, and of the log-sum-exp, for a policy that keeps them for the backward pass


@dataclasses.dataclass(frozen=True)
class Logits:
    """How logits come about, and which keys they are for.

    Attributes:
      scale: what the products of queries and keys are multiplied with.
      softcap: c in c·tanh(x / c), after the scale; 0 for none.
      window: W, the keys that a query sees at most; 0 for all that are not after it.
    """

    scale: float
    softcap: float = 0.0
    window: int = 0


class Rows(NamedTuple):
    """Packed rows: q [B, T, N, H]; k, v [B, T, K, H]; segments int32 [B, T], 0 for padding."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    segments: jax.Array


def lengthened(rows: Rows, length: int) -> Rows:
    """Pad rows on the right with tokens of segment 0."""
    more = (0, length - rows.q.shape[1])
    q, k, v = (jnp.pad(x, ((0, 0), more, (0, 0), (0, 0))) for x in rows[:3])
    return Rows(q, k, v, jnp.pad(rows.segments, ((0, 0), more)))


def in_one_batch(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Make an axis that f is mapped over, as a population is, a part of the first axis of its arrays, B.

    JAX's own rules would make a scatter of a loop that updates slices, and take no mask [B, 1, T, T] for cuDNN.
    """
    mapped = jax.custom_batching.custom_vmap(f)

    @mapped.def_vmap
    def fold(size: int, batched: Sequence[PyTree], *inputs: PyTree) -> tuple[PyTree, PyTree]:
        def folded(x: jax.Array, has_axis: bool) -> jax.Array:
            whole = x if has_axis else jnp.broadcast_to(x, (size, *x.shape))
            return whole.reshape(-1, *whole.shape[2:])

        out = in_one_batch(f)(*jax.tree.map(folded, inputs, tuple(batched)))
        return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out), jax.tree.map(lambda _: True, out)

    return mapped
