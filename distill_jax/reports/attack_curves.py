"""Numbers of a model's attack: its curves, their heights at a step, their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from distill_jax.reports.summary_types import ModelSummary, Number
from distill_jax.statistics.robustness import CurveSummary

Estimate = tuple[Number, Number, Number]  # value, low, high


@dataclass(frozen=True)
class Curve:
    """One measure over attack steps; `worst`, `low` and `high` are as long as `steps`."""

    steps: list[int]
    worst: list[Number]
    low: list[Number]
    high: list[Number]

    @property
    def known_band(self) -> list[tuple[int, float, float]]:
        """Return (step, low, high) where both ends are known."""
        rows = zip(self.steps, self.low, self.high, strict=True)
        return [(step, low, high) for step, low, high in rows if low is not None and high is not None]


def curve(model: ModelSummary, measure: str) -> Curve:
    """Return one measure of a model's attack; an empty curve without an attack."""
    attack = model.get("attack") or {}
    steps = attack.get("steps") or []
    values = attack.get(measure) or {}
    columns: CurveSummary = values if isinstance(values, dict) else {"worst": values, **attack.get("retain_band", {})}  # type: ignore[assignment, typeddict-item]
    return Curve(steps, *(_padded(columns.get(key), len(steps)) for key in ("worst", "low", "high")))  # type: ignore[arg-type]


def _padded(values: list[Number] | None, length: int) -> list[Number]:
    return [*(values or []), *[None] * length][:length]


def at_step(model: ModelSummary, step: int | None, measure: str = "forget_heldout") -> Estimate:
    """Return (value, low, high) of a measure after `step` attack steps, None where it was not measured."""
    points = curve(model, measure)
    if step not in points.steps:
        return None, None, None
    index = points.steps.index(step)
    return points.worst[index], points.low[index], points.high[index]


def worst_step_up_to(model: ModelSummary, last: int, sign: float, part: str = "forget_heldout") -> int:
    """Return the attack step, `last` at the latest, at which most of a part came back; the first of equals.

    Args:
      sign: +1 where more of the measure is more of what was to be forgotten, else -1.
    """
    points = curve(model, part)
    known = [(step, value) for step, value in zip(points.steps, points.worst, strict=True) if value is not None]
    return max((one for one in known if one[0] <= last), key=lambda one: sign * one[1], default=(last, None))[0]


def judged_step(model: ModelSummary, last: int) -> int:
    """Return the attack step that a model is judged by: of one to be released its worst, else the last."""
    return (model.get("attack") or {}).get("worst_step") or last


def over_attack(model: ModelSummary, measure: str = "forget_heldout") -> Estimate:
    """Return the mean height of a curve: its area divided by the attack's length."""
    points = curve(model, measure)
    worst, low, high = (_mean_height(points.steps, column) for column in (points.worst, points.low, points.high))
    return worst, low, high


def _mean_height(steps: Sequence[float], values: Sequence[Number]) -> Number:
    known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    if len(known) < 2:
        return known[0][1] if known else None
    area = sum((b - a) * (u + v) / 2 for (a, u), (b, v) in pairwise(known))
    return area / (known[-1][0] - known[0][0])


def landmarks(models: Sequence[ModelSummary]) -> tuple[int, int, int] | None:
    """Return the first, middle and last attack step that every attacked model was measured at, or None."""
    grids = [set(attack["steps"]) for model in models if (attack := model.get("attack")) and attack.get("steps")]
    if not grids:
        return None
    steps = sorted(set.intersection(*grids) or set.union(*grids))
    middle = min(steps, key=lambda step: abs(step - (steps[0] + steps[-1]) / 2))
    return steps[0], middle, steps[-1]


def has_bands(models: Sequence[ModelSummary]) -> bool:
    """Return whether any attack has an interval to draw."""
    return any(curve(model, measure).known_band for model in models for measure in ("forget_heldout", "forget_shown"))
