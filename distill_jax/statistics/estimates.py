"""Estimates whose intervals hold every source of error: runs (or attackers), facts, and the luck of training.

A score is a mean over seeds and facts that are crossed: every seed is asked about the same facts, so more seeds do not
make the facts more. The variance of the mean is the sum of both, with Satterthwaite's degrees of freedom; the part that
seed and fact share is counted in each, which errs towards wide. The luck of training is measured where a model was
trained several times, and else assumed (`Scale.run_sd`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Self

import numpy as np

from distill_jax.evals.scale import Scale
from distill_jax.statistics import student_t


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean, and the variances of independent causes with their degrees of freedom.

    Attributes:
      parts: (variance of the mean, degrees of freedom) by cause; none where nothing can be said of its error.
      n: independent units behind it, the fewest of any cause.
    """

    value: float
    parts: tuple[tuple[float, float], ...] = ()
    n: int = 0

    @property
    def variance(self) -> float:
        """Return the variance of the mean; NaN where nothing is known of it."""
        return sum(v for v, _ in self.parts) if self.parts else math.nan

    def plus(self, variance: float, freedom: float = math.inf) -> Estimate:
        """Return the estimate with one cause of error more."""
        return dataclasses.replace(self, parts=(*self.parts, (variance, freedom)))

    @property
    def freedom(self) -> float:
        """Return the degrees of freedom of the sum of all causes (Satterthwaite 1946)."""
        total = self.variance
        spread = sum(v**2 / df for v, df in self.parts if df < math.inf)
        return total**2 / spread if spread > 0 else max((df for _, df in self.parts), default=math.inf)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the ends of the symmetric interval; NaN where nothing is known of the error."""
        return student_t.interval(self.value, math.sqrt(self.variance), self.freedom, level)

    def share_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the ends of an interval inside [0, 1]: Wilson's, at the number of trials that has this variance."""
        p, t = self.value, student_t.quantile(self.freedom, level)
        if not self.parts or math.isnan(p):
            return math.nan, math.nan
        trials = p * (1 - p) / self.variance if self.variance > 0 and 0 < p < 1 else self.n
        turn = t**2 / max(trials, 1e-9)
        half = t * math.sqrt(p * (1 - p) / max(trials, 1e-9) + turn / (4 * max(trials, 1e-9)))
        return max(0.0, (p + turn / 2 - half) / (1 + turn)), min(1.0, (p + turn / 2 + half) / (1 + turn))


@dataclasses.dataclass(frozen=True)
class Scores:
    """One model's scores on what was held out from its attackers, at one step of the attack.

    Attributes:
      by_seed: [S], of each attacker (or training run).
      by_fact: [S, F] where each fact's score was recorded, NaN nowhere; else None.
      prompts: [F], how often each fact was asked; its weight.
      facts: how many facts there are, where only `by_seed` is known; 0 if the items are not to be counted (text).
      steps: among how many steps of the attack these were chosen as the worst, by these very scores.
    """

    by_seed: np.ndarray
    by_fact: np.ndarray | None = None
    prompts: np.ndarray | None = None
    facts: int = 0
    steps: int = 1

    @classmethod
    def of_facts(cls, by_fact: np.ndarray, prompts: np.ndarray) -> Self:
        """Return the scores of a single seed from those of its facts, [F], each asked `prompts` times."""
        return cls(np.average(by_fact, weights=prompts)[None], by_fact[None], prompts, len(prompts))

    @functools.cached_property
    def value(self) -> float:
        """Return the mean over all."""
        return float(np.mean(self.by_seed))


def contrast(terms: Sequence[tuple[float, Scores]], *, run_sd: float = 0.0) -> Estimate:
    """Estimate a weighted sum of models' scores, paired by seed and by fact wherever both were recorded for all.

    Args:
      terms: (weight, scores). Models with other numbers of seeds than the rest are compared by the mean over theirs.
      run_sd: the standard deviation that training a model again has, for each model; 0 where training is not at issue
        or where `by_seed` are training runs.
    """
    value = float(sum(w * s.value for w, s in terms))
    trained = sum(w**2 for w, _ in terms) * run_sd**2
    if not math.isfinite(value):
        return Estimate(math.nan)
    seeds, facts = _seeds_part(terms), _facts_part(terms)
    parts = (*seeds, *facts, *([(trained, math.inf)] if trained else []))
    return Estimate(value, parts, int(min((df for _, df in facts or seeds), default=-1)) + 1)


def _seeds_part(terms: Sequence[tuple[float, Scores]]) -> list[tuple[float, float]]:
    """Return the variance of the mean over seeds: of paired sums, or of each model where the numbers differ."""
    counts = {len(s.by_seed) for _, s in terms}
    if len(counts) == 1:
        sums = np.sum([w * s.by_seed for w, s in terms], axis=0)
        return [(float(sums.var(ddof=1)) / len(sums), len(sums) - 1)] if len(sums) > 1 else []
    several = [(w, s.by_seed) for w, s in terms if len(s.by_seed) > 1]
    return [(w**2 * float(x.var(ddof=1)) / len(x), len(x) - 1) for w, x in several]


def _facts_part(terms: Sequence[tuple[float, Scores]]) -> list[tuple[float, float]]:
    """Return the variance over facts: of their paired sums; else no more than independent answers would have.

    A mean over facts that are asked unequally often is a ratio: its variance is that of the linearised residuals.
    """
    known = [(w, s.by_fact, s.prompts) for w, s in terms]
    tables = [(w * y.mean(axis=0), p) for w, y, p in known if y is not None and p is not None]
    asked = tables[0][1] if tables else np.zeros(0)
    if len(asked) > 1 and len(tables) == len(terms) and all(np.array_equal(asked, p) for _, p in tables):
        together, count = np.sum([y for y, _ in tables], axis=0), len(asked)
        residuals = asked * (together - asked @ together / asked.sum()) / asked.mean()
        return [(float(residuals @ residuals) / (count * (count - 1)), count - 1)]
    parts: list[tuple[float, float]] = []
    for w, s in terms:
        count = len(s.prompts) if s.prompts is not None else s.facts
        if count > 1:
            p = min(max(s.value, 0.0), 1.0)
            parts.append((w**2 * p * (1 - p) / count, count - 1))
    return parts


def proportion(share: float, trials: int) -> Estimate:
    """Estimate a share of independent trials."""
    if not trials or not math.isfinite(share):
        return Estimate(share)
    return Estimate(share, ((share * (1 - share) / trials, max(trials - 1, 1)),), trials)


def band(scores: Scores, scale: Scale, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of one model's score, within the scale's bounds; NaN where nothing is known of its error."""
    estimate = contrast([(1.0, scores)])
    of_facts = scores.by_fact is not None or scores.facts > 0
    if not of_facts and estimate.variance < 1e-24:  # attackers who begin with one model, or all come to the same end
        return math.nan, math.nan
    share = of_facts and scale.is_share
    low, high = estimate.share_interval(level) if share else estimate.interval(level)
    return max(low, scale.bounds[0]), min(high, scale.bounds[1])
