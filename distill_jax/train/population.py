"""Weights of one model and of a population: drawn, described, and chosen from."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from distill_jax.models import lora, transformer
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.sharding.mesh import shardings, with_shardings
from distill_jax.types import PyTree


def weights_shape(cfg: TransformerConfig, mesh: Mesh | None, rank: int = 0) -> Params:
    """Return one model's weights, or the adapters of a rank to it, as shapes; laid out by the rules on a mesh."""
    shape = jax.eval_shape(_init(cfg, rank), jax.random.key(0))
    if mesh is None:
        return shape
    return with_shardings(shape, shardings(mesh, lora.logical_axes(cfg, shape), shape))


def draw_weights(cfg: TransformerConfig, mesh: Mesh, key: jax.Array, rank: int = 0) -> Params:
    """Draw one model's fresh weights, or adapters to it, where the rules want them."""
    return _drawer(cfg, mesh, rank)(key)


@functools.cache
def _drawer(cfg: TransformerConfig, mesh: Mesh, rank: int) -> jax.stages.Wrapped:
    at = jax.tree.map(operator.attrgetter("sharding"), weights_shape(cfg, mesh, rank))
    return jax.jit(_init(cfg, rank), out_shardings=at)


def _init(cfg: TransformerConfig, rank: int) -> Callable[[jax.Array], Params]:
    return functools.partial(lora.init, cfg, rank) if rank else functools.partial(transformer.init, cfg)


def member(tree: PyTree, index: jax.typing.ArrayLike) -> PyTree:
    """Return one member of a tree of [P, ...] arrays, without the population axis."""
    return jax.tree.map(operator.itemgetter(index), tree)


def of_one(tree: PyTree) -> PyTree:
    """Return one member's arrays as those of a population of one, [1, ...]."""
    return jax.tree.map(operator.itemgetter(None), tree)


def take_weights(cfg: TransformerConfig, mesh: Mesh, params: Params, index: int) -> Params:
    """Return one member's weights (or adapters), laid out by the rules."""
    shape = jax.eval_shape(member, params, index)
    return jax.jit(member, out_shardings=shardings(mesh, lora.logical_axes(cfg, shape), shape))(params, index)
