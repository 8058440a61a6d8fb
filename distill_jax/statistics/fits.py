"""Fits over a sweep: steps to recover against α, and compute against model size, each with 95 % intervals.

A run is a mapping as the sweep's summary holds it. Only runs that recovered have a step count and a cost of recovering;
the others are left out, counted by reason, because dropping the slowest runs makes a fit look better than the truth.
Runs of one fit differ in what it is drawn against and in their training seed alone: where other settings differ among
runs of one method, each is a fit of its own, and its `settings` say which.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from distill_jax.perf.ledger import training_flops
from distill_jax.statistics import student_t

Run = Mapping[str, Any]
Interval = dict[str, float | None]  # value, low, high
LARGER_SIZES = (1e8, 1e9, 2.6e9, 7e10)
DISTILLED = ("undo", "random student")  # what is trained until it recovered
SIZE = "model."  # of settings, those of the model


@dataclass(frozen=True)
class Line:
    """Hold the least-squares line y = intercept + slope · x through `x` and `y`, each [N] with N ≥ 3."""

    x: np.ndarray
    y: np.ndarray

    def __post_init__(self) -> None:
        """Refuse what leaves no residual degree of freedom or no slope: ValueError."""
        if len(self.x) < 3 or len(set(self.x)) < 2:
            raise ValueError("a line with intervals needs three points at two or more places")

    @property
    def slope(self) -> float:
        """Return the slope, in units of y per unit of x."""
        return float(np.sum((self.x - self.x.mean()) * (self.y - self.y.mean())) / self._spread)

    def at(self, x: np.ndarray | float) -> np.ndarray:
        """Return the line's height at `x`."""
        return np.asarray(self.y.mean() + self.slope * (np.asarray(x) - self.x.mean()))

    def r2(self) -> float | None:
        """Return the share of y's variance that the line explains, None where y does not vary."""
        total = np.sum((self.y - self.y.mean()) ** 2)
        return float(1 - np.sum((self.y - self.at(self.x)) ** 2) / total) if total > 0 else None

    def half_width(self, x: np.ndarray | float, new: bool = False) -> np.ndarray:
        """Return the half width of the 95 % interval at `x`: of the mean, or of one new observation."""
        variance = float(new) + 1 / len(self.x) + (np.asarray(x) - self.x.mean()) ** 2 / self._spread
        return self._quantile * self._noise * np.sqrt(variance)

    def slope_interval(self) -> Interval:
        """Return the slope and the ends of its 95 % interval."""
        return _interval(self.slope, self._quantile * self._noise / math.sqrt(self._spread))

    def leave_one_out(self) -> np.ndarray:
        """Return the height at each x [N] of the line through the other points."""
        leverage = 1 / len(self.x) + (self.x - self.x.mean()) ** 2 / self._spread
        return self.y - (self.y - self.at(self.x)) / (1 - leverage)

    @property
    def _spread(self) -> float:
        return float(np.sum((self.x - self.x.mean()) ** 2))

    @property
    def _noise(self) -> float:
        return math.sqrt(float(np.sum((self.y - self.at(self.x)) ** 2)) / (len(self.x) - 2))

    @property
    def _quantile(self) -> float:
        return student_t.quantile(len(self.x) - 2)


def fit_all(runs: Sequence[Run]) -> dict[str, Any]:
    """Return every fit of a sweep, as the summary's `fits` holds them."""
    return {"steps_against_alpha": steps_against_alpha(runs), "compute_against_size": compute_against_size(runs)}


