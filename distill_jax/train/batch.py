"""A batch of packed rows, as the feed makes it and losses read it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.losses.cross_entropy import target_mask


class PackedRows(NamedTuple):
    """Rows of documents one after another; [G, B, T] as they are fed, [B, T] as an objective sees them.

    Attributes:
      tokens: int32.
      segments: int32, the document of each token, from 1 up; 0 is padding.
      answer: int32, 1 where a token belongs to an answer, -1 where a labeller marked it.
      states: the teacher's final hidden states [..., T, D] where a cache holds them, else None.
      disturbance: what an adversary adds to the residual stream that enters the first layer [..., T, D], or None.
    """

    tokens: jax.Array
    segments: jax.Array
    answer: jax.Array
    states: jax.Array | None = None
    disturbance: jax.Array | None = None

    def target_mask(self, loss_on: str) -> jax.Array:
        """Return which of the T - 1 predicted tokens count: "all" of a document, of its "answer", or the "unmarked"."""
        marked = (self.answer < 0).astype(jnp.int32) if loss_on == "unmarked" else None
        return target_mask(self.segments, self.answer if loss_on == "answer" else None, marked)
