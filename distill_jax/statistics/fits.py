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
from typing import Generic, TypedDict, TypeVar

import numpy as np

from distill_jax.perf.ledger import training_flops
from distill_jax.statistics import student_t
from distill_jax.statistics.fit_types import (
    Exponential,
    Field,
    Fits,
    Interval,
    RunOutcome,
    SizeEntry,
    SizeFit,
    StepsEntry,
    StepsFit,
    StepsLine,
)
from distill_jax.types import JsonObject

T = TypeVar("T")

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


def fit_all(runs: Sequence[RunOutcome]) -> Fits:
    """Return every fit of a sweep, as the summary's `fits` holds them."""
    return {"steps_against_alpha": steps_against_alpha(runs), "compute_against_size": compute_against_size(runs)}


def steps_against_alpha(runs: Iterable[RunOutcome]) -> list[StepsEntry]:
    """Return a fit of steps to recover on α for each method, β, model size and setting among UNDO's runs.

    The straight line goes through all seeds, and its curve has the interval of the mean; the leave-one-out errors say
    whether it or the exponential is better.
    """
    undo = [run for run in runs if run["kind"] == "undo"]
    entries: list[StepsEntry] = []
    for first, settings, same in _groups(undo, "method", "beta", "parameters"):
        fitted = _fitted(*recovered(same, "alpha", "steps"), "alpha", "α", _steps_fit)
        method, beta, parameters = first.get("method"), first.get("beta"), first.get("parameters")
        entries.append({"method": method, "beta": beta, "parameters": parameters, "settings": settings, **fitted})
    return entries


def compute_against_size(runs: Iterable[RunOutcome], at: Sequence[float] = LARGER_SIZES) -> list[SizeEntry]:
    """Return a log-log fit of compute on model size for each kind, method, α, β and setting among the distilled runs.

    Compute is the student's and teacher's FLOPs of the whole chain. A size counts once, as the geometric mean over its
    seeds: more seeds say nothing about a size that nobody ran.

    Args:
      at: numbers of parameters, at which compute is predicted.
    """
    distilled: list[RunOutcome] = [{**run, "flops": _training_flops(run)} for run in runs if run["kind"] in DISTILLED]
    entries: list[SizeEntry] = []
    for first, settings, same in _groups(distilled, "kind", "method", "alpha", "beta", axis=SIZE):
        fitted = _fitted(
            *recovered(same, "parameters", "flops"), "parameters", "model sizes", partial(_size_fit, at=at)
        )
        kind, method, alpha, beta = first["kind"], first.get("method"), first.get("alpha"), first.get("beta")
        entries.append({"kind": kind, "method": method, "alpha": alpha, "beta": beta, "settings": settings, **fitted})
    return entries


def recovered(runs: Iterable[RunOutcome], *fields: Field) -> tuple[list[RunOutcome], dict[str, int]]:
    """Return the runs that recovered and have all `fields` as finite numbers, and how many have not, by reason."""
    reasons = [(run, _why_left_out(run, fields)) for run in runs]
    return [run for run, why in reasons if not why], dict(Counter(why for _, why in reasons if why))


def _why_left_out(run: RunOutcome, fields: Iterable[Field]) -> str | None:
    if run.get("diverged"):
        return "diverged"
    if run.get("recovered") is None:
        return "recovery not recorded"
    if not run["recovered"]:
        return "did not recover"
    return next((f"no {field}" for field in fields if not _finite(run.get(field))), None)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class _Fitted(TypedDict, Generic[T]):
    n: int
    left_out: dict[str, int]
    fit: T | None
    reason: str | None


def _fitted(
    runs: list[RunOutcome], left_out: dict[str, int], field: Field, words: str, fit: Callable[[list[RunOutcome]], T]
) -> _Fitted[T]:
    places = len({run[field] for run in runs})
    reason = None if places >= 3 else f"{places} distinct {words}, and a fit needs three"
    return {"n": len(runs), "left_out": left_out, "fit": None if reason else fit(runs), "reason": reason}


