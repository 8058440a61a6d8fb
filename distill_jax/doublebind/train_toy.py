"""Train a population of small decoders, each on examples of its own: bases, teachers, students and attackers alike."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from distill_jax.data.feed import order
from distill_jax.doublebind import toy_lm
from distill_jax.doublebind.toy_lm import LENGTH, Examples, Model
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.perf.clock import Clock
from distill_jax.sharding.mesh import make_mesh, replicated
from distill_jax.stages.context import Context, Node, seed_for
from distill_jax.train import driver
from distill_jax.train.layout import WholeMembers
from distill_jax.train.metric_writers import Row
from distill_jax.train.settings import Optimizer, Training
from distill_jax.train.state import DIVERGED, Hyper, State
from distill_jax.train.step import StepConfig, Term, make_step
from distill_jax.train.training_run import Cost, Measurement, PeriodicEvaluation, StepInputs, TrainingRun
from distill_jax.types import PyTree

Look = Callable[[Params], Mapping[str, Mapping[str, float]]]  # weights [P, ...] -> numbers by what is looked at


class ExampleIndex(NamedTuple):
    """Which examples each member learns from in a step.

    Attributes:
      rows: int32 [P, B], of the member's own examples.
      member: int [P], whose they are.
    """

    rows: Any
    member: Any


@functools.cache
def _build(cfg: TransformerConfig, optimizer: Optimizer, steps: int, mesh: Mesh) -> jax.stages.Wrapped:
    def gather(examples: Examples, batch: ExampleIndex) -> Examples:  # of one member
        return jax.tree.map(operator.itemgetter((batch.member, batch.rows)), examples)

    def objective(params: Params, batch: ExampleIndex, examples: Examples) -> dict[str, Term]:
        del batch
        each = toy_lm.cross_entropy(cfg, params, examples)
        return {"cross_entropy": Term(1.0, jnp.sum(each), jnp.sum(examples.weight))}

    return make_step(objective, gather, StepConfig(optimizer, steps, WholeMembers(mesh)))


def population_mesh(members: int) -> Mesh:
    """Return the devices laid out for a population."""
    return make_mesh(members, spread=True)


@dataclasses.dataclass(frozen=True)
class MemberTraining:
    """How the members of a population are trained.

    Attributes:
      ctx: the run's.
      settings: of the training.
      orders: each member's seed of the order of its examples; members that are to be compared have the same.
      labels: the members' names in the node's metrics.
      clock: that their time is counted on.
    """

    ctx: Context
    settings: Training
    orders: Sequence[int]
    labels: Sequence[str] = ()
    clock: Clock = dataclasses.field(default_factory=Clock)


def fit(
    training: MemberTraining, start: Model, examples: Examples, node: Node | None = None, look: Look | None = None
) -> tuple[Params, np.ndarray]:
    """Train the members from `start` [P, ...] on `examples` [P, N, ...].

    Args:
      node: where to save and to continue from; without one nothing is saved.
      look: is called every `evaluate_every` steps and at the last; its numbers become the node's "evaluation" rows.

    Returns:
      the weights [P, ...] on the host, and whether each member diverged, bool [P].
    """
    ctx, cfg, settings, seeds = training.ctx, start.cfg, training.settings, training.orders
    count = len(seeds)
    layout = WholeMembers(population_mesh(count))
    fresh = layout.make_stacked(
        start.params, settings.transform(), Hyper.of([settings.learning_rate] * count, range(count))
    )

    def measure(state: State) -> Measurement:
        scores = look(state.params) if look else {}
        return Measurement([Row(node.name, "evaluation", label, values) for label, values in scores.items() if node])

    def inputs() -> StepInputs:
        held = jax.device_put(examples, replicated(layout.mesh))
        return StepInputs(
            _build(cfg, settings.per_unit_rate(), settings.steps, layout.mesh), _feed(examples, settings, seeds), held
        )

    if node:
        ctx.progress.begin_training(node.name)
    run = TrainingRun(
        labels=training.labels or [""] * count,
        settings=settings,
        layout=layout,
        inputs=inputs,
        nodes=[node] * count if node else (),
        evaluation=PeriodicEvaluation(settings, measure) if node and look else None,
        progress=ctx.progress if node else None,
        cost=Cost(settings.batch * LENGTH * count, step_flops(cfg, settings) * settings.steps * count),
        trackers=ctx.trackers,
    )
    outcome = driver.train(run, fresh, training.clock)
    final = jax.tree.map(lambda w: np.asarray(w)[:count], outcome.state.params)
    return final, np.asarray(outcome.status) == DIVERGED


def _feed(examples: Examples, settings: Training, seeds: Sequence[int]) -> Callable[[int], ExampleIndex]:
    orders = {seed: order(examples.prompts.shape[1], settings.batch, seed) for seed in set(seeds)}

    def feed(step: int) -> ExampleIndex:
        rows = {seed: one[step] for seed, one in orders.items()}
        return ExampleIndex(np.stack([rows[seed] for seed in seeds]).astype(np.int32), np.arange(len(seeds)))

    return feed


def step_flops(cfg: TransformerConfig, settings: Training) -> float:
    """Return the FLOPs of one step of one member."""
    return flops.train_step(cfg, settings.batch, LENGTH)


def stacked(trees: Sequence[PyTree]) -> PyTree:
    """Return trees of arrays as one tree with a leading axis."""
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def chosen(tree: PyTree, index: npt.ArrayLike) -> PyTree:
    """Return the chosen members of a tree of [P, ...] arrays on the host."""
    return jax.tree.map(lambda x: np.asarray(x)[np.asarray(index)], tree)


def seed_of(settings: Training, *purpose: object) -> int:
    """Return a seed for a purpose; it depends on the settings' seed and on nothing else of them."""
    return seed_for(settings.seed, "double bind", *purpose)
