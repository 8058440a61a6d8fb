"""Worlds of known truth for the rules that conclude: how often each says held where it must not, and where it should.

  python -m tests.referee            prints the table of docs/statistics.md

An answer of model m to fact f under attacker's seed s is right with probability Φ((z + √ρ·d_f) / √(1 − ρ)), where d_f
is how easy the fact is, to every model alike, and Φ(z) the model's true accuracy, moved by the luck of its training and
of the seed: so facts are crossed with seeds, and no number of seeds makes them more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from distill_jax.evals.claims import judge
from distill_jax.evals.conclusions import State
from distill_jax.evals.estimates import Scores
from distill_jax.evals.headline import Run, as_the_oracle, beyond_suppression, leads
from distill_jax.evals.premises import Model
from distill_jax.io.scale import ACCURACY, Scale

PROMPTS = np.array([2.0] * 87 + [1.0] * 18)  # 192 prompts on 105 facts, as configs/arithmetic.py:cpu asks
RUN_SD, SEED_SD, ALIKE = 0.03, 0.02, 0.5  # between trainings; between attackers; ρ
ALPHAS = (0.2, 0.4, 0.6, 0.8)


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is true of a model: its accuracy on held-out facts before and after the attack, and what else is known."""

    before: float
    after: float
    retain: float = 0.9
    steps: int = 100
    recovered: bool | None = None
    compute: float = 1.0
    bf16: float | None = None
    diverged: bool = False


GOOD = {
    "reference": Truth(0.93, 0.94), "oracle": Truth(0.03, 0.07), "maxent": Truth(0.0, 0.6),
    "graddiff": Truth(0.0, 0.55), "rmu": Truth(0.03, 0.8), "student": Truth(0.0, 0.09, recovered=True),
    "student-graddiff": Truth(0.0, 0.07, recovered=True), "student-rmu": Truth(0.02, 0.2, recovered=True),
    "student-reference": Truth(0.72, 0.73, recovered=True), "match-from-reference": Truth(0.03, 0.3),
    "match-from-random": Truth(0.03, 0.07),
    **{f"undo-{a}": Truth(0.0, after, steps=steps, recovered=True, compute=cost) for a, after, steps, cost in zip(
        ALPHAS, (0.6, 0.45, 0.23, 0.07), (100, 210, 300, 390), (0.11, 0.12, 0.24, 0.46), strict=True)},
}  # fmt: skip
TEACHERS = {"student-graddiff": "graddiff", "student-rmu": "rmu", "student-reference": "reference"}


def answers(rng: np.random.Generator, p: float, easy: np.ndarray, seeds: int, run: float, spread: float) -> Scores:
    """Draw one model's answers under each attacker's seed."""
    mean = np.clip(p + run + spread * rng.standard_normal((seeds, 1)), 1e-6, 1 - 1e-6)
    right = ndtr((ndtri(mean) + np.sqrt(ALIKE) * easy) / np.sqrt(1 - ALIKE))
    by_fact = rng.binomial(PROMPTS.astype(int), right) / PROMPTS
    return Scores(np.average(by_fact, axis=1, weights=PROMPTS), by_fact, PROMPTS, len(PROMPTS))


def world(
    rng: np.random.Generator, truths: Mapping[str, Truth] = GOOD, *, seeds: int = 3, run_sd: float = RUN_SD
) -> list[Model]:
    """Draw a run's models from what is true of them."""
    easy = rng.standard_normal(len(PROMPTS))
    made = []
    for name, truth in truths.items():
        run = run_sd * float(rng.standard_normal())
        draw = lambda p, spread=SEED_SD, run=run: answers(rng, p, easy, seeds, run if p > 0.01 else 0.0, spread)  # noqa: E731
        before, after = draw(truth.before, 0.0), draw(truth.after)
        weights = {"float32": after}
        if truth.bf16 is not None:
            weights["bfloat16"] = draw(truth.bf16)
        alpha = float(name.removeprefix("undo-")) if name.startswith("undo-") else None
        distilled = alpha is not None or name.startswith("student")
        made.append(
            Model(
                name, name, truth.retain, before.value, asked=210, recovered=truth.recovered, diverged=truth.diverged,
                unlearned=name in ("maxent", "graddiff", "rmu"), alpha=alpha, steps=truth.steps,
                teacher=TEACHERS.get(name, "maxent") if distilled else "", before=before, after=after,
                compute={"schedule": truth.compute, "first_passage": 2 * truth.compute}, shown=(0.0, 1.0),
                by_weights=weights, attack_steps=100,
            )
        )  # fmt: skip
    return made


def states(models: Sequence[Model], scale: Scale = ACCURACY) -> dict[str, State]:
    """Return what every rule says of a run, the headline's two among them."""
    run = Run(models, scale)
    chosen = leads(run)
    said = [*judge(models, scale), beyond_suppression(run, chosen), as_the_oracle(run, chosen)]
    return {one.name: one.state for one in said}
