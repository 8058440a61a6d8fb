"""The summaries that pages are made from, as `summary.json` and `sweep.json` hold them; any number may be None."""

from __future__ import annotations

from typing import TypedDict

from distill_jax.reports.catalogue_types import CatalogueSummary, SweepAttackSummary
from distill_jax.reports.ranking_types import RankingSummary, WeightMeasures, WeightsSummary
from distill_jax.statistics.fit_types import Fits
from distill_jax.statistics.robustness import AttackCurves
from distill_jax.types import JsonObject

Number = float | None


class PremiseSummary(TypedDict):
    """A premise of a conclusion (`statistics.conclusions.Premise`)."""

    statement: str
    shown: bool
    evidence: str


class ConclusionSummary(TypedDict, total=False):
    """A conclusion, as `statistics.conclusions.to_json` writes it."""

    name: str
    statement: str
    state: str
    evidence: str
    premises: list[PremiseSummary]
    effects: list[JsonObject]


class AttackSummary(AttackCurves, total=False):
    """The attack on one model."""

    members: int
    diverged: int
    worst_step: int  # of a model to be released: the step at which most came back, by which it is judged
    flops: dict[str, float]
    weights: str
    other_weights: dict[str, AttackSummary]


class AttackSettings(TypedDict, total=False):
    """What every model of a run was attacked with."""

    steps: int
    learning_rates: list[float]
    seeds: int
    batch: int
    lora_rank: int


class ModelSummary(TypedDict, total=False):
    """One model of a run."""

    name: str
    label: str
    stage: str
    role: str
    method: str | None
    settings: JsonObject
    seeds: int
    retain: Number
    retain_interval: list[float] | None
    forget: Number
    by_group: dict[str, dict[str, float]]
    steps: int
    recovered: bool | None
    flops: dict[str, Number] | None
    diverged: bool
    compute_vs_oracle: Number
    compute_vs_first_passage: Number
    attack: AttackSummary | None


class HeadlineSummary(TypedDict, total=False):
    """The models at the top of a run's page, by name, and the two conclusions they carry."""

    suppressed: str | None
    undo: str | None
    student: str | None
    oracle: str | None
    best: str | None
    undo_choices: int
    choices: int
    conclusions: list[ConclusionSummary]


class RunSummary(TypedDict, total=False):
    """A run: what `summary.json` holds."""

    experiment: str
    description: str
    identity: str
    measure: str
    evaluated: dict[str, int]
    facts: dict[str, int]
    label_errors: dict[str, dict[str, float]]  # of each set that a labeller made
    attack: AttackSettings | None
    models: list[ModelSummary]
    headline: HeadlineSummary
    conclusions: list[ConclusionSummary]
    attack_catalogue: CatalogueSummary
    weights: WeightsSummary
    card: JsonObject
    provenance: JsonObject
    created: str
    device: str
    duration_seconds: float


class SweepRunSummary(TypedDict, total=False):
    """One attacked model of a sweep; the curves of its attack hold the worst case alone."""

    id: str
    label: str
    recipe: str  # all but the training seed: runs of one recipe may be averaged
    rounded_recipe: str | None  # of what was rounded
    world: str  # model, precision and data: runs of one world may be compared
    labeller: str | None
    settings: JsonObject  # in which recipes of the sweep differ
    kind: str
    method: str | None
    alpha: Number
    beta: Number
    bits: int | None  # that the weights were rounded to; None of unrounded ones
    rounded: str | None  # the kind of the model that was
    seed: int
    parameters: int
    retain: Number
    forget: Number
    steps: int
    max_steps: int
    recovered: bool | None
    diverged: bool
    attack: SweepAttackSummary | None
    weights: WeightMeasures | None  # distance and loss barrier to the reference, where they were measured
    compute: dict[str, dict[str, float]]
    vs_retraining: dict[str, float] | None
    vs_first_passage: dict[str, float] | None


class SweepSummary(TypedDict, total=False):
    """A sweep: what `sweep.json` holds."""

    sweep: str
    description: str
    points: dict[str, int]
    attack: AttackSettings | None  # of the first that trains
    attacks: list[str]  # that models met, by name
    evaluated: dict[str, int]
    label_errors: list[str]  # a line for each labeller
    sharing: dict[str, float]
    runs: list[SweepRunSummary]
    fits: Fits
    ranking: list[RankingSummary]  # one for each model and data
    conclusions: list[ConclusionSummary]
    created: str
    device: str
