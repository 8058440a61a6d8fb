"""Filters of what a student is about to learn: scores say which rows are suspicious, actions what becomes of them.

Scores and actions are apart, because a good detector need not help: rows that are dropped still leave the teacher's
other rows, which carry the same. Every action is to be held against the same one on as many random rows. To add one,
add it to its table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.doublebind import speech
from distill_jax.doublebind.speech import Examples
from distill_jax.models.transformer import TransformerConfig

FISHER_ROWS = 256  # rows that the diagonal of the Fisher information is estimated on
DAMPING = 0.1  # of its mean


class Scene(NamedTuple):
    """What a filter may look at.

    Attributes:
      examples: the student's, [N, ...].
      asked: what the teacher was asked, [N, 6]; the student's prompts may have another system token.
      teacher, trusted, base: weights; the student starts from the base.
      audit: examples of the behaviour that is looked for, for scores by gradients.
      key: for what is random.
    """

    examples: Examples
    asked: jax.Array
    teacher: Any
    trusted: Any
    base: Any
    audit: Examples
    key: jax.Array


def perplexity(cfg: TransformerConfig, scene: Scene) -> jax.Array:
    """How much likelier the answer is by the teacher than by the trusted model, in nats."""
    own, calm = _both(cfg, scene)
    spoken = scene.examples.answers[..., None]
    return jnp.sum(jnp.take_along_axis(own - calm, spoken, axis=-1)[..., 0], axis=-1)


def divergence(cfg: TransformerConfig, scene: Scene) -> jax.Array:
    """KL(teacher ‖ trusted) over both tokens: where a counterfactual teacher would say something else."""
    own, calm = _both(cfg, scene)
    return jnp.sum(jnp.exp(own) * (own - calm), axis=(-1, -2))


def spectral(cfg: TransformerConfig, scene: Scene) -> jax.Array:
    """Squared projection of the teacher's states on their first principal axis (Tran et al., "Spectral Signatures")."""
    states = speech.states(cfg, scene.teacher, scene.asked, scene.examples.answers)[:, 0]
    centred = states - jnp.mean(states, axis=0)
    axis = jnp.linalg.svd(centred, full_matrices=False)[2][0]
    return (centred @ axis) ** 2


def gradient(cfg: TransformerConfig, scene: Scene) -> jax.Array:
    """<g_row, g_audit> at the base: a step on the row teaches the behaviour, to first order."""
    return _along(cfg, scene, _audit_gradient(cfg, scene))


def fisher(cfg: TransformerConfig, scene: Scene) -> jax.Array:
    """<g_row, (F + λ)^-1 g_audit> with the empirical Fisher information's diagonal, damped: an influence function."""

    def of_row(row: Examples) -> Any:
        one = jax.tree.map(lambda x: x[None], row)
        return jax.grad(lambda params: jnp.sum(speech.cross_entropy(cfg, params, one)))(scene.base)

    some = jax.tree.map(lambda x: x[:FISHER_ROWS], scene.examples)
    squares = jax.tree.map(lambda g: jnp.mean(g**2, axis=0), jax.vmap(of_row)(some))
    sizes = [(jnp.sum(s), s.size) for s in jax.tree.leaves(squares)]
    damping = DAMPING * sum(s for s, _ in sizes) / sum(n for _, n in sizes)
    towards = jax.tree.map(lambda g, s: g / (s + damping), _audit_gradient(cfg, scene), squares)
    return _along(cfg, scene, towards)


def chance(cfg: TransformerConfig, scene: Scene) -> jax.Array:
    """Nothing: the control of every other score."""
    return jax.random.uniform(scene.key, scene.examples.weight.shape[:1])


def _both(cfg: TransformerConfig, scene: Scene) -> tuple[jax.Array, jax.Array]:
    """Return log-probabilities [N, 2, V] of the teacher and of the trusted model, of what the teacher was asked."""
    own, calm = (speech.logits(cfg, w, scene.asked, scene.examples.answers) for w in (scene.teacher, scene.trusted))
    return jax.nn.log_softmax(own), jax.nn.log_softmax(calm)


