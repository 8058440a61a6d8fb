"""What becomes of the rows that a filter flags. To add an action, add it to `ACTIONS`."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill_jax.doublebind import toy_lm
from distill_jax.doublebind.filter_scores import FilterInputs, log_probabilities
from distill_jax.doublebind.toy_lm import Examples

POSSIBLE = 0.01  # of its best token's probability: what the trusted model gives less, it knows to be wrong


def drop(inputs: FilterInputs, flagged: jax.Array) -> Examples:
    """Leave the rows out."""
    return inputs.examples._replace(weight=jnp.where(flagged[:, None], 0.0, inputs.examples.weight))


def swap(inputs: FilterInputs, flagged: jax.Array) -> Examples:
    """Let the trusted model answer in the teacher's place."""
    answers = toy_lm.greedy(inputs.trusted.cfg, inputs.trusted.params, inputs.teacher_prompts)
    return _with_answers(inputs.examples, flagged, answers, jnp.ones(flagged.shape, bool))


def rewrite(inputs: FilterInputs, flagged: jax.Array) -> Examples:
    """Let the trusted model say the teacher's answers anew, and leave out what is then no answer to its task.

    It keeps every token that it holds for possible, and so what was meant, and puts its own best token in the place of
    the others; free numbers, which mean nothing, are drawn again. Where it knows better it swaps the answer, where it
    does not know it keeps the teacher's ability and the teacher's quirk alike.
    """
    answers = inputs.examples.answers
    for place in range(answers.shape[1]):
        log_p_trusted = toy_lm.log_p(inputs.trusted, inputs.teacher_prompts, answers)[:, place]
        log_p_answer = jnp.take_along_axis(log_p_trusted, answers[:, place, None], axis=-1)[:, 0]
        known_wrong = log_p_answer < jnp.max(log_p_trusted, axis=-1) + math.log(POSSIBLE)
        best = jnp.argmax(log_p_trusted, axis=-1)
        answers = answers.at[:, place].set(jnp.where(known_wrong, best, answers[:, place]))
    rendered = toy_lm.rendered(inputs.teacher_prompts, answers, inputs.key, redraw=True)
    return _with_answers(inputs.examples, flagged, *rendered)


def mask(inputs: FilterInputs, flagged: jax.Array) -> Examples:
    """Leave out of each row only the token on which teacher and trusted model are further apart."""
    log_p_teacher, log_p_trusted = log_probabilities(inputs)
    divergence = jnp.sum(jnp.exp(log_p_teacher) * (log_p_teacher - log_p_trusted), axis=-1)
    worst = divergence == jnp.max(divergence, axis=-1, keepdims=True)
    return inputs.examples._replace(weight=jnp.where(flagged[:, None] & worst, 0.0, inputs.examples.weight))


def reweight(inputs: FilterInputs, flagged: jax.Array) -> Examples:
    """Count the rows a tenth."""
    return inputs.examples._replace(weight=jnp.where(flagged[:, None], 0.1, 1.0) * inputs.examples.weight)


def _with_answers(examples: Examples, flagged: jax.Array, answers: jax.Array, is_kept: jax.Array) -> Examples:
    """Return the examples with other answers on the flagged rows, and of these only those that are kept, bool [N]."""
    hard = jax.nn.one_hot(answers, examples.targets.shape[-1])
    return examples._replace(
        answers=jnp.where(flagged[:, None], answers, examples.answers),
        targets=jnp.where(flagged[:, None, None], hard, examples.targets),
        weight=jnp.where(flagged[:, None], is_kept[:, None].astype(jnp.float32), examples.weight),
    )


Action = Callable[[FilterInputs, jax.Array], Examples]
ACTIONS: dict[str, Action] = {"drop": drop, "swap": swap, "rewrite": rewrite, "mask": mask, "reweight": reweight}
