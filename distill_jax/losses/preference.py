"""Unlearning losses of documents: negative log-likelihoods of tokens [B, T] in, (sum over documents, their number) out.

A row holds documents one after another, so a document's likelihood is a sum over its tokens wherever they lie. What a
document has no counted token of does not count.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.losses.cross_entropy import Sum


class Documents(NamedTuple):
    """Which document each predicted token is of, int32 [B, T] from 1 up, and which of them count, fp32 [B, T]."""

    numbers: jax.Array
    mask: jax.Array

    def sums(self, values: jax.Array) -> jax.Array:
        """Return the sum of values [B, T] over the counted tokens of every document, [B, T + 2] by its number."""

        def of_row(values: jax.Array, numbers: jax.Array) -> jax.Array:
            return jnp.zeros(values.shape[0] + 2).at[numbers].add(values)

        return jax.vmap(of_row)(values * self.mask, self.numbers)

    def lengths(self) -> jax.Array:
        """Return the number of counted tokens of every document, [B, T + 2]."""
        return self.sums(jnp.ones_like(self.mask))


def npo(nll: jax.Array, start_nll: jax.Array, documents: Documents, beta: float) -> Sum:
    """Sum -(2 / β) log σ(β (NLL - NLL_start)) over documents, NLL being a document's (NPO, arXiv:2404.05868, eq. 3)."""
    return _preferred(documents.sums(nll - start_nll), documents, beta)


def simnpo(nll: jax.Array, documents: Documents, beta: float, margin: float) -> Sum:
    """Sum -(2 / β) log σ(β NLL / length - δ) over documents (SimNPO, arXiv:2410.07163, eq. 4)."""
    length = jnp.maximum(documents.lengths(), 1.0)
    return _preferred(documents.sums(nll) / length - margin / beta, documents, beta)


def dpo(won: jax.Array, lost: jax.Array, documents: Documents, beta: float) -> Sum:
    """Sum -(2 / β) log σ(β (won - lost)) over documents, as NPO's paper writes DPO (arXiv:2305.18290, eq. 7).

    Args:
      won, lost: [B, T], of the preferred and of the other answer: log p - log p_start of every token.
    """
    return _preferred(documents.sums(won - lost), documents, beta)


def _preferred(advantage: jax.Array, documents: Documents, beta: float) -> Sum:
    present = (documents.lengths() > 0).astype(jnp.float32)
    return jnp.sum(2 / beta * jax.nn.softplus(-beta * advantage) * present), jnp.sum(present)
