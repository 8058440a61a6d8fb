"""The keys of a config.json that say which layers see a window <-> fields of TransformerConfig."""

from __future__ import annotations

from collections.abc import Sequence

from distill_jax.config import ConfigError, check
from distill_jax.interop.family_table import Family
from distill_jax.interop.rotary import GLOBAL, LOCAL
from distill_jax.interop.values import brief
from distill_jax.models.transformer_config import TransformerConfig, local_layers
from distill_jax.types import JsonObject

# transformers builds the mask of a window in Gemma though no layer has one: as wide as no context is.
UNREACHED = 2**20


def write(cfg: TransformerConfig, family: Family) -> JsonObject:
    """Return the keys of config.json that say which layers see how wide a window."""
    window, periodic = cfg.sliding_window, cfg.sliding_window > 0 and cfg.global_every > 0
    kinds = {"layer_types": [LOCAL if local else GLOBAL for local in local_layers(cfg)]}
    if family.period:
        shown = cfg.global_every if periodic else cfg.layers + 1 if window else 1
        return {**kinds, "sliding_window": window or UNREACHED, "sliding_window_pattern": shown}
    first = cfg.global_first if window and not periodic else cfg.layers
    return {**kinds, "use_sliding_window": window > 0, "max_window_layers": first}


def read(config: JsonObject, family: Family, layers: int, window: int | None, where: str) -> dict[str, int]:
    """Return which layers see how wide a window, as fields: config.json lists every layer's kind, or has a rule.

    Args:
      layers, window: how many there are, and what config.json says of the window.
      where: the file, for errors.

    Raises:
      ConfigError: for a pattern that this decoder does not have, and a window of nothing.
    """
    if family.period:
        named = config.get("sliding_window_pattern") if family.names_period else None
        rule = layer_types(layers, named or family.period)
    else:
        used = window is not None and (family.all_alike or bool(config.get("use_sliding_window")))
        window = window if used else None
        first = 0 if family.all_alike else config.get("max_window_layers", 28)
        rule = layer_types(layers, 0, first) if used else [GLOBAL] * layers
    kinds = config.get("layer_types") or rule
    ignored = "this architecture has one kind of layer; leave it out"
    check(not family.all_alike or kinds == rule, f"{where}: layer_types = {brief(kinds)}: {ignored}")
    if set(kinds) == {GLOBAL} and len(kinds) == layers:
        return {"sliding_window": 0}
    also = "" if family.period or family.all_alike else " (and use_sliding_window)"
    mend = f"a layer of kind sliding_attention sees at least 1 token; set it{also}, or layer_types to full_attention"
    check(bool(window), f"{where}: sliding_window = {window}: {mend}")
    return {"sliding_window": int(window or 0), **_pattern(kinds, layers, family.period, where)}


def _pattern(kinds: Sequence[str], layers: int, period: int, where: str) -> dict[str, int]:
    """Return the fields that give this pattern of layers."""
    every = kinds.index(GLOBAL) + 1 if GLOBAL in kinds else period
    first = kinds.index(LOCAL) if LOCAL in kinds else layers
    for one in ({"global_every": every, "global_first": 0}, {"global_every": 0, "global_first": first}):
        if list(kinds) == layer_types(layers, one["global_every"], one["global_first"]):
            return one
    mend = "one global layer in so many, the last of each group, or global ones before local ones, is supported"
    raise ConfigError(f"{where}: layer_types = {brief(kinds)}: {mend}, a kind for each of {layers} layers")


def layer_types(layers: int, every: int, first: int = 0) -> list[str]:
    """Return every layer's kind: the first are global, and the last of every so many (0: no other)."""
    return [GLOBAL if i < first or (every and not (i + 1) % every) else LOCAL for i in range(layers)]
