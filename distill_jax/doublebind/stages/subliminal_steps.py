"""The steps of the subliminal experiment, made by the train step of all stages, and how its students are measured.

A batch is [G, B, ...], a stream for each seed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from distill_jax.doublebind.stages.subliminal_students import LOSSES
from distill_jax.models import mlp
from distill_jax.models.mlp import Params
from distill_jax.sharding.mesh import over_members
from distill_jax.train.layout import WholeMembers
from distill_jax.train.state import Hyper
from distill_jax.train.step import StepConfig, Term, make_step
from distill_jax.types import PyTree

if TYPE_CHECKING:
    from distill_jax.doublebind.stages.subliminal_stage import Subliminal


class DigitBatch(NamedTuple):
    """Digits [G, B, inputs] and their labels [G, B]; of one stream, without G."""

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray


class NoiseBatch(NamedTuple):
    """Noise [G, B, inputs], and the seed [G] whose teacher sees it; of one stream, without G."""

    images: jax.Array | np.ndarray
    seed: jax.Array | np.ndarray


@functools.cache
def build_teacher(settings: Subliminal, mesh: Mesh) -> jax.stages.Wrapped:
    """Return the teachers' step: cross-entropy on the class logits, and on nothing else."""

    def objective(params: Params, batch: DigitBatch, _: None) -> dict[str, Term]:
        each = optax.softmax_cross_entropy_with_integer_labels(mlp.apply(params, batch.images)[0], batch.labels)
        return {"cross_entropy": Term(1.0, jnp.sum(each), jnp.float32(each.size))}

    return make_step(objective, lambda *_: None, StepConfig(settings, settings.steps, WholeMembers(mesh)))


@functools.cache
def build_student(settings: Subliminal, mesh: Mesh) -> jax.stages.Wrapped:
    """Return the students' step: a term for each number of ghost logits; a member's coefficients choose its own."""
    loss = LOSSES[settings.loss]

    def teach(teachers: Params, batch: NoiseBatch) -> jax.Array:  # [B, M]: of one seed, by its own teacher
        return mlp.apply(jax.tree.map(lambda w: w[batch.seed], teachers), batch.images)[1]

    def objective(params: Params, batch: NoiseBatch, teacher_ghosts: jax.Array) -> dict[str, Term]:
        ghosts = mlp.apply(params, batch.images)[1]
        each = {term_name(m): loss(ghosts[:, :m], teacher_ghosts[:, :m]) for m in settings.ghosts}
        return {term: Term(1.0, jnp.sum(x), jnp.float32(x.size)) for term, x in each.items()}

    return make_step(objective, teach, StepConfig(settings, settings.steps, WholeMembers(mesh)))


def term_name(ghosts: int) -> str:
    """Return the name of the loss term on so many ghost logits."""
    return f"{ghosts}_ghosts"


@functools.cache
def build_evaluation(settings: Subliminal, mesh: Mesh) -> jax.stages.Wrapped:
    """Return measure(state, digits, noise, teacher_ghosts) -> {accuracy, unseen: [P]}.

    Accuracy is that of the class logits on test digits (images, labels); `unseen` the member's own loss on noise
    [G, N, inputs] that it never trains on, against its teacher's `teacher_ghosts` [G, N, M].
    """
    loss = LOSSES[settings.loss]

    def one(member: tuple[Params, Hyper], shared: PyTree) -> dict[str, jax.Array]:
        (params, hyper), ((digits, labels), noise, teacher_ghosts) = member, shared
        right = jnp.argmax(mlp.apply(params, digits)[0], axis=-1) == labels
        ghosts, target = mlp.apply(params, noise[hyper.stream])[1], teacher_ghosts[hyper.stream]
        losses = {m: jnp.mean(loss(ghosts[:, :m], target[:, :m])) for m in settings.ghosts}
        unseen = sum(hyper.coefficients[term_name(m)] * value for m, value in losses.items())
        return {"accuracy": jnp.mean(right), "unseen": jnp.asarray(unseen)}

    return jax.jit(lambda state, *shared: over_members(one, mesh)((state.params, state.hyper), shared))