def _steps_fit(runs: list[RunOutcome]) -> StepsFit:
    alpha, steps = _column(runs, "alpha"), _column(runs, "steps")
    line, grid = Line(alpha, steps), np.linspace(alpha.min(), alpha.max(), 25)
    half = line.half_width(grid)
    straight: StepsLine = {
        "slope": line.slope_interval(),
        "intercept": _interval(float(line.at(0.0)), float(line.half_width(0.0))),
        "r2": line.r2(),
        "leave_one_out": _rms(steps - line.leave_one_out()),
        "curve": _lists(alpha=grid, steps=line.at(grid), low=line.at(grid) - half, high=line.at(grid) + half),
    }
    if steps.min() <= 0:  # no logarithm
        return {**straight, "exponential": None, "better": None}
    bent = Line(alpha, np.log(steps))
    exponential: Exponential = {
        "rate": bent.slope_interval(),  # log(steps) per unit of α
        "r2": bent.r2(),
        "leave_one_out": _rms(steps - np.exp(bent.leave_one_out())),
        "curve": _lists(alpha=grid, steps=np.exp(bent.at(grid))),
    }
    better = "exponential" if exponential["leave_one_out"] < straight["leave_one_out"] else "straight line"
    return {**straight, "exponential": exponential, "better": better}


def _size_fit(runs: list[RunOutcome], at: Sequence[float]) -> SizeFit:
    sizes = np.unique(_column(runs, "parameters"))
    parameters, costs = _column(runs, "parameters"), np.array([math.log10(x) for x in _column(runs, "flops")])
    flops = [np.mean(costs[parameters == size]) for size in sizes]
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


def _step_flops(runs: list[RunOutcome]) -> float:
    """Return the least that a training step of these runs cost for each parameter; 0 where no run took one."""
    trained = [run for run in runs if run.get("steps")]
    each = _column(trained, "flops") / _column(trained, "parameters") / _column(trained, "steps")
    return float(each.min()) if trained else 0.0


def _training_flops(run: RunOutcome) -> float | None:
    whole = (run.get("compute") or {}).get("whole") or {}
    known = all(whole.get(cause) is not None for cause in ("student", "teacher"))
    return training_flops(whole) or None if known else None


def _groups(
    runs: Iterable[RunOutcome], *fields: Field, axis: str = "-"
) -> list[tuple[RunOutcome, JsonObject, list[RunOutcome]]]:
    """Return the runs of equal fields and settings, with the first and its settings of those that vary.

    Args:
      axis: how settings begin that may differ within a group.
    """
    out = []
    for same in _grouped(runs, lambda run: {field: run.get(field) for field in fields}):
        each = [run.get("settings") or {} for run in same]
        names = [name for name in sorted(set().union(*each)) if not name.startswith(axis)]
        varying = [name for name in names if len({repr(settings.get(name)) for settings in each}) > 1]
        chosen = partial(_chosen_settings, varying)
        out += [(alike[0], chosen(alike[0]), alike) for alike in _grouped(same, chosen)]
    return out


def _chosen_settings(names: Sequence[str], run: RunOutcome) -> JsonObject:
    settings = run.get("settings") or {}
    return {name: settings[name] for name in names if name in settings}


def _grouped(runs: Iterable[RunOutcome], key: Callable[[RunOutcome], Mapping[str, object]]) -> list[list[RunOutcome]]:
    """Return the runs of each key, in the order in which the keys first come."""
    groups: dict[str, list[RunOutcome]] = {}
    for run in runs:
        groups.setdefault(repr(key(run)), []).append(run)
    return list(groups.values())


def _column(runs: Iterable[RunOutcome], field: Field) -> np.ndarray:
    return np.array([run[field] for run in runs], float)


def _interval(value: float, half: float) -> Interval:
    return {"value": value, "low": value - half, "high": value + half}


def _rms(errors: np.ndarray) -> float:
    return math.sqrt(float(np.mean(errors**2)))


def _lists(**columns: np.ndarray) -> dict[str, list[float]]:
    return {name: column.tolist() for name, column in columns.items()}
