"""Student's t: the one place that turns an estimate and its standard error into a two-sided interval."""

from __future__ import annotations

import functools
import math
from typing import TypeVar

import numpy as np
from scipy import special

Number = TypeVar("Number", float, np.ndarray)


@functools.cache
def quantile(freedom: float, level: float = 0.95) -> float:
    """Return how many standard errors a two-sided interval reaches; the normal's at endless degrees of freedom."""
    tail = (1 + level) / 2
    return float(special.ndtri(tail) if freedom > 1e6 else special.stdtrit(freedom, tail))


def interval(mean: Number, standard_error: Number, freedom: float, level: float = 0.95) -> tuple[Number, Number]:
    """Return the ends of the interval of a mean, elementwise; NaN below one degree of freedom."""
    half = standard_error * (quantile(freedom, level) if freedom >= 1 else math.nan)
    return mean - half, mean + half


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of the mean over the first axis of [n, …]; NaN ends where there is a single value."""
    n = len(values)
    mean = values.mean(axis=0)
    spread = values.std(axis=0, ddof=1) if n > 1 else np.zeros_like(mean)
    return interval(mean, spread / np.sqrt(n), n - 1, level)
