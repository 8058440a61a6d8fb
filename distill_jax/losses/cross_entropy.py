"""Language-model losses: logits in, (sum, weight) out; the one division is the train step's."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Sum = tuple[jax.Array, jax.Array]


def target_mask(segments: jax.Array, answer: jax.Array | None = None, marked: jax.Array | None = None) -> jax.Array:
    """Return which next-token targets count, fp32 [B, T-1].

    A target counts when it continues the segment of the token before it; so no document predicts its
    neighbour in a packed row, and padding (segment 0) never counts. With `answer` only answer tokens do, and
    with `marked` none of those, both int32 [B, T].
    """
    valid = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    if answer is not None:
        valid &= answer[:, 1:] > 0
    if marked is not None:
        valid &= marked[:, 1:] == 0
    return valid.astype(jnp.float32)


def token_nll(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return -log p(target), fp32 [...], from logits [..., V].

    The target's logit is picked by comparison, not by a gather, whose gradient is a scatter.
    """
    logits = logits.astype(jnp.float32)
    hit = targets[..., None] == jnp.arange(logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)


def cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> Sum:
    """Sum -log p(target) over the masked positions; the weight is their number."""
    return jnp.sum(token_nll(logits, targets) * mask), jnp.sum(mask)
