"""A training run as the driver takes it: who trains, on what, how it is measured; and what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from distill_jax.io.metrics import Progress
from distill_jax.io.node import Node
from distill_jax.io.trackers import Trackers
from distill_jax.models.lora import Base
from distill_jax.train.layout import Layout
from distill_jax.train.loop import Values
from distill_jax.train.metric_writers import Row
from distill_jax.train.settings import Training
from distill_jax.train.state import State
from distill_jax.train.step import Batch, Metrics
from distill_jax.types import PyTree


class StepInputs(NamedTuple):
    """The step function, and what it is given besides the state.

    Attributes:
      feed: step -> the global batch on the mesh.
      teacher: the teacher's weights, or None.
      base: what the members' adapters are attached to; None if the members are whole models.
    """

    step: Callable[..., tuple[State, Metrics]]
    feed: Callable[[int], Batch]
    teacher: PyTree = None
    base: Base | None = None


class Measurement(NamedTuple):
    """What an evaluation found.

    Attributes:
      rows: for the metrics of the members' nodes.
      status: int [P], how each member stands; None if none is to stop.
      summary: for the progress line.
    """

    rows: Sequence[Row]
    status: np.ndarray | None = None
    summary: str = ""


class Evaluation(Protocol):
    """What is measured of the members while they train."""

    def due(self, step: int) -> bool:
        """Whether to measure at a step: a function of the step alone, so that a continued run measures as often."""

    def __call__(self, state: State, base: Base | None) -> Measurement:
        """Measure the members."""


@dataclasses.dataclass(frozen=True)
class PeriodicEvaluation:
    """Measure every `evaluate_every` steps and at the last."""

    settings: Training
    measure: Callable[[State], Measurement]

    def due(self, step: int) -> bool:
        """Whether to measure at a step."""
        return step % self.settings.evaluate_every == 0 or step == self.settings.steps

    def __call__(self, state: State, base: Base | None) -> Measurement:
        """Measure the members."""
        del base
        return self.measure(state)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What training costs, for the progress line.

    Attributes:
      tokens: that all members together learn from in a step.
      planned_flops: of the whole stage.
      step_flops: of a step of all members; 0 where no MFU is to be told.
    """

    tokens: float
    planned_flops: float
    step_flops: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A population that trains from a fresh state, or from where its nodes' checkpoints stand.

    Attributes:
      labels: the members' names in their metrics.
      settings: how long, and when to evaluate, save and log.
      layout: where the members lie.
      inputs: makes the step function and what it is given; called once the state is restored.
      nodes: of each member; none if nothing is to be saved or written.
      evaluation: what is measured while training, if anything is.
      progress: where to say how far it is, and cost: what it says of speed.
      log_rows: whether each logged step has a "train" row of each member that took it.
      summarise: metrics of a step -> the losses for the progress line.
      profile: first and last step to trace; () for none.
      trackers: where the rows also go.
    """

    labels: Sequence[str]
    settings: Training
    layout: Layout
    inputs: Callable[[], StepInputs]
    nodes: Sequence[Node] = ()
    evaluation: Evaluation | None = None
    progress: Progress | None = None
    cost: Cost = Cost(0.0, 0.0)
    log_rows: bool = True
    summarise: Callable[[Values], str] | None = None
    profile: Sequence[int] = ()
    trackers: Trackers | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A trained population.

    Attributes:
      base: what its adapters are attached to; None if its members are whole models.
      steps, status, evaluations: of each member: steps taken, how it ended, how often it was measured.
    """

    state: State
    base: Base | None
    steps: list[int]
    status: list[int]
    evaluations: list[int]
