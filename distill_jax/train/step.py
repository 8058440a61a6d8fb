"""The one train step: a population of members over one batch, one teacher forward for all of them.

State arrays carry a leading population axis P. Members differ in their weights and in `hyper` (learning rate,
batch stream); a member that reached its goal or diverged is frozen: its weights are those of its last step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax.models import lora
from distill_jax.models.lora import Adapters, Base
from distill_jax.models.transformer import Params
from distill_jax.sharding.mesh import (
    SLICE,
    MemberFunction,
    constrain,
    over_members,
    over_slices,
    replicated,
    traced,
    tracing,
)
from distill_jax.train.gradient_rules import GradientRule
from distill_jax.train.layout import Layout
from distill_jax.train.settings import Optimizer
from distill_jax.train.state import DIVERGED, RUNNING, State
from distill_jax.types import PyTree

ACTIVE = "active"  # among a step's metrics, bool [P]: the member trained; the others' numbers are nobody's

Batch = PyTree  # a pytree of arrays [G, B, ...], G streams of B rows; of an objective, one stream's [B, ...]


class Term(NamedTuple):
    """A loss term. The objective is Σ coefficient · total / weight over the whole global batch.

    Attributes:
      total: the loss summed over what a microbatch has.
      weight: how much there was to sum.
    """

    coefficient: float
    total: jax.Array
    weight: jax.Array


LossTerms = Callable[[Params, Batch, PyTree], Mapping[str, Term]]  # (params, batch, teacher's outputs) -> terms
TeacherForward = Callable[[PyTree, Batch], PyTree]  # (teacher params, batch) -> its outputs
Metrics = dict[str, jax.Array]  # a number a member, [P]


class TeacherAdapters(NamedTuple):
    """A teacher that is adapters to the members' own base, and what their product is multiplied with."""

    adapters: Adapters
    scale: np.float32


class GradientInputs(NamedTuple):
    """One member as its gradient is taken (or P of them).

    Attributes:
      weights: of each term over the whole batch; None if the batch comes in one piece, which then has them.
    """

    params: Params
    active: jax.Array
    stream: jax.Array
    coefficients: Mapping[str, jax.Array]
    weights: Mapping[str, jax.Array] | None = None


class UpdateInputs(NamedTuple):
    """One member as its weights move (or P of them)."""

    params: Params
    opt: PyTree
    grads: Params
    loss: jax.typing.ArrayLike
    active: jax.Array
    learning_rate: jax.Array


class Shared(NamedTuple):
    """What all members see of a microbatch: their base, its rows [G, B, ...], and what the teacher made of them."""

    base: Base | None
    batch: Batch
    teacher_outputs: PyTree


