"""The keys of a config.json that describe rotary embeddings <-> fields of TransformerConfig.

Newer releases of transformers keep them in `rope_parameters`, in Gemma 3 one for each kind of layer; older ones in
`rope_theta`, `rope_scaling` and, in Gemma 3, `rope_local_base_freq`. Where a file has both, which one counts depends on
the release: they have to say the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypedDict

from distill_jax.config import ConfigError, check
from distill_jax.interop.values import POSITIVE, brief, check_values
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.types import JsonObject

LOCAL, GLOBAL = "sliding_attention", "full_attention"
# Kinds of rotary embedding, and the keys that make up TransformerConfig.rope_scaling, whose length tells the kind.
ROPE_SCALINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


class RotaryFields(TypedDict, total=False):
    """Fields of TransformerConfig; no `local_rope_theta` where local layers have no base of their own."""

    rope_theta: float
    rope_scaling: tuple[float, ...]
    local_rope_theta: float


@dataclasses.dataclass(frozen=True)
class Rotary:
    """What one object of keys says: a base, if it names one, and how positions are scaled."""

    theta: float | None
    scaling: tuple[float, ...]


def read(config: JsonObject, theta: float, local_theta: float | None, where: str) -> RotaryFields:
    """Return the fields that a config.json gives.

    Args:
      theta, local_theta: where nothing names a base; no local_theta: local layers have none of their own.
      where: the file, for errors.

    Raises:
      ConfigError: for a kind that this decoder does not have, and keys that contradict each other.
    """
    newer, older = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    local: JsonObject = {}
    if local_theta is not None and newer:
        apart = f"{where}: rope_parameters: give {GLOBAL} and {LOCAL} an object each"
        check(newer.keys() <= {GLOBAL, LOCAL}, apart)
        newer, local = (newer.get(kind) or {} for kind in (GLOBAL, LOCAL))
        check(isinstance(newer, Mapping) and isinstance(local, Mapping), apart)
    keys = ("rope_parameters", "rope_scaling", f"rope_parameters of {LOCAL}")
    new, old, rest = (_parse(part, f"{where}: {key}") for part, key in zip((newer, older, local), keys, strict=True))
    original = config.get("original_max_position_embeddings")
    if newer and older:
        _agree(where, "rope_parameters", new.scaling, "rope_scaling", old.scaling)
    if original is not None and len((old if older else new).scaling) == 4:
        _agree(where, "its", (old if older else new).scaling[3], "original_max_position_embeddings", float(original))
    fields: RotaryFields = {
        "rope_theta": _one(where, theta, new.theta, old.theta, config.get("rope_theta")),
        "rope_scaling": old.scaling if older else new.scaling,
    }
    if local_theta is not None:
        check(not rest.scaling, f"{where}: rope_type of {LOCAL}: only 'default' is supported")
        fields["local_rope_theta"] = _one(where, local_theta, rest.theta, None, config.get("rope_local_base_freq"))
    return fields


def _parse(given: JsonObject, where: str) -> Rotary:
    scaling = dict(given)
    older = scaling.pop("type", "default")
    kind, theta = scaling.pop("rope_type", older), scaling.pop("rope_theta", None)
    keys = ROPE_SCALINGS.get(kind) if isinstance(kind, str) else None
    if keys is None:
        raise ConfigError(f"{where}: rope_type = {brief(kind)}: only {', '.join(ROPE_SCALINGS)} are supported")
    takes = f"takes {', '.join(keys) or 'no settings'}, not {', '.join(scaling) or 'none'}"
    check(scaling.keys() == set(keys), f"{where}: rotary embedding of type {kind!r} {takes}")
    check_values(given, f"{where}: rope_type {kind!r}", dict.fromkeys(keys, POSITIVE), nullable=False)
    check_values({"rope_theta": theta}, where, {"rope_theta": POSITIVE}, nullable=True)
    return Rotary(None if theta is None else float(theta), tuple(float(scaling[key]) for key in keys))


def _one(where: str, default: float, new: float | None, old: float | None, top: float | None) -> float:
    """Return the base that is named, by one or by all alike."""
    named = [float(theta) for theta in (new, old, top) if theta is not None]
    _agree(where, "one rope_theta", min(named, default=0), "another", max(named, default=0))
    return named[0] if named else float(default)


def _agree(where: str, key: str, value: object, other: str, second: object) -> None:
    mend = "which one counts depends on the release of transformers; leave one out"
    check(value == second, f"{where}: rotary embedding: {key} says {value}, {other} {second}: {mend}")


def write(cfg: TransformerConfig) -> JsonObject:
    """Return the older keys, which newer releases read as well."""
    kind = next(kind for kind, keys in ROPE_SCALINGS.items() if len(keys) == len(cfg.rope_scaling))
    scaling: dict[str, float] = dict(zip(ROPE_SCALINGS[kind], cfg.rope_scaling, strict=True))
    if kind == "llama3":
        scaling["original_max_position_embeddings"] = int(cfg.rope_scaling[3])
    return {"rope_theta": cfg.rope_theta, "rope_scaling": {"rope_type": kind, **scaling} if scaling else None}
