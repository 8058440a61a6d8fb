"""Distance in weights and loss barrier beside the attack: a table of a run's models, and whether they rank alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.evals.scale import MISSING, Scale
from distill_jax.io.node import Node
from distill_jax.reports.attack_curves import at_step, curve
from distill_jax.reports.summary_types import ModelSummary
from distill_jax.stages.loss_barrier import WHOLE, LossBarrier
from distill_jax.statistics.rank_correlation import spearman, spearman_interval

FEW = 10  # models below which nothing is said of the order, whatever its interval


def summary(nodes: Mapping[str, Node], models: Sequence[ModelSummary], scale: Scale) -> dict[str, Any] | None:
    """Return what the run measured between each model and its reference; None where it measured nothing."""
    by_name = {model["name"]: model for model in models}
    measured = {
        node.inputs["start"]: {key: node.result()[key] for key in ("distance", "barrier", "losses")}
        for node in nodes.values()
        if isinstance(node.settings, LossBarrier) and node.inputs["start"] in by_name
    }
    if not measured:
        return None
    for name, numbers in measured.items():
        steps = curve(by_name[name], "forget_heldout").steps
        numbers["came_back"] = at_step(by_name[name], steps[-1])[0] if steps else None
    return {"models": measured, "prediction": predictions(list(measured.values()), scale)}


def measured_on(name: str, nodes: Mapping[str, Node]) -> dict[str, Any] | None:
    """Return {"distance", "barrier"} of a model, each by part or set; None where it was not measured."""
    for node in nodes.values():
        if isinstance(node.settings, LossBarrier) and node.inputs["start"] == name and node.done:
            result = node.result()
            return {key: result[key] for key in ("distance", "barrier")}
    return None


def mean_of(measured: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return the mean over a recipe's training seeds; None where one of them was not measured."""
    known = [one for one in measured if one is not None]
    if not known or len(known) < len(measured):
        return None
    return {
        key: {part: float(np.mean([one[key][part] for one in known])) for part in known[0][key]}
        for key in ("distance", "barrier")
    }


def predictions(measured: Sequence[Mapping[str, Any]], scale: Scale) -> list[dict[str, Any]]:
    """Return how the models rank by each measure and by what came back.

    Args:
      measured: of each model {"distance", "barrier", "came_back"}, the last None where it was not attacked.
    """
    known = [numbers for numbers in measured if numbers["came_back"] is not None]
    ability = [scale.ability(numbers["came_back"]) for numbers in known]
    tried = {"distance in weights": [numbers["distance"][WHOLE] for numbers in known]}
    for name in measured[0]["barrier"]:
        tried[f"barrier on {name}"] = [numbers["barrier"].get(name, math.nan) for numbers in known]
    return [_prediction(what, values, ability) for what, values in tried.items()]


def _prediction(what: str, values: Sequence[float], ability: Sequence[float]) -> dict[str, Any]:
    count = len(values)
    rho = spearman(values, ability) if count > 1 and all(map(math.isfinite, values)) else math.nan
    low, high = spearman_interval(rho, count)
    number, low_, high_ = (None if math.isnan(x) else round(x, 3) for x in (rho, low, high))
    return {
        "measure": what,
        "models": count,
        "rho": number,
        "low": low_,
        "high": high_,
        "words": _words(count, low, high),
    }


def _words(count: int, low: float, high: float) -> str:
    """Return what the order of so few models lets one say."""
    if count < FEW or math.isnan(low):
        return f"open: {count} models are too few to tell an order from chance"
    if low <= 0 <= high:
        return "open: the interval holds 0, no order at all"
    less = "less" if high < 0 else "more"
    return f"of these models, of which {less} comes back where it is larger; not shown of any others"


def view(measures: Mapping[str, Any], labels: Mapping[str, str], scale: Scale) -> dict[str, Any]:
    """Return what the page's section shows."""
    first = next(iter(measures["models"].values()))
    parts, sets = list(first["distance"]), list(first["barrier"])
    heads = ["model", *(f"distance, {part}" for part in parts), *(f"barrier, {name}" for name in sets), "came back"]
    rows = [
        [
            labels[name],
            *(f"{numbers['distance'].get(part, math.nan):.2f}" for part in parts),
            *(f"{numbers['barrier'].get(each, math.nan):.2f}" for each in sets),
            scale.show(numbers["came_back"]),
        ]
        for name, numbers in measures["models"].items()
        if name in labels
    ]
    return {"heads": heads, "rows": rows, "order": order(measures["prediction"])}


def order(predictions: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of the table of `predictions`."""
    return [[one["measure"], str(one["models"]), _rho(one), one["words"]] for one in predictions]


def _rho(one: Mapping[str, Any]) -> str:
    if one["rho"] is None:
        return MISSING
    interval = "" if one["low"] is None else f" [{one['low']:+.2f}, {one['high']:+.2f}]"
    return f"{one['rho']:+.2f}{interval}"