def of_active(metrics: Metrics) -> dict[str, np.ndarray]:
    """Return a step's metrics, NaN for members that no longer train: on the host, where JAX looks for no NaN."""
    values = {name: np.asarray(value) for name, value in metrics.items()}
    active = values.pop(ACTIVE)
    return {name: np.where(active, value, np.float32(np.nan)) for name, value in values.items()}


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What a step is made from besides its objective and its teacher.

    Attributes:
      optimizer: its peak learning rate is not read: that is each member's own.
      steps: over which the schedule runs.
      layout: where the new state lies.
      microbatches: pieces of the batch; gradients and weights are summed over them and divided once.
      trainable: None, or a tree like one member's params of 0/1 masks; where 0, nothing moves.
      rule: how the gradient is made of those of the terms; None for that of their sum.
    """

    optimizer: Optimizer
    steps: int
    layout: Layout
    microbatches: int = 1
    trainable: Params | None = None
    rule: GradientRule | None = None


def make_step(objective: LossTerms, teacher: TeacherForward, config: StepConfig) -> jax.stages.Wrapped:
    """Build `step(state, teacher, batch, base=None) -> (state, metrics)`, jitted, the state donated.

    The metrics mean something of members that are ACTIVE in them: `of_active` reads them so. `base` is what the
    members' adapters are attached to (`models.lora.base`); None if the members are whole models. A teacher of adapters
    to that base may come as `TeacherAdapters`: then its frozen weights are there once.

    Args:
      objective: gives one member's loss terms on a microbatch; it never sees the population.
      teacher: runs once a microbatch, whatever P is.
    """
    optimizer = config.optimizer
    step = _Step(objective, teacher, optimizer.transform(), optimizer.schedule(config.steps), config)

    def train_step(
        state: State, teacher_params: PyTree, batch: Batch, base: Base | None = None
    ) -> tuple[State, Metrics]:
        one_by_one = contextlib.nullcontext() if traced((state, batch)) else jax.disable_jit()
        with tracing(config.layout.mesh), one_by_one:
            return step(state, teacher_params, batch, base)

    # JAX_DEBUG_NANS takes a step that gave NaN once more, operation by operation: it needs the state.
    again = jax.config.jax_debug_nans  # type: ignore[attr-defined]
    return jax.jit(train_step, donate_argnums=() if again else 0)


@dataclasses.dataclass(frozen=True)
class _Step:
    objective: LossTerms
    teacher: TeacherForward
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    config: StepConfig

    def __call__(self, state: State, teacher_params: PyTree, batch: Batch, base: Base | None) -> tuple[State, Metrics]:
        active = state.status == RUNNING
        if isinstance(teacher_params, TeacherAdapters):
            assert base is not None
            teacher_params = lora.attach(teacher_params.adapters, (base[0], teacher_params.scale))
        members = GradientInputs(state.params, active, state.hyper.stream, state.hyper.coefficients)
        if rule := self.config.rule:

            def of_terms(params: Params, only: tuple[str, ...]) -> tuple[Params, Metrics]:
                at = members._replace(params=params)
                grads, losses = self.gradients(at, batch, teacher_params, base, only)
                return self._masked(grads), losses  # the mask broadcasts over members

            def each(f: Callable[..., Params], *trees: Params) -> Params:
                def of_member(trees: tuple[Params, ...], _: None) -> Params:
                    return f(*trees)

                return over_members(of_member, self.config.layout.mesh)(trees, None)

            grads, losses = rule(of_terms, state.params, each)
        else:
            grads, losses = self.gradients(members, batch, teacher_params, base)
        loss = sum(losses.values())  # not finite as soon as one term is not
        moving = UpdateInputs(state.params, state.opt, grads, loss, active, state.hyper.learning_rate)
        update = over_members(self.update, self.config.layout.mesh)
        with jax.named_scope("optimizer"):
            params, opt, norm, finite = update(moving, self.schedule(state.step))
        diverged = active & ~finite
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt=opt,
            status=jnp.where(diverged, DIVERGED, state.status),
            stopped=jnp.where(diverged, state.step, state.stopped),
        )
        state = jax.lax.with_sharding_constraint(state, self.config.layout.state_shardings(state))
        metrics = {**losses, "gradient_norm": norm, ACTIVE: active}
        # Every host reads all members' numbers.
        return state, jax.lax.with_sharding_constraint(metrics, replicated(self.config.layout.mesh))

    def gradients(
        self,
        members: GradientInputs,
        batch: Batch,
        teacher_params: PyTree,
        base: Base | None,
        only: tuple[str, ...] | None = None,
    ) -> tuple[Params, Metrics]:
        """Return the members' gradients and loss terms [P, ...] on the whole batch; of all terms, or of some."""
        gradient, term_weights = (functools.partial(f, only=only) for f in (self.gradient, self.weights))
        mesh = self.config.layout.mesh

        def run(f: MemberFunction, members: GradientInputs, piece: Batch) -> PyTree:
            def on_slice(rows: Batch) -> PyTree:
                teacher_outputs = jax.lax.map(functools.partial(self.teacher, teacher_params), rows)
                return over_members(f, mesh)(members, Shared(base, rows, teacher_outputs))

            return over_slices(on_slice, mesh)(piece)

        def total(f: MemberFunction, members: GradientInputs) -> PyTree:
            pieces = _split(batch, self.config.microbatches)
            shape = jax.eval_shape(functools.partial(run, f), members, jax.tree.map(operator.itemgetter(0), pieces))

            def add(so_far: PyTree, piece: Batch) -> tuple[PyTree, None]:
                return jax.tree.map(jnp.add, so_far, run(f, members, piece)), None

            return jax.lax.scan(add, _zeros(shape), pieces)[0]

        one_piece = self.config.microbatches == 1
        if one_piece and SLICE not in mesh.shape:
            return run(gradient, members, batch)
        # Two passes, because the weights of the whole batch divide the sums of each microbatch and slice.
        if one_piece:
            return run(gradient, members._replace(weights=run(term_weights, members, batch)), batch)
        return total(gradient, members._replace(weights=total(term_weights, members)))

    def terms(
        self, params: Params, member: GradientInputs, shared: Shared, only: tuple[str, ...] | None
    ) -> Mapping[str, Term]:
        """Return one member's loss terms on the rows of its own stream."""
        batch, teacher_outputs = (_stream(x, member.stream) for x in (shared.batch, shared.teacher_outputs))
        with jax.named_scope("objective"):
            terms = self.objective(lora.attach(params, shared.base), batch, teacher_outputs)
        return terms if only is None else {name: terms[name] for name in only}

    def weights(self, member: GradientInputs, shared: Shared, only: tuple[str, ...] | None) -> dict[str, jax.Array]:
        """Return the weight of each term. Nothing else is used, so XLA drops the forward pass that sums would need."""
        return {name: term.weight for name, term in self.terms(member.params, member, shared, only).items()}

    def gradient(self, member: GradientInputs, shared: Shared, only: tuple[str, ...] | None) -> tuple[Params, Metrics]:
        """Return one member's gradient and its loss terms; zeros if it is frozen."""

        def loss(params: Params) -> tuple[jax.typing.ArrayLike, Metrics]:
            terms = self.terms(params, member, shared, only)
            weights = member.weights or {name: term.weight for name, term in terms.items()}
            values = {name: term.total / jnp.maximum(weights[name], 1.0) for name, term in terms.items()}
            scale = {name: term.coefficient * member.coefficients.get(name, 1.0) for name, term in terms.items()}
            return sum(scale[name] * value for name, value in values.items()), values

        def compute() -> tuple[Params, Metrics]:
            return jax.grad(loss, has_aux=True)(member.params)

        def nothing() -> tuple[Params, Metrics]:
            return _zeros(jax.eval_shape(compute))

        return jax.lax.cond(member.active, compute, nothing)

    def update(self, member: UpdateInputs, schedule: jax.Array) -> tuple[Params, PyTree, jax.Array, jax.Array]:
        """Return one member's new weights and moments, its gradient's norm, and whether its numbers are finite."""
        grads = self._masked(member.grads)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(member.loss)

        def move() -> tuple[Params, PyTree]:
            updates, opt = self.optimizer.update(grads, member.opt, member.params)
            rate = member.learning_rate * schedule

            def moved(p: jax.Array, u: jax.Array) -> jax.Array:
                return (p - rate * u).astype(p.dtype)

            return jax.tree.map(moved, member.params, self._masked(updates)), opt

        def stay() -> tuple[Params, PyTree]:
            return member.params, member.opt

        params, opt = jax.lax.cond(member.active & finite, move, stay)
        return params, opt, norm, finite

    def _masked(self, tree: Params) -> Params:
        mask = self.config.trainable
        return tree if mask is None else jax.tree.map(jnp.multiply, tree, mask)


def _zeros(shapes: PyTree) -> PyTree:
    def zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.zeros(shape.shape, shape.dtype)

    return jax.tree.map(zeros, shapes)


def _stream(tree: PyTree, index: jax.Array) -> PyTree:
    def take(x: jax.Array) -> jax.Array:
        return x[0] if x.shape[0] == 1 else x[index]

    return jax.tree.map(take, tree)


def _split(batch: Batch, microbatches: int) -> Batch:
    """Cut [G, B, ...] into [M, G, B / M, ...], by every M-th row, so that rows stay on their devices."""

    def cut(x: jax.Array) -> jax.Array:
        pieces = jnp.moveaxis(x.reshape(x.shape[0], -1, microbatches, *x.shape[2:]), 2, 0)
        return constrain(pieces, None, None, "batch", *[None] * (pieces.ndim - 3))

    return jax.tree.map(cut, batch)
