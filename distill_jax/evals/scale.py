"""What a measure's numbers mean: which way is more ability, how far they reach, how they are written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

MISSING = "–"
NARROW = "\u202f"  # a narrow no-break space keeps "92 %" on one line


def finite(value: float) -> float | None:
    """Return a number as JSON has it: None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def finite_mean(values: np.ndarray) -> float | None:
    """Return the mean of some scores; None where there are none, or one is not finite."""
    return finite(values.mean()) if values.size else None


def percent(value: float | None) -> str:
    """Write a fraction as whole per cent, with a decimal where rounding would hide it."""
    if value is None:
        return MISSING
    return f"{value * 100:.{1 if 0 < value < 0.01 else 0}f}{NARROW}%"


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927); (0, 1) of no trials."""
    if not trials:
        return 0.0, 1.0
    z, share = NormalDist().inv_cdf(0.975), successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def _percent_cell(value: float) -> str:
    return f"{value * 100:.1f}"


def _bits_cell(value: float) -> str:
    return f"{value:.3f}"


def _bits(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


@dataclasses.dataclass(frozen=True)
class Scale:
    """How the numbers of a measure read.

    Attributes:
      key: names it in results and summaries.
      name: in a sentence; item: what is held out from an attacker.
      sign: +1 if a larger number is more ability, -1 if a smaller one is.
      bounds: the smallest and the largest number there can be.
      chance_level: what a model scores that knows nothing; None where no number is known beforehand.
      relative: whether a tolerance is a share of the goal, or a difference.
      margin: the largest difference that counts as none, and the least that counts as one.
      run_sd: the standard deviation between models trained alike, assumed where a model was trained once.
      show: writes a number in a sentence.
      cell: writes it in a table whose heading has the unit.
      tick, hover: Plotly's formats, of an axis and of what the pointer shows.
    """

    key: str
    name: str
    item: str
    sign: int
    bounds: tuple[float, float]
    chance_level: float | None
    relative: bool
    margin: float
    run_sd: float
    show: Callable[[float | None], str]
    cell: Callable[[float], str]
    tick: str
    hover: str

    @property
    def is_share(self) -> bool:
        """Whether a number is the share of items that were answered right; what is measured in bits has no items."""
        return math.isfinite(self.bounds[1])

    def ability(self, value: float | None) -> float:
        """Return a number that is larger the more a model can; least for a score that is missing."""
        return -math.inf if value is None else self.sign * value

    def best(self, values: np.ndarray, axis: int | None = None) -> np.ndarray:
        """Return the score of most ability along an axis."""
        return values.max(axis=axis) if self.sign > 0 else values.min(axis=axis)

    def goal(self, score: float, tolerance: float) -> float:
        """Return the score that is a tolerance worse: what counts as having recovered `score`."""
        return score * (1 - self.sign * tolerance) if self.relative else score - self.sign * tolerance

    def reaches(self, values: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Return which values show at least the ability of their goals."""
        return values >= goals if self.sign > 0 else values <= goals


ACCURACY = Scale(
    key="accuracy",
    name="accuracy",
    item="fact",
    sign=1,
    bounds=(0.0, 1.0),
    chance_level=0.0,
    relative=False,
    margin=0.05,
    run_sd=0.03,
    show=percent,
    cell=_percent_cell,
    tick=".0%",
    hover=".1%",
)
CHOICE = dataclasses.replace(ACCURACY, key="multiple_choice", item="question", chance_level=0.25)  # by chance, of four
BITS_PER_BYTE = Scale(
    key="bits_per_byte",
    name="bits per byte",
    item="document",
    sign=-1,
    bounds=(0.0, math.inf),
    chance_level=None,
    relative=True,
    margin=0.05,
    run_sd=0.03,
    show=_bits,
    cell=_bits_cell,
    tick=".2f",
    hover=".3f",
)
SCALES = {scale.key: scale for scale in (ACCURACY, CHOICE, BITS_PER_BYTE)}
