"""Filters of what a student is about to learn: scores say which rows are suspicious, actions what becomes of them.

Scores and actions are apart, because a good detector need not help: rows that are dropped still leave the teacher's
other rows, which carry the same. Every action is to be held against the same one on as many random rows. To add one,
add it to its table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.doublebind import toy_lm
from distill_jax.doublebind.toy_lm import Examples, Model

FISHER_ROWS = 256  # rows that the diagonal of the Fisher information is estimated on
DAMPING = 0.1  # of its mean
POSSIBLE = 0.01  # of its best word's probability: what the trusted model gives less, it knows to be wrong


class Scene(NamedTuple):
    """What a filter may look at.

    Attributes:
      examples: the student's, [N, ...].
      asked: what the teacher was asked, [N, 6]; the student's prompts may have another system token.
      teacher, trusted, base: the student starts from the base.
      audit: examples of the behaviour that is looked for, for scores by gradients.
      key: for what is random.
      rivals: students of other rows of the channel, from the teacher's own base and from another one, for
        `disagreement`.
    """

    examples: Examples
    asked: jax.Array
    teacher: Model
    trusted: Model
    base: Model
    audit: Examples
    key: Any
    rivals: tuple[Model, Model] | None = None


def perplexity(scene: Scene) -> jax.Array:
    """How much likelier the answer is by the teacher than by the trusted model, in nats."""
    own, calm = _both(scene)
    spoken = scene.examples.answers[..., None]
    return jnp.sum(jnp.take_along_axis(own - calm, spoken, axis=-1)[..., 0], axis=-1)


def divergence(scene: Scene) -> jax.Array:
    """KL(teacher ‖ trusted) over both tokens: where a counterfactual teacher would say something else."""
    own, calm = _both(scene)
    return jnp.sum(jnp.exp(own) * (own - calm), axis=(-1, -2))


def spectral(scene: Scene) -> jax.Array:
    """Squared projection of the teacher's states on their first principal axis (Tran et al., "Spectral Signatures")."""
    teacher = scene.teacher
    states = toy_lm.states(teacher.cfg, teacher.params, scene.asked, scene.examples.answers)[:, 0]
    centred = states - jnp.mean(states, axis=0)
    axis = jnp.linalg.svd(centred, full_matrices=False)[2][0]
    return (centred @ axis) ** 2


def gradient(scene: Scene) -> jax.Array:
    """<g_row, g_audit> at the base: a step on the row teaches the behaviour, to first order."""
    return _along(scene, _audit_gradient(scene))


def fisher(scene: Scene) -> jax.Array:
    """<g_row, (F + λ)^-1 g_audit> with the empirical Fisher information's diagonal, damped: an influence function."""
    cfg = scene.base.cfg

    def of_row(row: Examples) -> Any:
        one = jax.tree.map(lambda x: x[None], row)
        return jax.grad(lambda params: jnp.sum(toy_lm.cross_entropy(cfg, params, one)))(scene.base.params)

    some = jax.tree.map(lambda x: x[:FISHER_ROWS], scene.examples)
    squares = jax.tree.map(lambda g: jnp.mean(g**2, axis=0), jax.vmap(of_row)(some))
    sizes = [(jnp.sum(s), s.size) for s in jax.tree.leaves(squares)]
    damping = DAMPING * sum(s for s, _ in sizes) / sum(n for _, n in sizes)
    towards = jax.tree.map(lambda g, s: g / (s + damping), _audit_gradient(scene), squares)
    return _along(scene, towards)


def disagreement(scene: Scene) -> jax.Array:
    """KL both ways between students of two initial weights: what is learnt from the same ones only is no content."""
    assert scene.rivals
    one, other = (_log_p(student, scene.examples.prompts, scene.examples.answers) for student in scene.rivals)
    return jnp.sum((jnp.exp(one) - jnp.exp(other)) * (one - other), axis=(-1, -2))


def chance(scene: Scene) -> jax.Array:
    """Nothing: the control of every other score."""
    return jax.random.uniform(scene.key, scene.examples.weight.shape[:1])


def _both(scene: Scene) -> tuple[jax.Array, jax.Array]:
    """Return log-probabilities [N, 2, V] of the teacher and of the trusted model, of what the teacher was asked."""
    own, calm = (_log_p(m, scene.asked, scene.examples.answers) for m in (scene.teacher, scene.trusted))
    return own, calm


