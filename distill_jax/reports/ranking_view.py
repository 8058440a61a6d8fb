"""The ranking of recipes as a sweep's page shows it: tables, and accuracy under attack against compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distill_jax.evals.scale import MISSING, percent
from distill_jax.reports import plotly_layout
from distill_jax.reports.plotly_layout import MUTED, Figure, Trace, plotly_text
from distill_jax.reports.ranking_types import Ends, RankingRow, RankingSummary
from distill_jax.reports.weight_measures import order

_Priced = tuple[RankingRow, Ends]  # with its compute
PLACE = "ranking"
HEADS = (
    *("recipe", "held-out facts back", "95 % interval", "retain before", "retain attacked", "won by"),
    *("back, any retain", "its retain", "compute, schedule", "compute, first passage", "seeds", "front"),
)
APART = ("recipe", "held-out facts back", "retain before", "compute, schedule", "why it is not ranked")
# (trace, what rows it has, colour, mark)
MARKS = {"front": ("#2e52b4", "circle"), "ranked": ("#56a5dd", "circle-open"), "apart": ("#d55e00", "x-thin-open")}


@dataclasses.dataclass(frozen=True)
class RankingView:
    """One ranking: its place on the page, its tables."""

    place: str
    heads: Sequence[str]
    rows: list[list[str]]
    apart_heads: Sequence[str]
    apart: list[list[str]]
    order: list[list[str]]


def ranking_views(rankings: Sequence[RankingSummary]) -> tuple[list[RankingView], dict[str, Figure]]:
    """Return the rankings as the page shows them, and their figures by place."""
    views, figures = [], {}
    for i, ranking in enumerate(rankings):
        place = f"{PLACE}-{i}"
        rows = [_row(one) for one in (*ranking["recipes"], *ranking["baselines"])]
        apart, predicted = [_apart(one) for one in ranking["apart"]], order(ranking.get("prediction") or [])
        views.append(RankingView(place, HEADS, rows, APART, apart, predicted))
        figures[place] = _figure(ranking)
    return views, figures


def _share(ends: Ends | None) -> str:
    """Return a share of compute with its interval."""
    if not ends:
        return MISSING
    interval = "" if ends["low"] is None else f" [{percent(ends['low'])}, {percent(ends['high'])}]"
    return f"{percent(ends['value'])}{interval}"


def _row(one: RankingRow) -> list[str]:
    back, free = one["recovered"], one["unbounded"]
    known = back["low"] is not None
    return [
        one["label"],
        percent(back["value"]),
        f"{percent(back['low'])}–{percent(back['high'])}" if known else MISSING,
        percent(one["retain"]),
        percent(one["retain_attacked"]),
        one["won_by"] or MISSING,
        percent(free["recovered"] if free else None),
        percent(free["retain"] if free else None),
        *(_share(one["compute"][way]) for way in ("schedule", "first_passage")),
        str(one["seeds"]),
        "front" if one["front"] else "",
    ]


def _apart(one: RankingRow) -> list[str]:
    compute = _share(one["compute"]["schedule"])
    return [one["label"], percent(one["recovered"]["value"]), percent(one["retain"]), compute, one["lost"] or ""]


def _figure(ranking: RankingSummary) -> Figure:
    ranked, apart = (
        [(one, price) for one in ranking[place] if (price := one["compute"]["schedule"])]
        for place in ("recipes", "apart")
    )
    front = sorted((one for one in ranked if one[0]["front"]), key=lambda one: one[1]["value"])
    traces = [
        _trace("on the front", front, "front", mode="lines+markers"),
        _trace("ranked", [one for one in ranked if not one[0]["front"]], "ranked"),
        _trace("lost its retain ability", apart, "apart"),
    ]
    figure = plotly_layout.figure(
        [trace for trace in traces if trace["x"]], "compute, share of retraining", "held-out facts back"
    )
    figure["layout"]["xaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    figure["layout"]["showlegend"] = True
    levels = [(one["recovered"]["value"], one["label"]) for one in ranking["baselines"]]
    dotted = {"color": MUTED, "width": 1.2, "dash": "dot"}
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "line": dotted, "layer": "below"}
    note = {"xref": "paper", "x": 1, "xanchor": "right", "yanchor": "bottom", "showarrow": False}
    figure["layout"]["shapes"] = [{**line, "y0": y, "y1": y} for y, _ in levels]
    figure["layout"]["annotations"] = [
        {**note, "y": y, "text": plotly_text(label), "font": {"size": 11.5, "color": MUTED}} for y, label in levels
    ]
    return figure


def _trace(name: str, rows: Sequence[_Priced], mark: str, mode: str = "markers") -> Trace:
    colour, symbol = MARKS[mark]
    across, up = [price for _, price in rows], [one["recovered"] for one, _ in rows]
    return {
        "type": "scatter", "name": name, "mode": mode, "x": [x["value"] for x in across], "y": [y["value"] for y in up],
        "text": [plotly_text(one["label"]) for one, _ in rows], "error_x": _bars(across, colour),
        "error_y": _bars(up, colour), "line": {"color": colour, "width": 2.4, "shape": "hv"},
        "marker": {"color": colour, "symbol": symbol, "size": 9, "line": {"color": colour, "width": 1.6}},
        "hovertemplate": "<b>%{text}</b><br>%{y:.1%} back at %{x:.1%} of retraining<extra></extra>",
    }  # fmt: skip


def _bars(ends: Sequence[Ends], colour: str) -> Trace:
    """Return error bars; of no length where there is no interval."""
    above = [(one["high"] if one["high"] is not None else one["value"]) - one["value"] for one in ends]
    below = [one["value"] - (one["low"] if one["low"] is not None else one["value"]) for one in ends]
    style = {"color": plotly_layout.faded(colour, 0.55), "thickness": 1.1, "width": 3}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **style}
