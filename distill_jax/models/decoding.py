"""Decode from a decoder with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.models import transformer
from distill_jax.models.transformer import TransformerConfig
from distill_jax.sharding.mesh import constrain


def greedy(cfg: TransformerConfig, params: Any, prompts: jax.Array, lengths: jax.Array, new: int) -> jax.Array:
    """Decode `new` tokens after each prompt, each the likeliest: int32 [n, new]; see `decode`."""
    return decode(cfg, params, prompts, lengths, new, lambda logits, slot: jnp.argmax(logits, axis=-1))


def decode(
    cfg: TransformerConfig,
    params: Any,
    prompts: jax.Array,
    lengths: jax.Array,
    new: int,
    choose: Callable[[jax.Array, jax.Array | int], jax.Array],
) -> jax.Array:
    """Decode `new` tokens after each prompt: int32 [n, new].

    Args:
      prompts: [n, T], padded on the left; lengths: [n].
      choose: choose(logits [n, V], slot) gives the tokens [n] that come after those in this slot.
    """
    n, width = prompts.shape
    prompts = constrain(prompts, "batch", None)
    slots = jnp.arange(width + new)
    held = (slots[None, :] >= width - lengths[:, None]).astype(jnp.int32)
    positions = slots[None, :] - (width - lengths)[:, None]

    def next_token(hidden: jax.Array, slot: jax.Array | int) -> jax.Array:
        return choose(transformer.unembed(cfg, params, hidden), slot).astype(jnp.int32)

    cache = transformer.empty_cache(cfg, n, width + new)
    hidden, cache = transformer.decode_step(cfg, params, cache, 0, prompts, positions[:, :width], held)

    def one(carry, slot):
        cache, token = carry
        place = jax.lax.dynamic_slice_in_dim(positions, slot, 1, axis=1)
        hidden, cache = transformer.decode_step(cfg, params, cache, slot, token[:, None], place, held)
        return (cache, next_token(hidden[:, 0], slot)), token

    first = next_token(hidden[:, -1], width - 1)
    (_, last), tokens = jax.lax.scan(one, (cache, first), slots[width : width + new - 1])
    return jnp.concatenate([tokens.T, last[:, None]], axis=1)