def steps_against_alpha(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return a fit of steps to recover on α for each method, β, model size and setting among UNDO's runs.

    Each is {method, beta, parameters, settings, n, left_out, fit, reason}. `fit` holds the straight line through all
    seeds (`slope` and `intercept` with 95 % intervals, `r2`, and its `curve` with the interval of the mean), the
    `exponential` one (least squares of log(steps), `r2` on that scale; None where a run took no step), and for both the
    root mean square of the leave-one-out errors in steps, by which `better` names one. It is None where there are fewer
    than three distinct α, as `reason` says.
    """
    undo = [run for run in runs if run["kind"] == "undo"]
    return [
        {**key, **_fitted(*recovered(same, "alpha", "steps"), "alpha", "α", _steps_fit)}
        for key, same in _groups(undo, "method", "beta", "parameters")
    ]


def compute_against_size(runs: Iterable[Run], at: Sequence[float] = LARGER_SIZES) -> list[dict[str, Any]]:
    """Return a log-log fit of compute on model size for each kind, method, α, β and setting among the distilled runs.

    Compute is the student's and teacher's FLOPs of the whole chain. A size counts once, as the geometric mean over its
    seeds: more seeds say nothing about a size that nobody ran. Each is {kind, method, alpha, beta, settings, n,
    left_out, fit, reason}; `fit` holds the `exponent` with its 95 % interval, `r2`, the `points`, the `predictions` at
    `at` parameters with their 95 % prediction intervals, and a `warning`. It is None with fewer than three sizes, as
    `reason` says.
    """
    distilled = [{**run, "flops": _training_flops(run)} for run in runs if run["kind"] in DISTILLED]
    return [
        {
            **key,
            **_fitted(*recovered(same, "parameters", "flops"), "parameters", "model sizes", partial(_size_fit, at=at)),
        }
        for key, same in _groups(distilled, "kind", "method", "alpha", "beta", axis=SIZE)
    ]


def recovered(runs: Iterable[Run], *fields: str) -> tuple[list[Run], dict[str, int]]:
    """Return the runs that recovered and have all `fields` as finite numbers, and how many have not, by reason."""
    reasons = [(run, _why_left_out(run, fields)) for run in runs]
    return [run for run, why in reasons if not why], dict(Counter(why for _, why in reasons if why))


def _why_left_out(run: Run, fields: Iterable[str]) -> str | None:
    if run.get("diverged"):
        return "diverged"
    if run.get("recovered") is None:
        return "recovery not recorded"
    if not run["recovered"]:
        return "did not recover"
    return next((f"no {field}" for field in fields if not _finite(run.get(field))), None)


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _fitted(
    runs: list[Run], left_out: dict[str, int], field: str, words: str, fit: Callable[[list[Run]], dict[str, Any]]
) -> dict[str, Any]:
    places = len({run[field] for run in runs})
    reason = None if places >= 3 else f"{places} distinct {words}, and a fit needs three"
    return {"n": len(runs), "left_out": left_out, "fit": None if reason else fit(runs), "reason": reason}


def _steps_fit(runs: list[Run]) -> dict[str, Any]:
    alpha, steps = _column(runs, "alpha"), _column(runs, "steps")
    line, grid = Line(alpha, steps), np.linspace(alpha.min(), alpha.max(), 25)
    half = line.half_width(grid)
    straight: dict[str, Any] = {
        "slope": line.slope_interval(),
        "intercept": _interval(float(line.at(0.0)), float(line.half_width(0.0))),
        "r2": line.r2(),
        "leave_one_out": _rms(steps - line.leave_one_out()),
        "curve": _lists(alpha=grid, steps=line.at(grid), low=line.at(grid) - half, high=line.at(grid) + half),
    }
    if steps.min() <= 0:  # no logarithm
        return {**straight, "exponential": None, "better": None}
    bent = Line(alpha, np.log(steps))
    exponential: dict[str, Any] = {
        "rate": bent.slope_interval(),  # log(steps) per unit of α
        "r2": bent.r2(),
        "leave_one_out": _rms(steps - np.exp(bent.leave_one_out())),
        "curve": _lists(alpha=grid, steps=np.exp(bent.at(grid))),
    }
    better = "exponential" if exponential["leave_one_out"] < straight["leave_one_out"] else "straight line"
    return {**straight, "exponential": exponential, "better": better}


def _size_fit(runs: list[Run], at: Sequence[float]) -> dict[str, Any]:
    sizes = np.array(sorted({float(run["parameters"]) for run in runs}))
    flops = [np.mean([math.log10(run["flops"]) for run in runs if run["parameters"] == size]) for size in sizes]
    line = Line(np.log10(sizes), np.array(flops))
    where = np.log10(np.asarray(at, float))
    value, half = line.at(where), line.half_width(where, new=True)
    with np.errstate(over="ignore"):  # an upper end beyond all numbers is infinite
        ends = zip(at, 10.0**value, 10.0 ** (value - half), 10.0 ** (value + half), strict=True)
    predictions = [dict(zip(("parameters", "flops", "low", "high"), map(float, end), strict=True)) for end in ends]
    orders = [math.log10(size / sizes.max()) for size in at]
    warning = (
        f"Extrapolated from {len(sizes)} sizes, {sizes.min():.2g} to {sizes.max():.2g} parameters, by "
        f"{min(orders):.1f} to {max(orders):.1f} orders of magnitude. The interval assumes that the same power law "
        "holds all the way, which nothing here can test."
    )
    if short := [p["parameters"] for p in predictions if p["flops"] < p["parameters"] * _step_flops(runs)]:
        warning += (
            f" At {min(short):.2g} parameters it already means less than one training step: there it cannot hold."
        )
    points = _lists(parameters=sizes, flops=10.0 ** np.array(flops))
    exponent = line.slope_interval()
    return {"exponent": exponent, "r2": line.r2(), "points": points, "predictions": predictions, "warning": warning}


def _step_flops(runs: list[Run]) -> float:
    """Return the least that a training step of these runs cost for each parameter; 0 where no run took one."""
    return min((run["flops"] / run["parameters"] / run["steps"] for run in runs if run.get("steps")), default=0.0)


def _training_flops(run: Run) -> float | None:
    whole = (run.get("compute") or {}).get("whole") or {}
    known = all(whole.get(cause) is not None for cause in ("student", "teacher"))
    return training_flops(whole) or None if known else None


def _groups(runs: Iterable[Run], *fields: str, axis: str = "-") -> list[tuple[dict[str, Any], list[Run]]]:
    """Return the runs of equal fields and settings, with both; of the settings those in which such runs differ.

    Args:
      axis: how settings begin that may differ within a group.
    """
    out = []
    for key, same in _grouped(runs, lambda run: {field: run.get(field) for field in fields}):
        each = [run.get("settings") or {} for run in same]
        names = [name for name in sorted(set().union(*each)) if not name.startswith(axis)]
        varying = [name for name in names if len({repr(settings.get(name)) for settings in each}) > 1]
        for own, alike in _grouped(same, partial(_chosen_settings, varying)):
            out.append(({**key, "settings": own}, alike))
    return out


def _chosen_settings(names: Sequence[str], run: Run) -> dict[str, Any]:
    settings = run.get("settings") or {}
    return {name: settings[name] for name in names if name in settings}


def _grouped(runs: Iterable[Run], key: Callable[[Run], dict[str, Any]]) -> list[tuple[dict[str, Any], list[Run]]]:
    """Return the runs of each key, in the order in which the keys first come."""
    groups: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run in runs:
        own = key(run)
        groups.setdefault(repr(own), (own, []))[1].append(run)
    return list(groups.values())


def _column(runs: Iterable[Run], field: str) -> np.ndarray:
    return np.array([run[field] for run in runs], float)


def _interval(value: float, half: float) -> Interval:
    return {"value": value, "low": value - half, "high": value + half}


def _rms(errors: np.ndarray) -> float:
    return math.sqrt(float(np.mean(errors**2)))


def _lists(**columns: np.ndarray) -> dict[str, list[float]]:
    return {name: column.tolist() for name, column in columns.items()}
