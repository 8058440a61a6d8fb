"""Log-likelihoods of given tokens and continuations."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.models import transformer
from distill_jax.models.head import HeadWeights, by_vocabulary, unembed
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig

LOGITS = 2**26  # that exist at a time: 256 MiB


def token_log_likelihoods(
    cfg: TransformerConfig, head: HeadWeights, hidden: jax.Array, targets: jax.Array, chunk: int = 0
) -> jax.Array:
    """Return log p(target), fp32 [T, B], of targets int32 [B, T] that hidden states [B, T, D] are followed by.

    Args:
      head: as `by_vocabulary` lays it out.
      chunk: tokens B · t whose logits exist at a time; 0 for `LOGITS`.
    """

    def one(position: tuple[jax.Array, jax.Array]) -> jax.Array:  # hidden [B, D] and its targets [B]
        state, target = position
        logits = unembed(cfg, head, state)
        return jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)

    rows, width = targets.shape
    at_once = max(1, (chunk or LOGITS // cfg.vocab) // rows)
    return jax.lax.map(one, (jnp.moveaxis(hidden, 1, 0), targets.T), batch_size=min(at_once, width))


class Continuations(NamedTuple):
    """Rows of tokens, each with the continuations whose likelihood is asked.

    Attributes:
      tokens: int32 [B, T], padded on the right; lengths: [B].
      own: [B], how many of a row's last tokens belong to the continuation.
      last: [B, C], the tokens of which each may come after the row.
    """

    tokens: jax.Array
    lengths: jax.Array
    own: jax.Array
    last: jax.Array


def continuations(cfg: TransformerConfig, params: Params, rows: Continuations, max_own: int) -> jax.Array:
    """Return log p(the row's last `own` tokens, and then the token `last` | the tokens before), fp32 [B, C].

    Args:
      max_own: the largest of `own`, or more.
    """
    tokens, lengths, own, last = rows
    width = tokens.shape[1]
    segments = (jnp.arange(width) < lengths[:, None]).astype(jnp.int32)
    hidden = transformer.hidden_states(cfg, params, tokens, segments)
    back = jnp.arange(max_own, -1, -1)  # places of a row, counted from its last token
    places = jnp.clip(lengths[:, None] - 1 - back, 0)
    states = jnp.take_along_axis(hidden, places[..., None], axis=1)
    log_p = jax.nn.log_softmax(unembed(cfg, by_vocabulary(params), states), axis=-1)
    following = jnp.take_along_axis(tokens, jnp.minimum(places + 1, width - 1), axis=1)
    inner = jnp.take_along_axis(log_p, following[..., None], axis=-1)[..., 0]
    within = (back > 0) & (back <= own[:, None])
    return jnp.sum(jnp.where(within, inner, 0.0), axis=1)[:, None] + jnp.take_along_axis(log_p[:, -1], last, axis=-1)
