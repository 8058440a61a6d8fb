"""The catalogue of attacks as a run's page shows it: a table by budget, and the best so far against trials."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distill_jax.evals.scale import MISSING, Scale
from distill_jax.reports import plotly_layout
from distill_jax.reports.catalogue_types import (
    BudgetChoices,
    BudgetSummary,
    CatalogueSummary,
    ChoiceSummary,
    SlowdownSummary,
)
from distill_jax.reports.formats import count, scientific
from distill_jax.reports.plotly_layout import Figure, plotly_text
from distill_jax.reports.summary_types import ModelSummary
from distill_jax.reports.trace_style import trace_styles

PLACE = "panel-trials"
HEADS = (
    *("model", "budget", "attack of record", "catalogue", "95 % interval", "retain", "won by"),
    *("if ability is no matter: record", "its retain", "catalogue", "its retain"),
)
UNITS = {"steps": "steps", "rows": "rows read", "flops": "FLOPs"}


@dataclasses.dataclass(frozen=True)
class AttackView:
    """A table by budget, `counts` of trials and attacks by model, and the compute to each of `levels`."""

    heads: Sequence[str]
    rows: list[list[str]]
    share: str
    counts: list[tuple[str, str, str]]
    levels: list[str]
    compute: list[list[str]]
    one_seed: bool


def attack_view(
    catalogue: CatalogueSummary, models: Sequence[ModelSummary], scale: Scale
) -> tuple[AttackView, dict[str, Figure]]:
    """Return what the page's section shows, and its figure by place."""
    labels = {model["name"]: model["label"] for model in models}
    tried = {name: model for name, model in catalogue["models"].items() if name in labels}
    rows = [
        [labels[name], _budget(limit), *_row(best, scale)]
        for name, model in tried.items()
        for limit, best in zip(catalogue["budgets"], model["by_budget"], strict=True)
    ]
    share = scale.show(catalogue["ability"])
    counts = [(labels[name], count(model["trials"]), count(model["attacks"])) for name, model in tried.items()]
    compute = [[labels[name], *(_share(one) for one in model["slowdown"])] for name, model in tried.items()]
    levels = ["model", *(f"{scale.show(level)} back" for level in catalogue["levels"])]
    one_seed = min((model["seeds"] for model in tried.values()), default=0) == 1
    view = AttackView(HEADS, rows, share, counts, levels, compute, one_seed)
    return view, {PLACE: _trials(catalogue, models, scale)}


def _budget(limit: BudgetSummary) -> str:
    amount = limit["amount"]
    return f"{scientific(amount) if limit['axis'] == 'flops' else count(round(amount))} {UNITS[limit['axis']]}"


def _row(ends: BudgetChoices, scale: Scale) -> list[str]:
    def worst(end: ChoiceSummary | None) -> str:
        return scale.show(end["worst"] if end else None)

    def retain(end: ChoiceSummary | None) -> str:
        return scale.show(end["retain"] if end else None)

    best = ends["bounded"]
    interval = f"{scale.show(best['low'])}–{scale.show(best['high'])}" if best else MISSING
    free = [score(end) for end in (ends["record_unbounded"], ends["unbounded"]) for score in (worst, retain)]
    return [worst(ends["record"]), worst(best), interval, retain(best), _attack(best), *free]


def _share(level: SlowdownSummary) -> str:
    if not level["reached"]:
        share = "" if level["share"] is None else f" (at least {level['share']:.2g} × the oracle’s)"
        return f"not within {scientific(level['flops'])} FLOPs{share}"
    bound = f"{level['bound']} " if level["bound"] else ""
    interval = f"[{level['low']:.2g}, {'∞' if level['high'] is None else format(level['high'], '.2g')}]"
    share = "" if level["share"] is None else f" ({bound}{level['share']:.2g} {interval} × the oracle’s)"
    return f"{scientific(level['flops'])} FLOPs{share}"


def _attack(best: ChoiceSummary | None) -> str:
    if best is None:
        return MISSING
    if not best["steps"] and best["learning_rate"] is not None:
        return "no attack: the model as it is"
    rate = "" if best["learning_rate"] is None else f" at {best['learning_rate']:g}"
    return f"{best['attack']}{rate}, step {best['steps']:g}"


def _trials(catalogue: CatalogueSummary, models: Sequence[ModelSummary], scale: Scale) -> Figure:
    traces = []
    for model, style in zip(models, trace_styles(models), strict=True):
        attacked = catalogue["models"].get(model["name"])
        if attacked:
            mark = {"color": style.colour, "symbol": style.symbol, "size": 6}
            line = {"color": style.colour, "dash": style.dash, "width": 2.4}
            best = attacked["best_so_far"]
            traces.append(
                {
                    "type": "scatter", "name": plotly_text(model["label"]), "legendgroup": model["name"],
                    "mode": "lines+markers", "x": best["trials"], "y": best["expected"], "line": line, "marker": mark,
                    "hovertemplate": f"<b>%{{fullData.name}}</b><br>%{{x}} trials: %{{y:{scale.hover}}}<extra></extra>",
                }
            )  # fmt: skip
    figure = plotly_layout.figure(traces, "trials", f"held-out {scale.name}, best so far", (0, 1.02), scale)
    figure["layout"]["xaxis"]["type"] = "log"
    figure["layout"]["showlegend"] = True
    return figure
