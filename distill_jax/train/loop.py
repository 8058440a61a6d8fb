"""The one loop: save, evaluate, stop, step, in that order, until the steps or the members run out."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from distill_jax.config import Interrupted
from distill_jax.perf.clock import Clock
from distill_jax.sharding import distributed
from distill_jax.train.settings import Training
from distill_jax.train.state import RUNNING, State
from distill_jax.train.step import Batch, Metrics, of_active

IN_FLIGHT = 8  # steps handed to the devices and not yet done
Values = dict[str, np.ndarray]  # one number a member
StepFunction = Callable[[State, Batch], tuple[State, Metrics]]


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What a loop calls.

    Attributes:
      step: (state, batch) -> (the state after a step on the batch, the step's metrics).
      feed: gives the global batch of a step.
      save: is called with the step and the state every `checkpoint_every` steps, but not where the loop began.
      evaluate: is called at every step and decides by itself whether to measure; returns int [P], the status of
        each member by what was measured, or None.
      record: gets a step's metrics one step late, so that the device is never waited for.
    """

    step: StepFunction
    feed: Callable[[int], Batch]
    save: Callable[[int, State], None]
    evaluate: Callable[[int, State], np.ndarray | None]
    record: Callable[[int, Values], None]


def _freeze(state: State, ends: np.ndarray) -> State:
    """Mark the members that ended, int [P], how they did. On the host: every host holds the flags whole."""
    status, stopped = np.asarray(state.status), np.asarray(state.stopped)
    ended = (ends != RUNNING) & (status == RUNNING)
    return state.replace(
        status=jax.device_put(np.where(ended, ends, status).astype(status.dtype), state.status.sharding),
        stopped=jax.device_put(np.where(ended, np.asarray(state.step), stopped), state.stopped.sharding),
    )


def _is_ready(metrics: Metrics) -> bool:
    """Whether a step is done, without waiting for it."""
    return all(value.is_ready() for value in metrics.values() if isinstance(value, jax.Array))  # type: ignore[attr-defined]


def loop(state: State, settings: Training, hooks: Hooks, clock: Clock | None = None) -> State:
    """Train a population from its own step to its last.

    At s steps taken: save if it is time; leave if the run was asked to stop; evaluate, and freeze the members that
    reached their goal or diverged by it; leave if s is the last step or nobody runs any more; take step s on batch s.
    A run that continues from the save at s therefore repeats the evaluation at s, and so comes to the same end as one
    that was never stopped.

    Raises:
      Interrupted: once saved, if this process or another of the run was told to stop.
    """
    clock = clock or Clock()
    start = int(state.step)
    pending: tuple[int, Metrics] | None = None
    # On a loaded CPU the collectives of many queued steps can time out waiting for each other.
    flying: collections.deque[Metrics] = collections.deque()

    def settle() -> None:
        nonlocal pending
        if pending:
            with clock.spent_on("step"):
                values = of_active(pending[1])
            hooks.record(pending[0], values)
            pending = None

    for s in range(start, settings.steps + 1):
        preempted = distributed.preempted()
        if s > start and (preempted or s % settings.checkpoint_every == 0):
            settle()  # a run that continues from here never takes the last step again
            with clock.spent_on("step"):
                jax.block_until_ready(state.step)  # as saving does
            with clock.spent_on("save"):
                hooks.save(s, state)
        if preempted:
            raise Interrupted(f"stopped at step {s}")
        ends = hooks.evaluate(s, state)
        if ends is not None:
            fill = np.full(state.status.shape[0] - len(ends), RUNNING)
            state = _freeze(state, np.concatenate([ends, fill]))
            if not np.any(np.asarray(state.status) == RUNNING):
                break
        if s == settings.steps:
            break
        with clock.spent_on("data"):
            batch = hooks.feed(s)
            if flying and not _is_ready(flying[-1]):
                clock.charge("step")  # the devices had work all the while
        with clock.spent_on("step"):
            state, metrics = hooks.step(state, batch)
            flying.append(metrics)
            if len(flying) > IN_FLIGHT:
                jax.block_until_ready(flying.popleft())
        settle()
        pending = (s, metrics) if s % settings.log_every == 0 else None
    settle()
    return state
