"""Make, place, cut up and put together populations of train states."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from distill_jax.models import lora, transformer
from distill_jax.models.transformer import TransformerConfig
from distill_jax.sharding.mesh import padded, replicated, shardings, with_shardings
from distill_jax.train.step import RUNNING, UNUSED, State


def state_shardings(cfg: TransformerConfig, mesh: Mesh, shape: State) -> State:
    """Return where each leaf of a state lies: weights and their moments by the rules, the members' flags everywhere."""
    params = shardings(mesh, lora.logical_axes(cfg, shape.params), shape.params, lead=("population",))
    once = replicated(mesh)

    weights: Any = jax.tree.structure(shape.params)

    def is_params(node: Any) -> bool:
        return bool(jax.tree.structure(node) == weights)

    def of_optimizer(node: Any) -> Any:
        return params if is_params(node) else once

    rest = jax.tree.map(lambda _: once, shape.replace(params=None, opt=None))
    return rest.replace(params=params, opt=jax.tree.map(of_optimizer, shape.opt, is_leaf=is_params))


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


def make_state(
    cfg: TransformerConfig,
    mesh: Mesh,
    starts: Sequence[Any],
    optimizer: optax.GradientTransformation,
    learning_rates: Sequence[float],
    streams: Sequence[int] | None = None,
    coefficients: Mapping[str, Sequence[float]] | None = None,
    dtype: str = "float32",
) -> State:
    """Build a population from each member's starting weights, filled up with unused members to fit the mesh.

    Args:
      starts: one tree of weights a member, or a single one that all members start from.
      learning_rates: peak learning rate of each member; its length is P.
      streams: which batch stream each member reads; all read stream 0 when left out.
      coefficients: of each loss term for each member; 1 when left out.
      dtype: of the weights and their moments.
    """
    count = len(learning_rates)
    total = padded(count, mesh)
    index = np.minimum(np.arange(total), count - 1)

    def make(trees: Sequence[Any]) -> State:
        if len(trees) == 1:
            params = jax.tree.map(lambda x: jnp.broadcast_to(x, (total, *x.shape)), trees[0])
        else:
            params = jax.tree.map(lambda *x: jnp.stack([x[i] for i in index]), *trees)
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        return fresh_state(params, optimizer, learning_rates, streams or [0] * count, coefficients)

    shape = jax.eval_shape(make, starts)
    return jax.jit(make, out_shardings=state_shardings(cfg, mesh, shape))(starts)


def fresh_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    learning_rates: Sequence[float],
    streams: Sequence[int],
    coefficients: Mapping[str, Any] | None = None,
) -> State:
    """Return the state before the first step of P members, with params [P', ...]; those beyond P are unused."""
    total, count = len(jax.tree.leaves(params)[0]), len(learning_rates)
    index = np.minimum(np.arange(total), count - 1)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt=jax.vmap(optimizer.init)(params),
        status=jnp.where(jnp.arange(total) < count, RUNNING, UNUSED).astype(jnp.int32),
        stopped=jnp.full((total,), -1, jnp.int32),
        hyper={
            "learning_rate": jnp.asarray(learning_rates, jnp.float32)[index],
            "stream": jnp.asarray(streams, jnp.int32)[index],
            "coefficients": {k: jnp.asarray(c, jnp.float32)[index] for k, c in (coefficients or {}).items()},
        },
    )


def members(tree: Any, index: Any) -> Any:
    """Return the chosen members of a tree of [P, ...] arrays."""
    chosen = np.asarray(index) if isinstance(index, list | tuple) else index
    return jax.tree.map(lambda x: x[chosen], tree)


def member(tree: Any, index: Any) -> Any:
    """Return one member of a tree of [P, ...] arrays, without the population axis."""
    return jax.tree.map(lambda x: x[index], tree)


def _take(state: State, chosen: jax.Array) -> State:
    return members(state.replace(step=None), chosen).replace(step=state.step)


def _put(state: State, piece: State, chosen: jax.Array) -> State:
    # What a member is given, and which stream it reads here, is for this population to say, which need not be the one
    # that the piece was saved from.
    both = (state.replace(step=None, hyper=None), piece.replace(step=None, hyper=None))
    new = jax.tree.map(lambda x, y: x.at[chosen].set(y), *both)
    return new.replace(step=piece.step, hyper=state.hyper)


# The three below move arrays between layouts; every host of the run calls them. What they compile is a function of this
# module, not one made at each call: JAX knows its programs by the function, and these run at every checkpoint.


def take_state(cfg: TransformerConfig, mesh: Mesh, state: State, index: Sequence[int]) -> State:
    """Return the chosen members' own state, laid out by the rules."""
    chosen = np.asarray(index)
    shape = jax.eval_shape(_take, state, chosen)
    return jax.jit(_take, out_shardings=state_shardings(cfg, mesh, shape))(state, chosen)


def put_state(cfg: TransformerConfig, mesh: Mesh, state: State, piece: State, index: Sequence[int]) -> State:
    """Return the state with the chosen members, and the step, of another one."""
    at = state_shardings(cfg, mesh, state)
    return jax.jit(_put, out_shardings=at, donate_argnums=0)(state, piece, np.asarray(index))


def take_weights(cfg: TransformerConfig, mesh: Mesh, params: Any, index: int) -> Any:
    """Return one member's weights (or adapters), laid out by the rules."""
    shape = jax.eval_shape(member, params, index)
    return jax.jit(member, out_shardings=shardings(mesh, lora.logical_axes(cfg, shape), shape))(params, index)
