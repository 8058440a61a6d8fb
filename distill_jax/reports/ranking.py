"""Recipes ranked: what attackers bring back of each, at equal retain ability, and what it costs to make.

Each number is the mean over training seeds; its interval holds seeds and facts, that of compute the seeds. A recipe of
which a training seed lost its retain ability stands apart with the reason, as it may resist only because it can do
nothing. The front is that of whole compute, over the oracle's schedule, and of what comes back.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from distill_jax.evals.scale import ACCURACY
from distill_jax.experiment.roles import Role
from distill_jax.reports.affordable import CONTROLS, SHARES
from distill_jax.reports.sweep_evidence import Run, Sweep, by_training_seed, grouped
from distill_jax.reports.weight_measures import mean_of, predictions
from distill_jax.statistics.estimates import band
from distill_jax.statistics.recipe_choice import pareto_front
from distill_jax.statistics.student_t import mean_interval

BASELINES = (Role.REFERENCE, Role.ORACLE)  # what the ranked are seen beside


def rankings(sweep: Sweep) -> list[dict[str, Any]]:
    """Return a ranking of each world: {"recipes", "baselines", "apart"}, the most robust recipe first.

    And its "prediction": whether distance in weights and loss barrier rank the ranked and the baselines alike.
    """
    return [_ranking(world) for world in sweep.worlds()]


def _ranking(sweep: Sweep) -> dict[str, Any]:
    attacked = [run for run in sweep.runs if run["id"] in sweep.after and run["parameters"]]
    rows: dict[str, list[dict[str, Any]]] = {"recipes": [], "baselines": [], "apart": []}
    for (recipe,), same in grouped(attacked, "recipe").items():
        kind = same[0]["kind"]
        if kind in CONTROLS and kind not in BASELINES:
            continue
        place = "apart" if recipe in sweep.lost else "baselines" if kind in BASELINES else "recipes"
        rows[place].append(_row(sweep, recipe, same))
    for one in rows.values():
        one.sort(key=lambda row: row["recovered"]["value"])
    ranked = rows["recipes"]
    priced = [row for row in ranked if row["compute"]["schedule"]]
    points = [(row["compute"]["schedule"]["value"], row["recovered"]["value"]) for row in priced]
    on_front = pareto_front(*zip(*points, strict=True)) if points else []
    fronted = {row["recipe"] for row, on in zip(priced, on_front, strict=True) if on}
    for row in (*ranked, *rows["baselines"], *rows["apart"]):
        row["front"] = row["recipe"] in fronted
    measured = [row for row in (*ranked, *rows["baselines"]) if row["weights"]]
    each = [row["weights"] | {"came_back": row["recovered"]["value"]} for row in measured]
    return {**rows, "prediction": predictions(each, ACCURACY) if each else []}


def _row(sweep: Sweep, recipe: str, same: Sequence[Run]) -> dict[str, Any]:
    scores = by_training_seed(sweep, same)
    low, high = band(scores, ACCURACY) if len(scores.by_seed) > 1 else (math.nan, math.nan)
    free = [(run["attack"] or {}).get("unbounded") for run in same]
    return {
        "recipe": recipe,
        "label": same[0]["label"],
        "kind": same[0]["kind"],
        "method": same[0]["method"],
        "seeds": len({run["seed"] for run in same}),
        "retain": _mean([run["retain"] for run in same]),
        "recovered": {"value": scores.value, "low": _number(low), "high": _number(high)},
        "retain_attacked": _mean([_last(run["attack"], "retain_at_worst") for run in same]),
        "won_by": _most([won for run in same for won in (run["attack"] or {}).get("won_by", ())]),
        "unbounded": None if None in free else {
            "recovered": _mean([_last(one, "forget_heldout") for one in free]),
            "retain": _mean([_last(one, "retain_at_worst") for one in free]),
            "won_by": _most([won for run in same for won in run["attack"]["won_by_unbounded"]]),
        },
        "compute": {way: _shares(same, field) for way, field in SHARES.items()},
        "weights": mean_of([run.get("weights") for run in same]),
        "lost": sweep.lost.get(recipe),
    }  # fmt: skip


def _last(curves: Any, part: str) -> float | None:
    values = (curves or {}).get(part) or [None]
    return None if values[-1] is None else float(values[-1])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _most(names: Sequence[str]) -> str | None:
    """Return what most halves and seeds chose; a tie goes to the first."""
    return collections.Counter(names).most_common(1)[0][0] if names else None


def _shares(same: Sequence[Run], field: str) -> dict[str, float | None] | None:
    """Return the compute as a share of the oracle's, one number a training seed; None where it is not known of all."""
    if not all(run[field] for run in same):
        return None
    each = np.array([np.mean([r[field]["whole"] for r in twins]) for twins in grouped(same, "seed").values()])
    low, high = mean_interval(each)
    return {"value": float(each.mean()), "low": _number(float(low)), "high": _number(float(high))}
