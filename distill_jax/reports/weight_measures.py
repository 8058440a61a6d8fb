"""Distance in weights and loss barrier beside the attack: a table of a run's models, and whether they rank alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from distill_jax.evals.scale import MISSING, Scale
from distill_jax.io.node import Node
from distill_jax.reports.attack_curves import at_step, curve
from distill_jax.reports.ranking_types import ComparedWeights, Prediction, WeightMeasures, WeightsSummary
from distill_jax.reports.summary_types import ModelSummary
from distill_jax.stages.loss_barrier import WHOLE, LossBarrier
from distill_jax.statistics.rank_correlation import spearman, spearman_interval

FEW = 10  # models below which nothing is said of the order, whatever its interval


@dataclasses.dataclass(frozen=True)
class WeightsView:
    """The table of a run's models, and that of what ranks alike."""

    heads: list[str]
    rows: list[list[str]]
    order: list[list[str]]


def summary(nodes: Mapping[str, Node], models: Sequence[ModelSummary], scale: Scale) -> WeightsSummary | None:
    """Return what the run measured between each model and its reference; None where it measured nothing."""
    by_name = {model["name"]: model for model in models}
    measured: dict[str, ComparedWeights] = {
        node.inputs["start"]: {**_measured(node), "losses": node.result()["losses"]}
        for node in nodes.values()
        if isinstance(node.settings, LossBarrier) and node.inputs["start"] in by_name
    }
    if not measured:
        return None
    for name, numbers in measured.items():
        steps = curve(by_name[name], "forget_heldout").steps
        numbers["came_back"] = at_step(by_name[name], steps[-1])[0] if steps else None
    return {"models": measured, "prediction": predictions(list(measured.values()), scale)}


def measured_on(name: str, nodes: Mapping[str, Node]) -> WeightMeasures | None:
    """Return what was measured of a model; None where it was not."""
    for node in nodes.values():
        if isinstance(node.settings, LossBarrier) and node.inputs["start"] == name and node.done:
            return _measured(node)
    return None


def _measured(node: Node) -> WeightMeasures:
    result = node.result()
    return {"distance": result["distance"], "barrier": result["barrier"]}


def mean_of(measured: Sequence[WeightMeasures | None]) -> WeightMeasures | None:
    """Return the mean over a recipe's training seeds; None where one of them was not measured."""
    known = [one for one in measured if one is not None]
    if not known or len(known) < len(measured):
        return None
    return {
        "distance": _means([one["distance"] for one in known]),
        "barrier": _means([one["barrier"] for one in known]),
    }


def _means(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def predictions(measured: Sequence[ComparedWeights], scale: Scale) -> list[Prediction]:
    """Return how the models rank by each measure and by what came back."""
    known = [numbers for numbers in measured if numbers["came_back"] is not None]
    ability = [scale.ability(numbers["came_back"]) for numbers in known]
    tried = {"distance in weights": [numbers["distance"][WHOLE] for numbers in known]}
    for name in measured[0]["barrier"]:
        tried[f"barrier on {name}"] = [numbers["barrier"].get(name, math.nan) for numbers in known]
    return [_prediction(what, values, ability) for what, values in tried.items()]


def _prediction(what: str, values: Sequence[float], ability: Sequence[float]) -> Prediction:
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


def view(measures: WeightsSummary, labels: Mapping[str, str], scale: Scale) -> WeightsView:
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
    return WeightsView(heads, rows, order(measures["prediction"]))


def order(predictions: Sequence[Prediction]) -> list[list[str]]:
    """Return the rows of the table of `predictions`."""
    return [[one["measure"], str(one["models"]), _rho(one), one["words"]] for one in predictions]


def _rho(one: Prediction) -> str:
    if one["rho"] is None:
        return MISSING
    interval = "" if one["low"] is None else f" [{one['low']:+.2f}, {one['high']:+.2f}]"
    return f"{one['rho']:+.2f}{interval}"
