"""The head of a decoder: from its final hidden states to logits.

Axes: B batch, T length, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from distill_jax.sharding.mesh import constrain, splits
from distill_jax.types import PyTree

HeadWeights = dict[str, jax.Array]  # {"unembedding": [V, D]}, or the tied {"embedding": [V, D]}


class HeadConfig(Protocol):
    """What a head reads of its decoder's config."""

    @property
    def vocab(self) -> int:
        """V."""

    @property
    def final_softcap(self) -> float:
        """The cap of logits; 0 for none."""


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """Squash to (-cap, cap); the identity when cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def head_weights(params: PyTree) -> HeadWeights:
    """Return the part of a model's weights that `unembed` reads: {"unembedding"}, or the tied {"embedding"}."""
    name = "unembedding" if "unembedding" in params else "embedding"
    return {name: params[name]}


def by_vocabulary(params: PyTree) -> HeadWeights:
    """Return the head's weights, laid out as `unembed` wants them: by rows of the vocabulary.

    They are stored by columns, which suits the lookup. A loss over chunks calls this once, before its loop.
    """
    # The first constraint makes the gradient come back in the layout that is stored.
    by_column = {name: constrain(w, "vocab", "embed") for name, w in head_weights(params).items()}
    return {name: constrain(w, "logits", None) for name, w in by_column.items()}


def unembed(cfg: HeadConfig, params: PyTree, hidden: jax.Array) -> jax.Array:
    """Project hidden states [B, ..., D] on the head: fp32 logits [B, ..., V], softcapped.

    On a mesh every chip computes its part of the vocabulary for all rows of its group. Left to itself XLA computes all
    logits on every chip from its part of D and sums them over the chips, hundreds of times the traffic.
    """
    rows, between = ("rows" if splits("logits", cfg.vocab) else "batch"), (None,) * (hidden.ndim - 2)
    (stored,) = head_weights(params).values()
    weights = constrain(stored, "logits", None).astype(hidden.dtype)
    hidden = constrain(hidden, rows, *between, None)
    logits = jnp.einsum("...D,VD->...V", hidden, weights, preferred_element_type=jnp.float32)
    return softcap(constrain(logits, rows, *between, "logits"), cfg.final_softcap)
