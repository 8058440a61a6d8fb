"""How far a document's activations are from Gaussian noise: the squared maximum mean discrepancy, without drawing any.

MMD²(P, Q) = E k(h, h') - 2 E k(h, g) + E k(g, g') (Gretton et al., JMLR 13, 2012, eq. 1), of P, the n activations h of
one document, each with probability 1 / n, and Q = N(0, σ² I) in D dimensions. With k(x, y) = exp(-‖x - y‖² / (2 s²))
the expectations over g are integrals of Gaussians:

  E k(h, g)  = (1 + σ² / s²)^(-D / 2) exp(-‖h‖² / (2 (s² + σ²)))
  E k(g, g') = (1 + 2 σ² / s²)^(-D / 2)

so that the loss is a function of the document alone, the same wherever it lies and whatever else is in the batch.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from distill_jax.losses.cross_entropy import Sum
from distill_jax.losses.preference import Documents

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels whose mean is k, as multiples of a document's own


def squared_mmd_to_noise(states: jax.Array, documents: Documents, scale: float) -> Sum:
    """Sum MMD² between a document's activations and N(0, σ² I) over documents; the weight is their number.

    s² of a document is `WIDTHS` times half of E ‖h - g‖² = mean ‖h‖² + D σ², of which no gradient is taken.

    Args:
      states: [B, T, D], of which those count that `documents.mask` says.
      scale: σ.
    """
    states = states.astype(jnp.float32)
    size, mask = states.shape[-1], documents.mask
    same = (documents.numbers[:, :, None] == documents.numbers[:, None, :]) * mask[:, :, None] * mask[:, None, :]
    share = mask / jnp.maximum(jnp.sum(same, axis=-1), 1.0)  # 1 / n
    pairs = same * share[:, :, None] * share[:, None, :]
    square = jnp.sum(states**2, axis=-1)
    products = jnp.einsum("btd,bsd->bts", states, states, precision="highest")
    distance = jnp.maximum(square[:, :, None] + square[:, None, :] - 2 * products, 0.0)
    mean_square = jnp.einsum("bts,bs->bt", same * share[:, None, :], square, precision="highest")
    width = jax.lax.stop_gradient(mean_square + size * scale**2) / 2

    def with_kernel(multiple: float) -> jax.Array:
        s2 = multiple * width
        among = jnp.sum(pairs * jnp.exp(-distance / (2 * s2[:, :, None])))
        to_noise = (1 + scale**2 / s2) ** (-size / 2) * jnp.exp(-square / (2 * (s2 + scale**2)))
        of_noise = (1 + 2 * scale**2 / s2) ** (-size / 2)
        return among + jnp.sum(share * (of_noise - 2 * to_noise))

    return sum(map(with_kernel, WIDTHS), jnp.zeros(())) / len(WIDTHS), jnp.sum(share)


def mean_over_layers(states: jax.Array, documents: Documents, scale: float) -> Sum:
    """Return the mean of `squared_mmd_to_noise` over layers, of states [L, B, T, D]; one at a time has its pairs."""
    of_layer = jax.checkpoint(functools.partial(squared_mmd_to_noise, documents=documents, scale=scale))
    total, weight = jax.lax.map(of_layer, states)
    return jnp.mean(total), weight[0]
