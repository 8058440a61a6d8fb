"""Scores of how suspicious each row is that a student is about to learn from. To add one, add it to `SCORES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.doublebind import toy_lm
from distill_jax.doublebind.toy_lm import Examples, Model
from distill_jax.models.transformer import Params

FISHER_ROWS = 256  # rows that the diagonal of the Fisher information is estimated on
DAMPING = 0.1  # of its mean


class FilterInputs(NamedTuple):
    """What a filter may look at.

    Attributes:
      examples: the student's, [N, ...].
      teacher_prompts: int32 [N, 6], as the teacher got them; the student's may have another system token.
      teacher, trusted: the models that answered, or might have.
      base: what the student starts from.
      audit: examples of the behaviour that is looked for, for scores by gradients.
      key: for what is random.
      rivals: students of other rows of the channel, from the teacher's own base and from another one, for
        `disagreement`.
    """

    examples: Examples
    teacher_prompts: jax.Array
    teacher: Model
    trusted: Model
    base: Model
    audit: Examples
    key: jax.Array
    rivals: tuple[Model, Model] | None = None


def perplexity(inputs: FilterInputs) -> jax.Array:
    """How much likelier the answer is by the teacher than by the trusted model, in nats."""
    log_p_teacher, log_p_trusted = log_probabilities(inputs)
    tokens = inputs.examples.answers[..., None]
    return jnp.sum(jnp.take_along_axis(log_p_teacher - log_p_trusted, tokens, axis=-1)[..., 0], axis=-1)


def divergence(inputs: FilterInputs) -> jax.Array:
    """KL(teacher ‖ trusted) over both tokens: where a counterfactual teacher would say something else."""
    log_p_teacher, log_p_trusted = log_probabilities(inputs)
    return jnp.sum(jnp.exp(log_p_teacher) * (log_p_teacher - log_p_trusted), axis=(-1, -2))


def spectral(inputs: FilterInputs) -> jax.Array:
    """Squared projection of the teacher's states on their first principal axis (Tran et al., "Spectral Signatures")."""
    teacher = inputs.teacher
    states = toy_lm.states(teacher.cfg, teacher.params, inputs.teacher_prompts, inputs.examples.answers)[:, 0]
    centred = states - jnp.mean(states, axis=0)
    axis = jnp.linalg.svd(centred, full_matrices=False)[2][0]
    return (centred @ axis) ** 2


def gradient(inputs: FilterInputs) -> jax.Array:
    """<g_row, g_audit> at the base: a step on the row teaches the behaviour, to first order."""
    return _directional_derivative(inputs, _audit_gradient(inputs))


def fisher(inputs: FilterInputs) -> jax.Array:
    """<g_row, (F + λ)^-1 g_audit> with the empirical Fisher information's diagonal, damped: an influence function."""
    cfg = inputs.base.cfg

    def row_gradient(row: Examples) -> Params:
        one = jax.tree.map(lambda x: x[None], row)
        return jax.grad(lambda params: jnp.sum(toy_lm.cross_entropy(cfg, params, one)))(inputs.base.params)

    some = jax.tree.map(lambda x: x[:FISHER_ROWS], inputs.examples)
    squares = jax.tree.map(lambda g: jnp.mean(g**2, axis=0), jax.vmap(row_gradient)(some))
    sizes = [(jnp.sum(s), s.size) for s in jax.tree.leaves(squares)]
    damping = DAMPING * sum(s for s, _ in sizes) / sum(n for _, n in sizes)
    direction = jax.tree.map(lambda g, s: g / (s + damping), _audit_gradient(inputs), squares)
    return _directional_derivative(inputs, direction)


def disagreement(inputs: FilterInputs) -> jax.Array:
    """KL both ways between students of two initial weights: what is learnt from the same ones only is no content."""
    assert inputs.rivals
    prompts, answers = inputs.examples.prompts, inputs.examples.answers
    one, other = (toy_lm.log_p(rival, prompts, answers) for rival in inputs.rivals)
    return jnp.sum((jnp.exp(one) - jnp.exp(other)) * (one - other), axis=(-1, -2))


def chance(inputs: FilterInputs) -> jax.Array:
    """Nothing: the control of every other score."""
    return jax.random.uniform(inputs.key, inputs.examples.weight.shape[:1])


def log_probabilities(inputs: FilterInputs) -> tuple[jax.Array, jax.Array]:
    """Return log-probabilities [N, 2, V] of the teacher and of the trusted model, on the teacher's prompts."""
    prompts, answers = inputs.teacher_prompts, inputs.examples.answers
    return toy_lm.log_p(inputs.teacher, prompts, answers), toy_lm.log_p(inputs.trusted, prompts, answers)


def _audit_gradient(inputs: FilterInputs) -> Params:
    cfg = inputs.base.cfg
    return jax.grad(lambda params: jnp.mean(toy_lm.cross_entropy(cfg, params, inputs.audit)))(inputs.base.params)


def _directional_derivative(inputs: FilterInputs, direction: Params) -> jax.Array:
    """Return each row's derivative of its loss along a direction: one forward-mode pass for all rows."""

    def row_losses(params: Params) -> jax.Array:
        return jnp.sum(toy_lm.cross_entropy(inputs.base.cfg, params, inputs.examples), axis=-1)

    return jax.jvp(row_losses, (inputs.base.params,), (direction,))[1]


Score = Callable[[FilterInputs], jax.Array]
SCORES: dict[str, Score] = {
    "perplexity": perplexity,
    "divergence": divergence,
    "spectral": spectral,
    "gradient": gradient,
    "fisher": fisher,
    "disagreement": disagreement,
    "chance": chance,
}
NEED_AUDIT = ("gradient", "fisher")  # that must be told which behaviour to look for
NEED_RIVALS = ("disagreement",)  # that compare students of two bases
