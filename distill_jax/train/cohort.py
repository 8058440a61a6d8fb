"""Populations of models so small that each lies whole on one device: made, placed and continued."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from distill_jax.io.checkpoint import Checkpoints, Damaged
from distill_jax.sharding.mesh import padded
from distill_jax.train.population import fresh_state
from distill_jax.train.step import State


def placing(mesh: Mesh) -> Callable[[Any], Any]:
    """Return where a state lies: members over the population axis, the step everywhere."""
    return lambda state: jax.tree.map(lambda x: NamedSharding(mesh, P("population") if x.ndim else P()), state)


def make_crew(
    mesh: Mesh,
    params: Any,
    optimizer: optax.GradientTransformation,
    learning_rates: Sequence[float],
    streams: Sequence[int],
    coefficients: Mapping[str, Any] | None = None,
) -> State:
    """Return a population before its first step, filled up with unused members to fit the mesh.

    Args:
      params: every leaf [P, ...].
      learning_rates, streams, coefficients: as of `population.make_state`.
    """
    count, total = len(streams), padded(len(streams), mesh)
    params = jax.tree.map(lambda w: np.asarray(w)[np.minimum(np.arange(total), count - 1)], params)

    def make(params: Any) -> State:
        return fresh_state(params, optimizer, learning_rates, streams, coefficients)

    return jax.jit(make, out_shardings=placing(mesh)(jax.eval_shape(make, params)))(params)


def continued(checkpoints: Checkpoints, name: str, state: State, say: Callable[[str], None]) -> State:
    """Return the newest state that was saved whole, or the given one; damaged ones are removed."""
    for step in reversed(checkpoints.steps()):
        try:
            found = checkpoints.restore(step, state)
        except Damaged as error:
            say(f"warning: {str(error).split(';')[0]}; going back to the checkpoint before it")
            checkpoints.remove(step)
            continue
        say(f"{name}: continuing from step {step} of an earlier run")
        return found
    return state
