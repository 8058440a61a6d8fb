"""The double bind's statistics. The unit of analysis is the training seed.

Every mean has Student's interval, every ratio Fieller's, and the ends of these intervals are also the test: what a page
shows and what a verdict decides cannot differ. At three to ten seeds a bootstrap covers .7 to .9 of what it says.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import optimize, stats
from statsmodels.stats import multitest

from distill_jax.statistics import student_t
from distill_jax.statistics.conclusions import Effect

CONFIDENCE = 0.95
Values = Sequence[float] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; nan ends where fewer than two seeds cannot give one."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def effect(self, name: str, claim: Literal["above", "below", "within"], threshold: float = 0.0) -> Effect:
        """Return what a conclusion says of this quantity."""
        return Effect(name, self.mean, self.low, self.high, claim, threshold, self.seeds)


def estimate(values: Values, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean of one number a seed with Student's two-sided interval."""
    x = _floats(values)
    if len(x) < 2:
        return Estimate(x[0] if x else math.nan, math.nan, math.nan, len(x))
    mean = math.fsum(x) / len(x)
    low, high = student_t.interval(mean, math.sqrt(_covariance(x, x) / len(x)), len(x) - 1, confidence)
    return Estimate(mean, low, high, len(x))


def _floats(values: Values) -> list[float]:
    return np.asarray(values, float).tolist()


def _covariance(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the covariance of a few numbers; plain Python is ten times as fast for them as NumPy."""
    p, q = math.fsum(x) / len(x), math.fsum(y) / len(y)
    return math.fsum((a - p) * (b - q) for a, b in zip(x, y, strict=True)) / (len(x) - 1)


def ratio(numerator: Values, denominator: Values, confidence: float = CONFIDENCE) -> Estimate:
    """Return mean(numerator) / mean(denominator), both [seeds] and paired, with Fieller's interval (1954).

    It holds every r for which mean(numerator - r denominator) is not shown to differ from zero; its ends are nan where
    the denominator itself is not, as then no ratio can be excluded.
    """
    x, y = _floats(numerator), _floats(denominator)
    top, bottom = (math.fsum(v) / len(v) if v else 0.0 for v in (x, y))
    mean = top / bottom if bottom else math.nan
    if len(x) < 2 or not math.isfinite(mean):
        return Estimate(mean, math.nan, math.nan, len(x))
    scale = student_t.quantile(len(x) - 1, confidence) ** 2 / len(x)
    a = bottom**2 - scale * _covariance(y, y)
    b, c = top * bottom - scale * _covariance(x, y), top**2 - scale * _covariance(x, x)
    if a <= 0:
        return Estimate(mean, math.nan, math.nan, len(x))
    half = math.sqrt(max(b * b - a * c, 0.0)) / a
    return Estimate(mean, b / a - half, b / a + half, len(x))


def rank_trend(x: Sequence[float], y: np.ndarray) -> Estimate:
    """Return the mean over seeds of Spearman's rank correlation of y [seeds, len(x)] with x, and its interval.

    The interval is the wider of Student's and of what chance alone gives (the correlation of n ranks has variance
    1 / (n - 1) if there is no trend), as few ranks often agree by chance. Two seeds have none.
    """
    ranks = stats.rankdata(y, axis=1) - (len(x) + 1) / 2
    order = stats.rankdata(x) - (len(x) + 1) / 2
    size = np.sqrt(np.sum(ranks**2, axis=1) * np.sum(order**2))
    each = np.divide(ranks @ order, size, out=np.zeros(len(ranks)), where=size > 0)
    trend = estimate(each)
    if len(each) < 3 or len(x) < 2:
        return Estimate(trend.mean, np.nan, np.nan, len(each))
    chance = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) / math.sqrt(len(each) * (len(x) - 1))
    half = max(chance, trend.high - trend.mean)
    return Estimate(trend.mean, max(trend.mean - half, -1.0), min(trend.mean + half, 1.0), len(each))


def one_sided_p(differences: Values) -> float:
    """Return the one-sided p-value of a mean above zero (t-test) on paired differences, one a seed."""
    x = np.asarray(differences, float)
    if len(x) < 2:
        return 1.0
    if np.ptp(x) == 0:
        return 0.0 if x[0] > 0 else 1.0
    return float(stats.ttest_1samp(x, 0.0, alternative="greater").pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return Holm's adjusted p-values: below .05 means significant with a family-wise error of 5 %."""
    if len(p_values) < 2:
        return np.asarray(p_values, float)
    return multitest.multipletests(p_values, method="holm")[1]  # a sixth of a second: it collects garbage


# ------------------------------------------------------------------------------------------------ rates and their size


@functools.cache
def rate_bounds(successes: int, trials: int, level: float = 0.05) -> tuple[float, float]:
    """Return Clopper and Pearson's (1934) one-sided bounds of a rate, each at 1 - level; (0, 1) of no trials.

    After no success in n trials the upper one is 1 - level^(1/n).
    """
    low = float(stats.beta.ppf(level, successes, trials - successes + 1)) if successes else 0.0
    high = float(stats.beta.ppf(1 - level, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def seeds_needed(rate: float, level: float = 0.05) -> int:
    """Return how many seeds without a leak show that at most this rate of trainings leaks: (1 - rate)^n <= level."""
    return math.ceil(math.log(level) / math.log(1 - rate) - 1e-9)


@functools.cache
def _standard_errors(seeds: int, power: float) -> float:
    critical = student_t.quantile(seeds - 1, CONFIDENCE)
    return float(optimize.brentq(lambda nc: stats.nct.sf(critical, seeds - 1, nc) - power, 0.0, 3 * critical + 3))


def detectable(values: Values, threshold: float, power: float = 0.8, least: float = 0.0) -> float:
    """Return the mean that would be shown to exceed a threshold with this power, at the seeds' own spread.

    By the noncentral t distribution; inf below two seeds.

    Args:
      least: the spread to count with where the seeds have less.
    """
    x = np.asarray(values, float)
    if len(x) < 2:
        return math.inf
    spread = max(float(x.std(ddof=1)), least)
    return threshold + _standard_errors(len(x), power) * spread / math.sqrt(len(x))


def prompts_needed(margin: float, rate: float = 0.5, power: float = 0.8) -> int:
    """Return the prompts an arm needs for TOST to show two equal rates to be within ± margin at p < .05.

    The normal approximation of two independent proportions (Chow, Shao and Wang, "Sample Size Calculations", ch. 4).
    """
    z = stats.norm.ppf(0.95) + stats.norm.ppf(1 - (1 - power) / 2)
    return int(np.ceil(2 * rate * (1 - rate) * (z / margin) ** 2))
