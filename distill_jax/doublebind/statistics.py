"""The double bind's statistics. The unit of analysis is the training seed; every test is scipy's or statsmodels'."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats import multitest, weightstats

RESAMPLES = 9999


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval; nan bounds where fewer than two seeds cannot give one."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """Return the mean of one number a seed, with a BCa bootstrap interval (Efron 1987).

    Values that are all equal have an interval without width. The resampling has a fixed seed of its own.
    """
    x = np.asarray(values, float)
    if not len(x):
        return Estimate(np.nan, np.nan, np.nan, 0)
    if len(x) < 2 or np.ptp(x) == 0:
        bound = np.nan if len(x) < 2 else float(x[0])
        return Estimate(float(x.mean()), bound, bound, len(x))
    low, high = _interval((x,), np.mean)
    return Estimate(float(x.mean()), low, high, len(x))


def _interval(data: Any, statistic: Any, **given: Any) -> tuple[float, float]:
    """Return a BCa interval, or a percentile one where the acceleration is not defined (seeds that nearly agree)."""
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rng = np.random.default_rng(0)
            found = stats.bootstrap(data, statistic, n_resamples=RESAMPLES, method=method, rng=rng, **given)
        low, high = map(float, found.confidence_interval)
        if np.isfinite(low) and np.isfinite(high):
            break
    return low, high


def equivalence(differences: Sequence[float] | np.ndarray, margin: float) -> float:
    """Return the p-value of "not within ± margin of zero" (two one-sided t-tests, TOST) on paired differences.

    Below .05 the differences are shown to be that small; above, nothing is shown. Differences that are all equal leave
    no doubt either way: 0 or 1.
    """
    x = np.asarray(differences, float)
    if len(x) < 2:
        return 1.0
    if np.ptp(x) == 0:
        return 0.0 if abs(x[0]) < margin else 1.0
    return float(weightstats.DescrStatsW(x).ttost_mean(-margin, margin)[0])


def rank_trend(x: Sequence[float], y: np.ndarray) -> Estimate:
    """Return the mean over seeds of Spearman's rank correlation of y [seeds, len(x)] with x."""
    return estimate([stats.spearmanr(x, row).statistic if np.ptp(row) else 0.0 for row in y])


def above(differences: Sequence[float] | np.ndarray) -> float:
    """Return the one-sided p-value of a mean above zero (t-test) on paired differences, one a seed."""
    x = np.asarray(differences, float)
    if len(x) < 2:
        return 1.0
    if np.ptp(x) == 0:
        return 0.0 if x[0] > 0 else 1.0
    return float(stats.ttest_1samp(x, 0.0, alternative="greater").pvalue)


def upper_bound(differences: Sequence[float] | np.ndarray, level: float = 0.05) -> float:
    """Return the upper end of the one-sided 1 - level interval of the mean (Student's t); inf below two seeds."""
    x = np.asarray(differences, float)
    if len(x) < 2:
        return float("inf")
    return float(x.mean() + stats.t.ppf(1 - level, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))


def lower_bound(differences: Sequence[float] | np.ndarray, level: float = 0.05) -> float:
    """Return the lower end of the one-sided 1 - level interval of the mean (Student's t)."""
    return -upper_bound(-np.asarray(differences, float), level)


def ratio(numerator: Sequence[float] | np.ndarray, denominator: Sequence[float] | np.ndarray) -> Estimate:
    """Return mean(numerator) / mean(denominator), both [seeds] and paired, with a BCa bootstrap interval over seeds."""
    n, d = np.asarray(numerator, float), np.asarray(denominator, float)
    mean = float(n.mean() / d.mean()) if d.mean() else np.nan
    if len(n) < 2 or not np.isfinite(mean):
        return Estimate(mean, np.nan, np.nan, len(n))
    if np.ptp(n) == 0 and np.ptp(d) == 0:
        return Estimate(mean, mean, mean, len(n))

    def of(n: np.ndarray, d: np.ndarray, axis: int = -1) -> np.ndarray:
        return n.mean(axis=axis) / d.mean(axis=axis)

    low, high = _interval((n, d), of, paired=True, vectorized=True)
    return Estimate(mean, low, high, len(n))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return Holm's adjusted p-values: below .05 means significant with a family-wise error of 5 %."""
    if len(p_values) < 2:
        return np.asarray(p_values, float)
    return multitest.multipletests(p_values, method="holm")[1]  # a sixth of a second: it collects garbage


def prompts_needed(margin: float, rate: float = 0.5, power: float = 0.8) -> int:
    """Return the prompts an arm needs for TOST to show two equal rates to be within ± margin at p < .05.

    The normal approximation of two independent proportions (Chow, Shao and Wang, "Sample Size Calculations", ch. 4).
    """
    z = stats.norm.ppf(0.95) + stats.norm.ppf(1 - (1 - power) / 2)
    return int(np.ceil(2 * rate * (1 - rate) * (z / margin) ** 2))
