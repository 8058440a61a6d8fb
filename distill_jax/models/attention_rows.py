"""What every implementation of attention takes: packed rows, and how their logits come about."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

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
