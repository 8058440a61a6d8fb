"""What attacks did to models, as summaries hold it: a run's catalogue of attacks, and the worst case in a sweep."""

from __future__ import annotations

from typing import TypedDict

Number = float | None


class BudgetSummary(TypedDict):
    """A limit: "steps", "rows" or "flops", and how much of it."""

    axis: str
    amount: float


class ChoiceSummary(TypedDict):
    """What attackers end with, and the configuration that most halves and seeds chose."""

    worst: float
    low: float
    high: float
    retain: float
    attack: str
    attack_id: str
    learning_rate: Number
    steps: float


class BudgetChoices(TypedDict):
    """What attackers end with within a budget: of the catalogue and of the attack of record, models able or not."""

    bounded: ChoiceSummary | None
    unbounded: ChoiceSummary | None
    record: ChoiceSummary | None
    record_unbounded: ChoiceSummary | None


class SlowdownSummary(TypedDict):
    """An attacker's compute to a level, and its share of what the oracle's attacker needs."""

    flops: float
    reached: bool
    share: Number
    bound: str | None
    low: Number
    high: Number


class BestSoFar(TypedDict):
    """What the best of so many trials is expected to bring back."""

    trials: list[int]
    expected: list[float]


class AttackedSummary(TypedDict):
    """One model under a catalogue of attacks."""

    attacks: int
    trials: int
    seeds: int
    flops: float
    floor: float
    by_budget: list[BudgetChoices]
    best_so_far: BestSoFar
    slowdown: list[SlowdownSummary]


class CatalogueSummary(TypedDict):
    """A catalogue of attacks on the models of a run."""

    ability: float
    budgets: list[BudgetSummary]
    levels: tuple[float, ...]
    models: dict[str, AttackedSummary]


class WorstCurves(TypedDict, total=False):
    """The worst case of one model at each step, and its retain score."""

    forget_heldout: list[Number]
    retain_at_worst: list[Number]


class SweepAttackSummary(WorstCurves, total=False):
    """The worst case of one model of a sweep; of several attacks also what won."""

    steps: list[float] | list[int]
    forget_shown: list[Number]
    unbounded: WorstCurves
    floor: float
    ability: float
    won_by: list[str]
    won_by_unbounded: list[str]
    members: int
    counted: list[int]
    diverged: int
    attacks: int
