"""Whether one number ranks models as another does: Spearman's correlation with an interval, for few models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

FEWEST = 5  # models of which an interval is given at all


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the correlation of ranks, those of equal numbers averaged; NaN where one has no order."""
    a, b = (_ranks(np.asarray(each, float)) for each in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float((a @ a) * (b @ b)))
    return float(a @ b) / size if size else math.nan


def spearman_interval(rho: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a rank correlation of `count` pairs (Bonett and Wright 2000); NaN of too few.

    Of a perfect order it is that of the next best, with the perfect one included: a transformation would give no width.
    """
    if count < FEWEST or math.isnan(rho):
        return math.nan, math.nan
    next_best = 1 - 12 / (count * (count**2 - 1))  # two neighbours changed places
    inner = min(max(rho, -next_best), next_best)
    half = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt((1 + inner**2 / 2) / (count - 3))
    low, high = (math.tanh(math.atanh(inner) + side * half) for side in (-1, 1))
    return (-1.0 if rho < -next_best else low), (1.0 if rho > next_best else high)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]
