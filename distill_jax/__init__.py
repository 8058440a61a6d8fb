"""Unlearn, distil and relearn language models in JAX; the names of `api` are found here, and imported when used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill_jax.api import (
        ConfigError,
        Run,
        attack,
        axis,
        chain,
        open_config,
        open_experiment,
        open_run,
        product,
        read_summary,
        score,
        select_stages,
        zipped,
    )

__all__ = [
    "ConfigError",
    "Run",
    "attack",
    "axis",
    "chain",
    "open_config",
    "open_experiment",
    "open_run",
    "product",
    "read_summary",
    "score",
    "select_stages",
    "zipped",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from distill_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