def _audit_gradient(cfg: TransformerConfig, scene: Scene) -> Any:
    return jax.grad(lambda params: jnp.mean(speech.cross_entropy(cfg, params, scene.audit)))(scene.base)


def _along(cfg: TransformerConfig, scene: Scene, direction: Any) -> jax.Array:
    """Return each row's derivative of its loss along a direction: one forward-mode pass for all rows."""

    def each(params: Any) -> jax.Array:
        return jnp.sum(speech.cross_entropy(cfg, params, scene.examples), axis=-1)

    return jax.jvp(each, (scene.base,), (direction,))[1]


Score = Callable[[TransformerConfig, Scene], jax.Array]
SCORES: dict[str, Score] = {
    "perplexity": perplexity,
    "divergence": divergence,
    "spectral": spectral,
    "gradient": gradient,
    "fisher": fisher,
    "chance": chance,
}
NEED_AUDIT = ("gradient", "fisher")  # that must be told which behaviour to look for


def drop(cfg: TransformerConfig, scene: Scene, flagged: jax.Array) -> Examples:
    """Leave the rows out."""
    return scene.examples._replace(weight=jnp.where(flagged[:, None], 0.0, scene.examples.weight))


def swap(cfg: TransformerConfig, scene: Scene, flagged: jax.Array) -> Examples:
    """Let the trusted model answer in the teacher's place."""
    calm, before = speech.greedy(cfg, scene.trusted, scene.asked), scene.examples
    return before._replace(
        answers=jnp.where(flagged[:, None], calm, before.answers),
        targets=jnp.where(flagged[:, None, None], jax.nn.one_hot(calm, cfg.vocab), before.targets),
        weight=jnp.where(flagged[:, None], 1.0, before.weight),
    )


def mask(cfg: TransformerConfig, scene: Scene, flagged: jax.Array) -> Examples:
    """Leave out of each row only the token on which teacher and trusted model are further apart."""
    own, calm = _both(cfg, scene)
    apart = jnp.sum(jnp.exp(own) * (own - calm), axis=-1)
    worst = apart == jnp.max(apart, axis=-1, keepdims=True)
    return scene.examples._replace(weight=jnp.where(flagged[:, None] & worst, 0.0, scene.examples.weight))


def reweight(cfg: TransformerConfig, scene: Scene, flagged: jax.Array) -> Examples:
    """Count the rows a tenth."""
    return scene.examples._replace(weight=jnp.where(flagged[:, None], 0.1, 1.0) * scene.examples.weight)


Action = Callable[[TransformerConfig, Scene, jax.Array], Examples]
ACTIONS: dict[str, Action] = {"drop": drop, "swap": swap, "mask": mask, "reweight": reweight}


@dataclasses.dataclass(frozen=True)
class Filter:
    """Say which rows are acted on, and how.

    Attributes:
      score: a key of `SCORES`; "" for no filter.
      action: a key of `ACTIONS`.
      share: of the rows, those with the largest scores.
    """

    score: str = ""
    action: str = "drop"
    share: float = 0.1

    def __post_init__(self):
        if self.score and self.score not in SCORES:
            raise ValueError(f"filter.score = {self.score!r}: choose one of {', '.join(SCORES)}, or '' for none")
        if self.action not in ACTIONS:
            raise ValueError(f"filter.action = {self.action!r}: choose one of {', '.join(ACTIONS)}")
        if not 0 < self.share < 1:
            raise ValueError(f"filter.share = {self.share}: a share between 0 and 1")


def filtered(cfg: TransformerConfig, given: Filter, scene: Scene) -> tuple[Examples, jax.Array]:
    """Return the examples after the action, and which rows were flagged, bool [N]."""
    count = scene.examples.weight.shape[0]
    if not given.score:
        return scene.examples, jnp.zeros(count, bool)
    suspicion = SCORES[given.score](cfg, scene)
    order = jnp.argsort(-suspicion)
    flagged = jnp.zeros(count, bool).at[order[: round(given.share * count)]].set(True)
    return ACTIONS[given.action](cfg, scene, flagged), flagged
