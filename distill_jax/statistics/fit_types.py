"""What fits over a sweep read of its runs, and what they are: as the sweep's summary holds both."""

from __future__ import annotations

from typing import Literal, TypedDict

from distill_jax.types import JsonObject

Interval = dict[str, float | None]  # value, low, high
Field = Literal["kind", "method", "alpha", "beta", "parameters", "steps", "flops"]


class RunOutcome(TypedDict, total=False):
    """One run of a sweep; any number may be None."""

    kind: str
    method: str | None
    alpha: float | None
    beta: float | None
    parameters: int | None
    settings: JsonObject  # in which recipes of the sweep differ
    steps: int
    recovered: bool | None
    diverged: bool
    compute: dict[str, dict[str, float]]
    flops: float | None  # of training the whole chain, which is no part of the summary


class StepsCurve(TypedDict):
    """A curve of steps to recover on α, with `r2` and the root mean square of its leave-one-out errors in steps."""

    r2: float | None
    leave_one_out: float
    curve: dict[str, list[float]]


class Exponential(StepsCurve):
    """The least-squares line of log(steps), whose `r2` is on that scale; the rate is per unit of α."""

    rate: Interval


class StepsLine(StepsCurve):
    """The least-squares line through all seeds."""

    slope: Interval
    intercept: Interval


class StepsFit(StepsLine):
    """The straight line, with the exponential one and the name of the better; None where a run took no step."""

    exponential: Exponential | None
    better: str | None


class SizeFit(TypedDict):
    """A power law of compute on model size, its points, and predictions with 95 % prediction intervals."""

    exponent: Interval
    r2: float | None
    points: dict[str, list[float]]
    predictions: list[dict[str, float]]
    warning: str


class _Entry(TypedDict):
    method: str | None
    beta: float | None
    settings: JsonObject
    n: int
    left_out: dict[str, int]
    reason: str | None


class StepsEntry(_Entry):
    """A fit of steps on α; None where there are fewer than three distinct α, as `reason` says."""

    parameters: int | None
    fit: StepsFit | None


class SizeEntry(_Entry):
    """A fit of compute on model size; None with fewer than three sizes, as `reason` says."""

    kind: str
    alpha: float | None
    fit: SizeFit | None


class Fits(TypedDict, total=False):
    """Every fit of a sweep."""

    steps_against_alpha: list[StepsEntry]
    compute_against_size: list[SizeEntry]
