"""The state of a population: what its members are, completely, between two steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax.models.transformer import Params
from distill_jax.types import PyTree

RUNNING, REACHED, DIVERGED, UNUSED = range(4)


class Hyper(NamedTuple):
    """What members differ in besides their weights: arrays, or lists of numbers, of length P.

    Attributes:
      learning_rate: fp32 [P], peak.
      stream: int32 [P], which of the batch's G streams the member reads.
      coefficients: {loss term: fp32 [P]}, which multiply the objective's own; 1 for a term that is left out.
    """

    learning_rate: Any
    stream: Any
    coefficients: Mapping[str, Any] = {}

    @classmethod
    def of(cls, rates: Sequence[float], streams: Sequence[int] = (), **coefficients: Sequence[float]) -> Hyper:
        """Return those of members that all read stream 0 if no streams are given."""
        return cls(rates, streams or [0] * len(rates), coefficients)

    def arrays(self, index: np.ndarray) -> Hyper:
        """Return those of the members at an index, as arrays."""
        weights = {term: jnp.asarray(c, jnp.float32)[index] for term, c in self.coefficients.items()}
        rate, stream = jnp.asarray(self.learning_rate, jnp.float32), jnp.asarray(self.stream, jnp.int32)
        return Hyper(rate[index], stream[index], weights)


class State(flax.struct.PyTreeNode):
    """What a population is, completely.

    Attributes:
      step: int32 [], steps taken.
      params, opt: every leaf [P, ...]; params are what trains, a model's weights or the adapters to a frozen base.
      status: int32 [P], RUNNING, REACHED, DIVERGED, or UNUSED (fills the population up to the mesh).
      stopped: int32 [P], the step at which the member stopped; -1 while it runs.
      hyper: what the members differ in.
    """

    step: jax.Array
    params: Params
    opt: PyTree
    status: jax.Array
    stopped: jax.Array
    hyper: Hyper


def fresh_state(params: Params, optimizer: optax.GradientTransformation, hyper: Hyper) -> State:
    """Return the state before the first step of P members, with params [P', ...]; those beyond P are unused."""
    total, count = len(jax.tree.leaves(params)[0]), len(hyper.learning_rate)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt=jax.vmap(optimizer.init)(params),
        status=jnp.where(jnp.arange(total) < count, RUNNING, UNUSED).astype(jnp.int32),
        stopped=jnp.full((total,), -1, jnp.int32),
        hyper=hyper.arrays(filling(count, total)),
    )


def filling(count: int, total: int) -> np.ndarray:
    """Return which of `count` members each of `total` places is made from: the last one fills up."""
    return np.minimum(np.arange(total), count - 1)
