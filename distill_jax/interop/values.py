"""What the values of a config.json may be: types and bounds by key, so that nothing is computed from a wrong one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TypeGuard

from distill_jax.config import check


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of value: what it is called, and whether a value is of it."""

    name: str
    holds: Callable[[object], bool]


def _integer(value: object) -> TypeGuard[int]:
    return type(value) is int and abs(value) < 2**31


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30 and math.isfinite(value)


def _ids(value: object) -> bool:
    return _integer(value) or (isinstance(value, list) and all(map(_integer, value)))


def _count(value: object) -> bool:
    return _integer(value) and value >= 1


def _from_zero(value: object) -> bool:
    return _integer(value) and value >= 0


def _positive(value: object) -> bool:
    return _number(value) and value > 0


def _small(value: object) -> bool:
    return _number(value) and 0 <= value <= 1000


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(x, str) for x in value)


def _object(value: object) -> bool:
    return isinstance(value, Mapping)


COUNT = Kind("a whole number of at least 1, below 2³¹", _count)
FROM_ZERO = Kind("a whole number of at least 0, below 2³¹", _from_zero)
NUMBER = Kind("a finite number", _number)
POSITIVE = Kind("a finite number above 0", _positive)
SMALL = Kind("a number from 0 to 1000", _small)
FLAG = Kind("true or false", _flag)
ID = Kind("a token's number", _integer)
IDS = Kind("a token's number or a list of them", _ids)
NAMES = Kind("a list of names", _names)
OBJECT = Kind("an object", _object)

VALUES = {
    "vocab_size": COUNT,
    "num_hidden_layers": COUNT,
    "hidden_size": COUNT,
    "intermediate_size": COUNT,
    "num_attention_heads": COUNT,
    "rms_norm_eps": SMALL,
    "initializer_range": SMALL,
    "query_pre_attn_scalar": POSITIVE,
    "rope_theta": POSITIVE,
    "rope_local_base_freq": POSITIVE,
    "tie_word_embeddings": FLAG,
    "max_window_layers": FROM_ZERO,
}
# These may also be null.
NULLABLE = {
    "num_key_value_heads": COUNT,
    "head_dim": COUNT,
    "sliding_window": FROM_ZERO,
    "sliding_window_pattern": COUNT,
    "use_sliding_window": FLAG,
    "attn_logit_softcapping": POSITIVE,
    "final_logit_softcapping": POSITIVE,
    "layer_types": NAMES,
    "rope_parameters": OBJECT,
    "rope_scaling": OBJECT,
    "original_max_position_embeddings": COUNT,
    "max_position_embeddings": COUNT,
    "bos_token_id": ID,
    "pad_token_id": ID,
    "eos_token_id": IDS,
}


def check_values(config: Mapping[str, object], where: str, kinds: Mapping[str, Kind], nullable: bool) -> None:
    """Hold the values that are there against their kinds.

    Args:
      where: the file, for errors.
      nullable: whether they may be null.

    Raises:
      ConfigError: naming the key, its value and what is needed.
    """
    for key, kind in kinds.items():
        if key in config and not (nullable and config[key] is None):
            also = " (or null)" if nullable else ""
            check(kind.holds(config[key]), f"{where}: {key} = {brief(config[key])}: {kind.name}{also} is needed")


def brief(value: object) -> str:
    """Return a value as Python writes it, cut at 60 characters."""
    if type(value) is int and abs(value) >= 10**50:  # Python refuses to write thousands of digits
        return "a number of over 50 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
