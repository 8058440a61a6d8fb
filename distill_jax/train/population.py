"""Weights of one model and of a population: drawn, described, and chosen from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from distill_jax.models import lora, transformer
from distill_jax.models.transformer import TransformerConfig
from distill_jax.sharding.mesh import shardings, with_shardings


def weights_shape(cfg: TransformerConfig, mesh: Mesh | None, rank: int = 0) -> Any:
    """Return one model's weights, or the adapters of a rank to it, as shapes; laid out by the rules on a mesh."""
    shape = jax.eval_shape(_init(cfg, rank), jax.random.key(0))
    if mesh is None:
        return shape
    return with_shardings(shape, shardings(mesh, lora.logical_axes(cfg, shape), shape))


def draw_weights(cfg: TransformerConfig, mesh: Mesh, key: jax.Array, rank: int = 0) -> Any:
    """Draw one model's fresh weights, or adapters to it, where the rules want them."""
    return _drawer(cfg, mesh, rank)(key)


@functools.cache
def _drawer(cfg: TransformerConfig, mesh: Mesh, rank: int) -> Any:
    at = jax.tree.map(lambda w: w.sharding, weights_shape(cfg, mesh, rank))
    return jax.jit(_init(cfg, rank), out_shardings=at)


def _init(cfg: TransformerConfig, rank: int) -> Callable[[jax.Array], Any]:
    return functools.partial(lora.init, cfg, rank) if rank else functools.partial(transformer.init, cfg)


def member(tree: Any, index: Any) -> Any:
    """Return one member of a tree of [P, ...] arrays, without the population axis."""
    return jax.tree.map(lambda x: x[index], tree)


def take_weights(cfg: TransformerConfig, mesh: Mesh, params: Any, index: int) -> Any:
    """Return one member's weights (or adapters), laid out by the rules."""
    shape = jax.eval_shape(member, params, index)
    return jax.jit(member, out_shardings=shardings(mesh, lora.logical_axes(cfg, shape), shape))(params, index)
