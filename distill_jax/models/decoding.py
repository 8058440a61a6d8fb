"""Decode from a decoder with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from distill_jax.models import transformer
from distill_jax.models.head import unembed
from distill_jax.models.transformer import CachedInputs, Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.models.transformer_layers import Cache
from distill_jax.sharding.mesh import constrain

ATTENTION = 2**30  # attention logits of a layer that exist at a time: 4 GiB
OF_PARTS = 2**26  # of them where a row is read in parts
NONE = -1  # in place of a token where the logits are not finite

T = TypeVar("T")


class PaddedPrompts(NamedTuple):
    """Prompts: `tokens` int32 [n, T], padded on the left, and the `lengths` [n] of what is no padding."""

    tokens: jax.Array
    lengths: jax.Array


def marked(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return tokens [...] chosen by logits [..., V], NONE where these are not finite: argmax takes the first NaN."""
    return jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), tokens, NONE)


def part_length(cfg: TransformerConfig, rows: int, width: int, keys: int) -> int:
    """Return how many of `width` tokens are read at a time: all, or a power of two where attention grows too large."""
    if rows * cfg.heads * width * keys <= ATTENTION:
        return width
    max_length = max(1, OF_PARTS // (rows * cfg.heads * keys))
    return min(width & -width, 1 << (max_length.bit_length() - 1))


def in_parts(
    cfg: TransformerConfig,
    params: Params,
    inputs: CachedInputs,
    part: int,
    summarise: Callable[[jax.Array, jax.Array], T],
) -> tuple[Cache, T]:
    """Read tokens part by part, each seeing those before it in a cache; memory grows with T and not with its square.

    Args:
      inputs: of T tokens, a multiple of `part`.
      summarise: summarise(hidden [n, part, D], slot) is what is kept of a part that begins at a slot.

    Returns:
      the cache, and what was kept, stacked.
    """

    def one(cache: Cache, slot: jax.Array) -> tuple[Cache, T]:
        tokens, positions = (jax.lax.dynamic_slice_in_dim(x, slot, part, axis=1) for x in inputs[:2])
        hidden, cache = transformer.decode_step(cfg, params, cache, slot, CachedInputs(tokens, positions, inputs.held))
        return cache, summarise(hidden, slot)

    cache = transformer.empty_cache(cfg, *inputs.held.shape)
    return jax.lax.scan(one, cache, jnp.arange(0, inputs.tokens.shape[1], part))


def greedy(cfg: TransformerConfig, params: Params, prompts: PaddedPrompts, new: int) -> jax.Array:
    """Decode `new` tokens after each prompt, each the likeliest or NONE: int32 [n, new]; see `decode`."""

    def likeliest(logits: jax.Array, slot: jax.Array | int) -> jax.Array:
        del slot
        return marked(logits, jnp.argmax(logits, axis=-1))

    return decode(cfg, params, prompts, new, likeliest)


def decode(
    cfg: TransformerConfig,
    params: Params,
    prompts: PaddedPrompts,
    new: int,
    choose: Callable[[jax.Array, jax.Array | int], jax.Array],
) -> jax.Array:
    """Decode `new` tokens after each prompt: int32 [n, new].

    Args:
      choose: choose(logits [n, V], slot) gives the tokens [n] that come after those in this slot.
    """
    n, width = prompts.tokens.shape
    tokens = constrain(prompts.tokens, "batch", None)
    slots = jnp.arange(width + new)
    held = (slots[None, :] >= width - prompts.lengths[:, None]).astype(jnp.int32)
    positions = slots[None, :] - (width - prompts.lengths)[:, None]

    def next_token(hidden: jax.Array, slot: jax.Array | int) -> jax.Array:
        return choose(unembed(cfg, params, hidden), slot).astype(jnp.int32)

    part, inputs = part_length(cfg, n, width, width + new), CachedInputs(tokens, positions[:, :width], held)
    if part == width:
        cache = transformer.empty_cache(cfg, n, width + new)
        hidden, cache = transformer.decode_step(cfg, params, cache, 0, inputs)
        end = hidden[:, -1]
    else:
        cache, ends = in_parts(cfg, params, inputs, part, lambda hidden, _: hidden[:, -1])
        end = ends[-1]

    def one(carry: tuple[Cache, jax.Array], slot: jax.Array) -> tuple[tuple[Cache, jax.Array], jax.Array]:
        cache, token = carry
        place = jax.lax.dynamic_slice_in_dim(positions, slot, 1, axis=1)
        hidden, cache = transformer.decode_step(cfg, params, cache, slot, CachedInputs(token[:, None], place, held))
        return (cache, next_token(hidden[:, 0], slot)), token

    first = next_token(end, width - 1)
    (_, last), decoded = jax.lax.scan(one, (cache, first), slots[width : width + new - 1])
    return jnp.concatenate([decoded.T, last[:, None]], axis=1)
