"""Where the members of a population lie on a mesh, and how their states are made, cut up and put together there."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from distill_jax.models import lora
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.sharding.mesh import padded, replicated, shardings, with_shardings
from distill_jax.train.population import member
from distill_jax.train.state import Hyper, State, filling, fresh_state
from distill_jax.types import ArrayOrShape


@dataclasses.dataclass(frozen=True)
class Layout(abc.ABC):
    """A mesh, and where on it each array of a population's state lies. Every host of the run calls its methods."""

    mesh: Mesh
    saves_in_background: ClassVar[bool] = True

    @abc.abstractmethod
    def state_shardings(self, shape: State) -> State:
        """Return where each leaf of a state lies."""

    def make(
        self, starts: Sequence[Params], optimizer: optax.GradientTransformation, hyper: Hyper, dtype: str = "float32"
    ) -> State:
        """Build a population from each member's starting weights, filled up with unused members to fit the mesh.

        Args:
          starts: one tree of weights a member, or a single one that all members start from.
          hyper: of the P members.
          dtype: of the weights and their moments.
        """
        index = self._index(hyper)

        def build(trees: Sequence[Params]) -> State:
            if len(trees) == 1:
                params = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(index), *x.shape)), trees[0])
            else:
                params = jax.tree.map(lambda *x: jnp.stack([x[i] for i in index]), *trees)
            return fresh_state(jax.tree.map(lambda x: x.astype(dtype), params), optimizer, hyper)

        return jax.jit(build, out_shardings=self.state_shardings(jax.eval_shape(build, starts)))(starts)

    def make_stacked(self, params: Params, optimizer: optax.GradientTransformation, hyper: Hyper) -> State:
        """Build a population from starting weights [P, ...] on the host, filled up likewise."""
        index = self._index(hyper)
        params = jax.tree.map(lambda w: np.asarray(w)[index], params)

        def build(params: Params) -> State:
            return fresh_state(params, optimizer, hyper)

        return jax.jit(build, out_shardings=self.state_shardings(jax.eval_shape(build, params)))(params)

    def _index(self, hyper: Hyper) -> np.ndarray:
        count = len(hyper.learning_rate)
        return filling(count, padded(count, self.mesh))

    # What take and put compile is a function of this module, not one made at each call: JAX knows its programs by the
    # function, and these run at every checkpoint.

    def take(self, state: State, index: Sequence[int]) -> State:
        """Return the chosen members' own state."""
        chosen = np.asarray(index)
        at = self.state_shardings(jax.eval_shape(_take, state, chosen))
        return jax.jit(_take, out_shardings=at)(state, chosen)

    def shape(self, state: State, index: Sequence[int]) -> State:
        """Return what `take` would, as shapes with shardings."""
        shape = jax.eval_shape(_take, state, np.asarray(index))
        return with_shardings(shape, self.state_shardings(shape))

    def put(self, state: State, piece: State, index: Sequence[int]) -> State:
        """Return the state, which is donated, with the chosen members, and the step, of another one."""
        at = self.state_shardings(state)
        return jax.jit(_put, out_shardings=at, donate_argnums=0)(state, piece, np.asarray(index))


@dataclasses.dataclass(frozen=True)
class ShardedMembers(Layout):
    """Members over the population axis; each one's weights and their moments by the rules of `sharding.mesh`."""

    cfg: TransformerConfig

    def state_shardings(self, shape: State) -> State:
        """Return where each leaf of a state lies: what is no weight or moment lies everywhere."""
        lead, everywhere = ("population",), replicated(self.mesh)
        params = shardings(self.mesh, lora.logical_axes(self.cfg, shape.params), shape.params, lead=lead)
        weights = dict(jax.tree_util.tree_leaves_with_path(params))

        def of_optimizer(path: tuple[object, ...], _: ArrayOrShape) -> NamedSharding:
            # A moment lies where its weight does, whose path its own ends with; Muon has moments of some weights only.
            ends = (path[i:] for i in range(len(path)))
            return next((weights[end] for end in ends if end in weights), everywhere)

        rest = jax.tree.map(lambda _: everywhere, shape.replace(params=None, opt=None))
        return rest.replace(params=params, opt=jax.tree_util.tree_map_with_path(of_optimizer, shape.opt))


@dataclasses.dataclass(frozen=True)
class WholeMembers(Layout):
    """Members so small that each lies whole on one device of the population axis; they are saved at once."""

    saves_in_background: ClassVar[bool] = False

    def state_shardings(self, shape: State) -> State:
        """Return where each leaf of a state lies: the step everywhere, and so do members that do not divide."""
        rows = self.mesh.shape["population"]

        def at(x: ArrayOrShape) -> NamedSharding:
            divides = x.ndim and x.shape[0] % rows == 0
            return NamedSharding(self.mesh, P("population") if divides else P())

        return jax.tree.map(at, shape)


def _take(state: State, chosen: jax.Array) -> State:
    return member(state.replace(step=None), chosen).replace(step=state.step)


def _put(state: State, piece: State, chosen: jax.Array) -> State:
    # What a member is given, and which stream it reads here, is for this population to say, which need not be the one
    # that the piece was saved from.
    both = (state.replace(step=None, hyper=None), piece.replace(step=None, hyper=None))
    new = jax.tree.map(lambda x, y: x.at[chosen].set(y), *both)
    return new.replace(step=piece.step, hyper=state.hyper)
