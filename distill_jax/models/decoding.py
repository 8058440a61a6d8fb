"""Decode from a decoder with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.models import transformer
from distill_jax.models.transformer import TransformerConfig
from distill_jax.sharding.mesh import constrain

ATTENTION = 2**30  # attention logits of a layer that exist at a time: 4 GiB
OF_PARTS = 2**26  # of them where a row is read in parts
NONE = -1  # in place of a token where the logits are not finite


def marked(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return tokens [...] chosen by logits [..., V], NONE where these are not finite: argmax takes the first NaN."""
    return jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), tokens, NONE)


def part_length(cfg: TransformerConfig, rows: int, width: int, keys: int) -> int:
    """Return how many of `width` tokens are read at a time: all, or a power of two where attention grows too large."""
    if rows * cfg.heads * width * keys <= ATTENTION:
        return width
    most = max(1, OF_PARTS // (rows * cfg.heads * keys))
    return min(width & -width, 1 << (most.bit_length() - 1))


def in_parts(
    cfg: TransformerConfig,
    params: Any,
    tokens: jax.Array,
    positions: jax.Array,
    held: jax.Array,
    part: int,
    look: Callable[[jax.Array, jax.Array], Any],
) -> tuple[transformer.Cache, Any]:
    """Read tokens part by part, each seeing those before it in a cache; memory grows with T and not with its square.

    Args:
      tokens, positions: [n, T], T a multiple of `part`.
      held: [n, S], 1 for each of the cache's slots that holds a token and 0 for padding.
      look: look(hidden [n, part, D], slot) is what is kept of a part that begins at a slot.

    Returns:
      the cache, and what was kept, stacked.
    """

    def one(cache: transformer.Cache, slot: jax.Array) -> tuple[transformer.Cache, Any]:
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, slot, part, axis=1)  # noqa: E731
        hidden, cache = transformer.decode_step(cfg, params, cache, slot, cut(tokens), cut(positions), held)
        return cache, look(hidden, slot)

    cache = transformer.empty_cache(cfg, *held.shape)
    return jax.lax.scan(one, cache, jnp.arange(0, tokens.shape[1], part))


def greedy(cfg: TransformerConfig, params: Any, prompts: jax.Array, lengths: jax.Array, new: int) -> jax.Array:
    """Decode `new` tokens after each prompt, each the likeliest or NONE: int32 [n, new]; see `decode`."""
    choose = lambda logits, slot: marked(logits, jnp.argmax(logits, axis=-1))  # noqa: E731
    return decode(cfg, params, prompts, lengths, new, choose)


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

    part = part_length(cfg, n, width, width + new)
    if part == width:
        cache = transformer.empty_cache(cfg, n, width + new)
        hidden, cache = transformer.decode_step(cfg, params, cache, 0, prompts, positions[:, :width], held)
        end = hidden[:, -1]
    else:
        cache, ends = in_parts(cfg, params, prompts, positions[:, :width], held, part, lambda hidden, _: hidden[:, -1])
        end = ends[-1]

    def one(carry, slot):
        cache, token = carry
        place = jax.lax.dynamic_slice_in_dim(positions, slot, 1, axis=1)
        hidden, cache = transformer.decode_step(cfg, params, cache, slot, token[:, None], place, held)
        return (cache, next_token(hidden[:, 0], slot)), token

    first = next_token(end, width - 1)
    (_, last), tokens = jax.lax.scan(one, (cache, first), slots[width : width + new - 1])
    return jnp.concatenate([tokens.T, last[:, None]], axis=1)
