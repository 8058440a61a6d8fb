"""The one loop: save, evaluate, stop, step, in that order, until the steps or the members run out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.train.settings import Training
from distill_jax.train.step import REACHED, RUNNING, Batch, State

Values = dict[str, np.ndarray]  # one number a member


@jax.jit
def _freeze(state: State, reached: jax.Array) -> State:
    reached = reached & (state.status == RUNNING)
    return state.replace(
        status=jnp.where(reached, REACHED, state.status), stopped=jnp.where(reached, state.step, state.stopped)
    )


def loop(
    state: State,
    teacher: Any,
    step: Callable[[State, Any, Batch], tuple[State, dict[str, jax.Array]]],
    feed: Callable[[int], Batch],
    settings: Training,
    *,
    save: Callable[[int, State], None],
    evaluate: Callable[[int, State], np.ndarray | None],
    record: Callable[[int, Values], None],
) -> State:
    """Train a population from its own step to its last.

    At s steps taken: save if it is time; evaluate, and freeze the members that `evaluate` says reached their goal;
    leave if s is the last step or nobody runs any more; take step s on batch s. A run that continues from the save
    at s therefore repeats the evaluation at s, and so comes to the same end as one that was never stopped.

    Args:
      feed: gives the global batch of a step.
      save: is called with the step and the state every `checkpoint_every` steps, but not where the loop began.
      evaluate: is called at every step and decides by itself when to look; returns bool [P] or None.
      record: gets a step's metrics one step late, so that the device is never waited for.
    """
    start = int(state.step)
    pending: tuple[int, dict[str, jax.Array]] | None = None
    for s in range(start, settings.steps + 1):
        if s > start and s % settings.checkpoint_every == 0:
            if pending:  # a run that continues from here never takes the last step again
                record(pending[0], jax.tree.map(np.asarray, pending[1]))
                pending = None
            save(s, state)
        reached = evaluate(s, state)
        if reached is not None:
            fill = np.zeros(state.status.shape[0] - len(reached), bool)
            state = _freeze(state, jnp.asarray(np.concatenate([reached, fill])))
            if not np.any(np.asarray(state.status) == RUNNING):
                break
        if s == settings.steps:
            break
        state, metrics = step(state, teacher, feed(s))
        if pending:
            record(pending[0], jax.tree.map(np.asarray, pending[1]))
        pending = (s, metrics) if s % settings.log_every == 0 else None
    if pending:
        record(pending[0], jax.tree.map(np.asarray, pending[1]))
    return state
