"""Recipes ranked, and weights measured beside attacks, as summaries hold them."""

from __future__ import annotations

from typing import TypedDict

Number = float | None


class Ends(TypedDict):
    """A number with its 95 % interval."""

    value: float
    low: Number
    high: Number


class WeightMeasures(TypedDict):
    """Distance in weights by part of the model, and loss barrier by data set, of a model to its reference."""

    distance: dict[str, float]
    barrier: dict[str, float]


class ComparedWeights(WeightMeasures, total=False):
    """The same beside what an attack brought back; None without an attack."""

    losses: dict[str, list[float]]
    came_back: Number


class Prediction(TypedDict):
    """How models rank by one measure of weights and by what came back: Spearman's correlation."""

    measure: str
    models: int
    rho: Number
    low: Number
    high: Number
    words: str


class WeightsSummary(TypedDict):
    """What a run measured between its models and their reference."""

    models: dict[str, ComparedWeights]
    prediction: list[Prediction]


class UnboundedSummary(TypedDict):
    """What attackers bring back who need not keep a model's ability."""

    recovered: Number
    retain: Number
    won_by: str | None


class RankingRow(TypedDict, total=False):
    """One recipe: means over training seeds, and whether it lies on the front."""

    recipe: str
    label: str
    kind: str
    method: str | None
    seeds: int
    retain: Number
    recovered: Ends
    retain_attacked: Number
    won_by: str | None
    unbounded: UnboundedSummary | None
    compute: dict[str, Ends | None]
    weights: WeightMeasures | None
    lost: str | None
    front: bool


class RankingSummary(TypedDict):
    """A ranking of one world, the most robust recipe first."""

    recipes: list[RankingRow]
    baselines: list[RankingRow]
    apart: list[RankingRow]
    prediction: list[Prediction]