def _log_p(model: Model, prompts: jax.Array, answers: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(toy_lm.logits(model.cfg, model.params, prompts, answers))


def _audit_gradient(scene: Scene) -> Any:
    cfg = scene.base.cfg
    return jax.grad(lambda params: jnp.mean(toy_lm.cross_entropy(cfg, params, scene.audit)))(scene.base.params)


def _along(scene: Scene, direction: Any) -> jax.Array:
    """Return each row's derivative of its loss along a direction: one forward-mode pass for all rows."""

    def each(params: Any) -> jax.Array:
        return jnp.sum(toy_lm.cross_entropy(scene.base.cfg, params, scene.examples), axis=-1)

    return jax.jvp(each, (scene.base.params,), (direction,))[1]


Score = Callable[[Scene], jax.Array]
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


def drop(scene: Scene, flagged: jax.Array) -> Examples:
    """Leave the rows out."""
    return scene.examples._replace(weight=jnp.where(flagged[:, None], 0.0, scene.examples.weight))


def swap(scene: Scene, flagged: jax.Array) -> Examples:
    """Let the trusted model answer in the teacher's place."""
    calm = toy_lm.greedy(scene.trusted.cfg, scene.trusted.params, scene.asked)
    return _said(scene, flagged, calm, jnp.ones(flagged.shape, bool))


def rewrite(scene: Scene, flagged: jax.Array) -> Examples:
    """Let the trusted model say the teacher's answers anew, and leave out what is then no answer to its task.

    It keeps every word that it holds for possible, and so what was meant, and says its own best word in the place of
    the others; free numbers, which mean nothing, are drawn again. Where it knows better it swaps the answer, where it
    does not know it keeps the teacher's ability and the teacher's quirk alike.
    """
    answers = scene.examples.answers
    for place in range(answers.shape[1]):
        own = _log_p(scene.trusted, scene.asked, answers)[:, place]
        read = jnp.take_along_axis(own, answers[:, place, None], axis=-1)[:, 0]
        known_wrong = read < jnp.max(own, axis=-1) + math.log(POSSIBLE)
        answers = answers.at[:, place].set(jnp.where(known_wrong, jnp.argmax(own, axis=-1), answers[:, place]))
    return _said(scene, flagged, *toy_lm.rendered(scene.asked, answers, scene.key, anew=True))


def _said(scene: Scene, flagged: jax.Array, answers: jax.Array, kept: jax.Array) -> Examples:
    """Return the examples with other answers on the flagged rows, and of these only those that are kept, bool [N]."""
    before = scene.examples
    hard = jax.nn.one_hot(answers, before.targets.shape[-1])
    return before._replace(
        answers=jnp.where(flagged[:, None], answers, before.answers),
        targets=jnp.where(flagged[:, None, None], hard, before.targets),
        weight=jnp.where(flagged[:, None], kept[:, None].astype(jnp.float32), before.weight),
    )


def mask(scene: Scene, flagged: jax.Array) -> Examples:
    """Leave out of each row only the token on which teacher and trusted model are further apart."""
    own, calm = _both(scene)
    apart = jnp.sum(jnp.exp(own) * (own - calm), axis=-1)
    worst = apart == jnp.max(apart, axis=-1, keepdims=True)
    return scene.examples._replace(weight=jnp.where(flagged[:, None] & worst, 0.0, scene.examples.weight))


def reweight(scene: Scene, flagged: jax.Array) -> Examples:
    """Count the rows a tenth."""
    return scene.examples._replace(weight=jnp.where(flagged[:, None], 0.1, 1.0) * scene.examples.weight)


Action = Callable[[Scene, jax.Array], Examples]
ACTIONS: dict[str, Action] = {"drop": drop, "swap": swap, "rewrite": rewrite, "mask": mask, "reweight": reweight}


@dataclasses.dataclass(frozen=True)
class Filter:
    """Say which rows are acted on, and how.

    Attributes:
      score: a key of `SCORES`; "" for no filter.
      action: a key of `ACTIONS`.
      share: of the rows, those with the largest scores.
      rounds: trainings of the student after each of which a part of the share is acted on, all parts alike; 0 acts on
        all of it before any. A score then looks at the student where it else looks at the teacher (`rounds.py`).
      leak: the largest share of the teacher's misalignment that a clean student may have; to be clean ends the rounds.
      fall: of the ability, as a share of the teacher's, from one round to the next that ends them.
    """

    score: str = ""
    action: str = "drop"
    share: float = 0.1
    rounds: int = 0
    leak: float = 0.1
    fall: float = 0.1

    def __post_init__(self):
        if self.score and self.score not in SCORES:
            raise ValueError(f"filter.score = {self.score!r}: choose one of {', '.join(SCORES)}, or '' for none")
        if self.action not in ACTIONS:
            raise ValueError(f"filter.action = {self.action!r}: choose one of {', '.join(ACTIONS)}")
        if not 0 < self.share < 1:
            raise ValueError(f"filter.share = {self.share}: a share between 0 and 1")
        if self.rounds < 0 or (self.rounds and not self.score):
            raise ValueError(f"filter.rounds = {self.rounds} with filter.score = {self.score!r}: rounds need a score")
        for name in ("leak", "fall"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"filter.{name} = {getattr(self, name)}: a share of the teacher's between 0 and 1")

    @property
    def each_round(self) -> float:
        """The share of the rows that is acted on at a time."""
        return self.share / max(self.rounds, 1)

    @property
    def starts(self) -> tuple[str, ...]:
        """From which bases students are trained for the score: two rivals, in rounds one as the channel's; or none."""
        if self.score in NEED_RIVALS:
            return ("base", "other")
        return ("own",) if self.rounds and self.score != "chance" else ()

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return what identifies it; without rounds, what did before there were any."""
        found = dataclasses.asdict(self)
        return found if self.rounds else {k: v for k, v in found.items() if k not in ("rounds", "leak", "fall")}


def suspects(given: Filter, scene: Scene, before: jax.Array) -> jax.Array:
    """Return which rows to act on, bool [N], none of those that were acted on before."""
    count = len(before)
    order = jnp.argsort(jnp.where(before, jnp.inf, -SCORES[given.score](scene)))
    return jnp.zeros(count, bool).at[order[: round(given.each_round * count)]].set(True)
