"""What the page of the double bind is made from, as `summary.json` holds it; any number may be None."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from distill_jax.doublebind.exposure import BlindRow, DetectionRow, PlaceboRow
from distill_jax.doublebind.results import EstimateRow, RoundsRow
from distill_jax.reports.summary_types import ConclusionSummary
from distill_jax.types import JsonObject


class ChannelRow(TypedDict):
    """What one channel showed of an organism; its intervals are those that decide a success."""

    capable: bool | None
    clean: bool | None
    moved: bool | None
    confesses: bool | None
    worst: str  # "" for none
    dfc: bool | None
    dfi: bool | None
    rate: float
    confidence: float
    capability: EstimateRow
    misalignment: EstimateRow | None
    readouts: dict[str, float]
    undecided: list[str]
    confession: EstimateRow


class ProbeRow(TypedDict):
    """What the linear probe makes of a student."""

    gap: float
    share: float


class OrganismRow(TypedDict):
    """What an audit shows of one organism."""

    name: str
    accepted: bool
    why: str
    gap: EstimateRow
    ability: float
    twin_ability: float
    base_ability: float
    verdict: str
    meaning: str
    truth: list[str]
    right: bool | None
    dfc: bool
    dfi: bool
    window: float
    channels: dict[str, ChannelRow]
    probe: NotRequired[dict[str, ProbeRow]]


class ConfusionRow(TypedDict):
    """The organisms of one truth that got one verdict."""

    truth: str
    verdict: str
    organisms: list[str]


class CurveColumns(TypedDict):
    """C(t) and M(t) of one channel and organism, ratios of means over seeds.

    `examples` are the distinct rows that were trained on up to a step, `bits` at most what their targets carried.
    """

    step: list[int]
    examples: list[int]
    bits: list[float]
    capability: list[float | None]
    misalignment: list[float | None]


class CoverageRow(TypedDict, total=False):
    """Of how many organisms that were judged one side worked (`doublebind.tally.Coverage`)."""

    covered: int
    decided: int
    undecided: int
    low: float
    high: float


class CorrelationRow(TypedDict):
    """Whether one side works where the other does not (`doublebind.tally.Correlation`)."""

    table: list[list[int]]
    p_fisher: float
    p_shuffled: float


class DoubleBindSummary(TypedDict, total=False):
    """An audit of organisms, or of published models."""

    page: str
    experiment: str
    description: str
    variant: str
    thresholds: JsonObject
    meaning: dict[str, str]
    channels: dict[str, JsonObject]
    organisms: list[OrganismRow]
    coverage: CoverageRow
    correlation: CorrelationRow | None
    confusion: list[ConfusionRow]
    placebos: dict[str, PlaceboRow]
    curves: dict[str, dict[str, CurveColumns]]
    domains: list[JsonObject]  # {channel, prompts, soft, base, task: mean share}
    rounds: dict[str, dict[str, RoundsRow]]
    detection: dict[str, DetectionRow]
    blind: dict[str, BlindRow]
    conclusions: list[ConclusionSummary]
    flops: dict[str, dict[str, float]]
    identity: str
    device: str
    created: str
