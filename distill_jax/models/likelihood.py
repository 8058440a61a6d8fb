"""What a decoder says of given continuations."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distill_jax.models import transformer
from distill_jax.models.transformer import Params, TransformerConfig


def continuations(
    cfg: TransformerConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    own: jax.Array,
    last: jax.Array,
    most: int,
) -> jax.Array:
    """Return log p(the row's last `own` tokens, and then the token `last` | the tokens before), fp32 [B, C].

    Args:
      tokens: int32 [B, T], padded on the right; lengths: [B].
      own: [B], how many of a row's tokens belong to what is continued; at most `most`.
      last: [B, C], the tokens of which each may come after the row.
    """
    width = tokens.shape[1]
    segments = (jnp.arange(width) < lengths[:, None]).astype(jnp.int32)
    hidden = transformer.hidden_states(cfg, params, tokens, segments)
    back = jnp.arange(most, -1, -1)  # places of a row, counted from its last token
    places = jnp.clip(lengths[:, None] - 1 - back, 0)
    states = jnp.take_along_axis(hidden, places[..., None], axis=1)
    log_p = jax.nn.log_softmax(transformer.unembed(cfg, transformer.head(params), states), axis=-1)
    following = jnp.take_along_axis(tokens, jnp.minimum(places + 1, width - 1), axis=1)
    inner = jnp.take_along_axis(log_p, following[..., None], axis=-1)[..., 0]
    within = (back > 0) & (back <= own[:, None])
    return jnp.sum(jnp.where(within, inner, 0.0), axis=1)[:, None] + jnp.take_along_axis(log_p[:, -1], last, axis=-1)
