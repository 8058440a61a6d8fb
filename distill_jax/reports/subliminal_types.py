"""What the page of the subliminal experiment is made from, as `summary.json` holds it."""

from __future__ import annotations

from typing import TypedDict

from distill_jax.reports.summary_types import ConclusionSummary
from distill_jax.types import JsonObject


class MeanRow(TypedDict):
    """A mean over seeds with its interval; None where it is not known (`doublebind.seed_statistics.Estimate`)."""

    mean: float | None
    low: float | None
    high: float | None
    seeds: int


class ArmRow(TypedDict):
    """Students of one stage, start and number of ghost logits.

    Attributes:
      noise: distinct noise images.
      alpha: of the damage to their start; None of a start that is whole.
      sd: of the accuracy between seeds; unseen_left: share of the first loss on unseen noise that is left.
    """

    stage: str
    loss: str
    noise: int
    steps: int
    arm: str
    ghosts: int
    alpha: float | None
    accuracy: MeanRow
    sd: float | None
    before: MeanRow
    gain: MeanRow
    unseen_loss: MeanRow
    unseen_left: float | None
    diverged: int
    by_seed: list[float]


class StepCurve(TypedDict):
    """Mean accuracy of one arm at each evaluated step."""

    arm: str
    ghosts: int
    steps: list[int]
    accuracy: list[float]


class SubliminalSummary(TypedDict, total=False):
    """The subliminal experiment, with the numbers that others published."""

    page: str
    experiment: str
    description: str
    data: str
    published: JsonObject
    teacher: MeanRow | None
    rows: list[ArmRow]
    curves: dict[str, list[StepCurve]]
    conclusions: list[ConclusionSummary]
    flops: dict[str, dict[str, float]]
    identity: str
    device: str
    created: str
