"""The one driver: whatever trains in this project is continued, fed, evaluated, recorded and saved here."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from distill_jax.config import Interrupted
from distill_jax.io.metrics import TrainingSize
from distill_jax.models.lora import Base
from distill_jax.perf import peaks, profile, roofline
from distill_jax.perf.clock import Clock, training_of
from distill_jax.sharding.distributed import is_primary
from distill_jax.train.loop import Hooks, StepFunction, Values, loop
from distill_jax.train.metric_writers import MetricWriters, Row
from distill_jax.train.saved_states import SavedStates
from distill_jax.train.state import State
from distill_jax.train.step import Batch, Metrics
from distill_jax.train.training_run import Outcome, StepInputs, TrainingRun


def train(run: TrainingRun, state: State, clock: Clock | None = None) -> Outcome:
    """Train a population to its end.

    Args:
      state: before the first step; donated.

    Raises:
      Interrupted: if the run was asked to stop; everything up to here is saved.
    """
    clock = clock or Clock()
    saved = SavedStates(run.layout, run.nodes, print if run.progress is None else run.progress.say)
    with clock.spent_on("restart"):
        state = saved.restore(state)
        start = int(state.step)
        if not start:
            clock.charge("idle")  # there was nothing to go on from
    if run.nodes:
        clock.continued_from(training_of(run.nodes[0].name), start)
    with _closing(saved, MetricWriters(run.nodes, start, run.trackers), clock) as writers:
        inputs = run.inputs()
        monitor = _Monitor(run, inputs.base, saved, writers, clock)
        with _profiled(run, inputs, start, monitor) as step:
            hooks = Hooks(step, inputs.feed, monitor.save, monitor.evaluate, monitor.record)
            state = loop(state, run.settings, hooks, clock)
        with clock.spent_on("step"):
            jax.block_until_ready(state.step)  # as reading how it ended does
        monitor.note_prediction(int(state.step))
    return _outcome(run, inputs.base, state)


@contextlib.contextmanager
def _closing(saved: SavedStates, writers: MetricWriters, clock: Clock) -> Iterator[MetricWriters]:
    together = True
    try:
        yield writers
    except Interrupted:
        raise
    except BaseException:  # which the other processes need not have
        together = False
        raise
    finally:
        with clock.spent_on("save"):
            saved.wait(together=together)
        writers.close()


@contextlib.contextmanager
def _profiled(run: TrainingRun, inputs: StepInputs, start: int, monitor: _Monitor) -> Iterator[StepFunction]:
    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        monitor.predict(inputs, state, batch)
        return inputs.step(state, inputs.teacher, batch, inputs.base)

    window = run.profile if run.nodes and is_primary() else ()
    directory = run.nodes[0].directory / "tensorboard" if run.nodes else Path()
    with profile.traced(step, window, directory, start) as traced:
        yield traced


def _outcome(run: TrainingRun, base: Base | None, state: State) -> Outcome:
    count = len(run.labels)
    stopped = np.asarray(state.stopped)[:count]
    steps = np.where(stopped >= 0, stopped, int(state.step)).tolist()
    evaluations = [sum(map(run.evaluation.due, range(taken + 1))) if run.evaluation else 0 for taken in steps]
    return Outcome(state, base, steps, np.asarray(state.status)[:count].tolist(), evaluations)


class _Monitor:
    """What happens between the steps of a run: saving, evaluating, recording, and saying how far it is."""

    def __init__(self, run: TrainingRun, base: Base | None, saved: SavedStates, writers: MetricWriters, clock: Clock):
        self._run, self._base, self._saved, self._writers, self._clock = run, base, saved, writers, clock
        self._losses = self._scores = ""  # for the progress line
        peak = peaks.peak_flops(run.layout.mesh.devices.flat)
        ideal = run.cost.step_flops / peak if peak and run.cost.step_flops else None
        self._size = TrainingSize(run.settings.steps, run.cost.tokens, run.cost.planned_flops, ideal)
        self._predicts = bool(run.cost.step_flops)

    def predict(self, inputs: StepInputs, state: State, batch: Batch) -> None:
        """Ask once what the plan says of the step that is about to run; where it says nothing, nothing is compiled."""
        if self._predicts:
            self._predicts = False
            with self._clock.spent_on("compile"):
                arguments = (state, inputs.teacher, batch, inputs.base)
                seconds = roofline.predicted_seconds(inputs.step, arguments, self._run.layout.mesh)
            self._size = dataclasses.replace(self._size, predicted=seconds)

    def note_prediction(self, steps: int) -> None:
        """Note what the plan says of all steps of this training, those of earlier processes among them."""
        seconds = steps * self._size.predicted if self._size.predicted else None
        self._clock.predict(steps * self._run.cost.step_flops, seconds)

    def save(self, step: int, state: State) -> None:
        self._saved.save(step, state, self._writers.sync())
        if self._run.nodes:
            self._clock.mark(training_of(self._run.nodes[0].name), step)

    def evaluate(self, step: int, state: State) -> np.ndarray | None:
        run = self._run
        if run.nodes:
            self._clock.step_to(training_of(run.nodes[0].name), step, run.settings.steps)
        if run.progress is not None:
            goodput = f"goodput {self._clock.goodput:.0%}"
            text = "  ".join(filter(None, (self._losses, self._scores, goodput)))
            run.progress.step(step, self._size, text)
        if not run.evaluation or not run.evaluation.due(step):
            return None
        with self._clock.spent_on("step"):
            jax.block_until_ready(state.step)
        with self._clock.spent_on("evaluate"):
            measurement = run.evaluation(state, self._base)
        self._writers.write(step, measurement.rows)
        self._writers.flush()
        self._scores = measurement.summary
        return measurement.status

    def record(self, step: int, values: Values) -> None:
        if self._run.log_rows:
            self._writers.write(step, self._train_rows(values))
        summarise = self._run.summarise or _mean_losses
        self._losses = "loss " + summarise({name: value[: len(self._run.labels)] for name, value in values.items()})

    def _train_rows(self, values: Values) -> Iterator[Row]:
        trained = np.isfinite(np.stack(list(values.values()))).any(axis=0)  # who has stopped has no numbers
        for i, (node, label) in enumerate(zip(self._run.nodes, self._run.labels, strict=False)):  # some have no node
            if trained[i]:
                yield Row(node.name, "train", label, {name: float(value[i]) for name, value in values.items()})


def _mean_losses(values: Values) -> str:
    finite = {name: v[np.isfinite(v)] for name, v in values.items() if name != "gradient_norm"}
    return ", ".join(f"{name} {v.mean():.3g}" if v.size else f"{name} –" for name, v in finite.items())
