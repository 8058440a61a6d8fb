"""Recipes ranked: what attackers bring back of each, at equal retain ability, and what it costs to make.

Each number is the mean over training seeds; its interval holds seeds and facts, that of compute the seeds. A recipe of
which a training seed lost its retain ability stands apart with the reason, as it may resist only because it can do
nothing. The front is that of whole compute, over the oracle's schedule, and of what comes back.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import numpy as np

from distill_jax.evals.scale import ACCURACY
from distill_jax.experiment.roles import Role
from distill_jax.reports.affordable import CONTROLS, share
from distill_jax.reports.catalogue_types import SweepAttackSummary
from distill_jax.reports.premises import CONVENTIONS
from distill_jax.reports.ranking_types import ComparedWeights, Ends, RankingRow, RankingSummary, UnboundedSummary
from distill_jax.reports.sweep_evidence import Run, Sweep, by_training_seed, grouped
from distill_jax.reports.weight_measures import mean_of, predictions
from distill_jax.statistics.estimates import band
from distill_jax.statistics.recipe_choice import pareto_front
from distill_jax.statistics.student_t import mean_interval

BASELINES = (Role.REFERENCE, Role.ORACLE)  # what the ranked are seen beside


def rankings(sweep: Sweep) -> list[RankingSummary]:
    """Return a ranking of each world, and whether distance in weights and loss barrier rank the same alike."""
    return [_ranking(world) for world in sweep.worlds()]


def _ranking(sweep: Sweep) -> RankingSummary:
    attacked = [run for run in sweep.runs if run["id"] in sweep.after and run["parameters"]]
    ranked: list[RankingRow] = []
    baselines: list[RankingRow] = []
    apart: list[RankingRow] = []
    for (recipe,), same in grouped(attacked, "recipe").items():
        kind = same[0]["kind"]
        if kind in CONTROLS and kind not in BASELINES:
            continue
        place = apart if recipe in sweep.lost else baselines if kind in BASELINES else ranked
        place.append(_row(sweep, recipe, same))
    for rows in (ranked, baselines, apart):
        rows.sort(key=lambda row: row["recovered"]["value"])
    priced = [(row, price) for row in ranked if (price := row["compute"]["schedule"])]
    points = [(price["value"], row["recovered"]["value"]) for row, price in priced]
    on_front = pareto_front(*zip(*points, strict=True)) if points else []
    fronted = {row["recipe"] for (row, _), on in zip(priced, on_front, strict=True) if on}
    for row in (*ranked, *baselines, *apart):
        row["front"] = row["recipe"] in fronted
    each: list[ComparedWeights] = [
        {**weights, "came_back": row["recovered"]["value"]}
        for row in (*ranked, *baselines)
        if (weights := row["weights"])
    ]
    prediction = predictions(each, ACCURACY) if each else []
    return {"recipes": ranked, "baselines": baselines, "apart": apart, "prediction": prediction}


def _row(sweep: Sweep, recipe: str, same: Sequence[Run]) -> RankingRow:
    scores = by_training_seed(sweep, same)
    low, high = band(scores, ACCURACY) if len(scores.by_seed) > 1 else (math.nan, math.nan)
    return {
        "recipe": recipe,
        "label": same[0]["label"],
        "kind": same[0]["kind"],
        "method": same[0]["method"],
        "seeds": len({run["seed"] for run in same}),
        "retain": _mean([run["retain"] for run in same]),
        "recovered": {"value": scores.value, "low": _number(low), "high": _number(high)},
        "retain_attacked": _mean([_last((run["attack"] or {}).get("retain_at_worst")) for run in same]),
        "won_by": _most([won for run in same for won in (run["attack"] or {}).get("won_by", ())]),
        "unbounded": _unbounded(same),
        "compute": {way: _shares(same, way) for way in CONVENTIONS},
        "weights": mean_of([run.get("weights") for run in same]),
        "lost": sweep.lost.get(recipe),
    }


def _unbounded(same: Sequence[Run]) -> UnboundedSummary | None:
    """Return what attackers bring back who need not keep a model's ability; None where that is not known of all."""
    attacks: list[SweepAttackSummary] = [run["attack"] or {} for run in same]
    free = [attack["unbounded"] for attack in attacks if attack.get("unbounded")]
    if len(free) < len(attacks):
        return None
    return {
        "recovered": _mean([_last(one["forget_heldout"]) for one in free]),
        "retain": _mean([_last(one["retain_at_worst"]) for one in free]),
        "won_by": _most([won for attack in attacks for won in attack["won_by_unbounded"]]),
    }


def _last(values: Sequence[float | None] | None) -> float | None:
    values = values or [None]
    return None if values[-1] is None else float(values[-1])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _most(names: Sequence[str]) -> str | None:
    """Return what most halves and seeds chose; a tie goes to the first."""
    return collections.Counter(names).most_common(1)[0][0] if names else None


def _shares(same: Sequence[Run], way: str) -> Ends | None:
    """Return the compute as a share of the oracle's, one number a training seed; None where it is not known of all."""
    if any(share(run, way) is None for run in same):
        return None
    each = np.array([np.mean([share(run, way) for run in twins]) for twins in grouped(same, "seed").values()])
    low, high = mean_interval(each)
    return {"value": float(each.mean()), "low": _number(float(low)), "high": _number(float(high))}
