"""The figures of the subliminal experiment's page: what passes by ghost logits, steps, noise and damage."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

from distill_jax.reports import plotly_layout
from distill_jax.reports.plotly_layout import Figure, Trace, plotly_text
from distill_jax.reports.subliminal_types import ArmRow, MeanRow, StepCurve, SubliminalSummary
from distill_jax.reports.trace_style import alpha_colour
from distill_jax.types import JsonObject

# arm: (colour, marker). A damaged start is drawn in the colours of UNDO.
ARMS = {
    "same init": ("#26148a", "circle"),
    "same heads": ("#b0287a", "triangle-up"),
    "same body": ("#7a6a1f", "pentagon"),
    "other init": ("#727a86", "cross"),
}
PUBLISHED = {"color": "#d55e00", "symbol": "diamond-open", "size": 11}
LOSSES = ("kl", "mse")
PANELS = {  # place: (heading, words)
    "ghosts-kl": (
        "KL: more ghost logits carry more",
        "Accuracy on real digits. One logit has a softmax of 1: nothing.",
    ),
    "ghosts-mse": ("Squared error of raw logits", "Here one logit does say something."),
    "steps": ("While training", "Mean accuracy with KL; the number of ghost logits is at the end of each line."),
    "noise": (
        "Fewer distinct noise images",
        "Gain over another init. Filled: in as many epochs, so fewer steps. Hollow: in as many steps, seen more often.",
    ),
    "alpha": (
        "Damage to the student’s start (UNDO)",
        "W ← (1 − α) W + .1 α N before the student learns. Grey: a student with another init, the channel closed.",
    ),
}


def figures(data: SubliminalSummary) -> dict[str, Figure]:
    """Return the figures that a summary has the numbers for, by their place on the page."""
    rows, published = data.get("rows") or [], data.get("published") or {}
    curves = (data.get("curves") or {}).get("kl") or []
    return _by_ghosts(rows, published) | _by_step(curves) | _by_noise(rows, published) | _by_alpha(rows)


def _by_ghosts(rows: Sequence[ArmRow], published: JsonObject) -> dict[str, Figure]:
    drawn = {}
    for loss in LOSSES:
        same = [row for row in rows if row["stage"] == loss]
        if not same:
            continue
        counts = sorted({row["ghosts"] for row in same})
        traces = [_by_arm(arm, [row for row in same if row["arm"] == arm]) for arm in ARMS]
        if loss == "kl":
            known = [published[arm] | {"arm": arm} for arm in ARMS if arm in published]
            traces += [_diamonds([k["ghosts"] for k in known], [k["mean"] for k in known], [k["arm"] for k in known])]
        figure = plotly_layout.figure(traces, "ghost logits", "accuracy on digits")
        figure["layout"]["xaxis"] |= {"type": "log", "tickvals": counts, "ticktext": [str(c) for c in counts]}
        drawn[f"ghosts-{loss}"] = figure
    return drawn


def _diamonds(x: list[int], y: list[float], words: Iterable[str]) -> Trace:
    hover = "published, %{text}: %{y:.2f}<extra></extra>"
    marks = {"type": "scatter", "mode": "markers", "marker": PUBLISHED, "hovertemplate": hover}
    return {**marks, "x": x, "y": y, "text": [plotly_text(word) for word in words]}


def _by_step(curves: Sequence[StepCurve]) -> dict[str, Figure]:
    curves = [curve for curve in curves if curve["arm"] in ("same init", "other init")]
    if not curves:
        return {}
    figure = plotly_layout.figure([_step_trace(curve) for curve in curves], "student’s step", "accuracy on digits")
    notes = [_ghosts_note(curve) for curve in curves if curve["arm"] == "same init" and curve["steps"]]
    figure["layout"] |= {"annotations": notes, "margin": figure["layout"]["margin"] | {"r": 40}}
    return {"steps": figure}


def _step_trace(curve: StepCurve) -> Trace:
    colour, _ = ARMS[curve["arm"]]
    return {
        "type": "scatter", "mode": "lines", "name": curve["arm"], "legendgroup": curve["arm"],
        "x": curve["steps"], "y": curve["accuracy"], "line": {"color": colour, "width": 2},
        "hovertemplate": f"{curve['arm']}, {curve['ghosts']} ghosts<br>step %{{x}}: %{{y:.1%}}<extra></extra>",
    }  # fmt: skip


def _ghosts_note(curve: StepCurve) -> Trace:
    place = {"x": curve["steps"][-1], "y": curve["accuracy"][-1] or 0.0, "xanchor": "left", "xshift": 4}
    font = {"color": ARMS[curve["arm"]][0], "size": 11.5}
    return {**place, "text": str(curve["ghosts"]), "font": font, "showarrow": False, "name": curve["arm"]}


def _by_noise(rows: Sequence[ArmRow], published: JsonObject) -> dict[str, Figure]:
    same_init = [row for row in rows if row["arm"] == "same init"]
    all_noise = [row for row in same_init if row["stage"] == "kl" and row["ghosts"] == 3]
    traces = []
    for kind, hollow in (("noise", ""), ("repeated", "-open")):
        fewer = sorted((row for row in same_init if row["stage"].startswith(kind)), key=_noise)
        if fewer:
            drawn = [*fewer, *all_noise]
            trace = _means("same init", [row["noise"] for row in drawn], [row["gain"] for row in drawn])
            trace["marker"] = trace["marker"] | {"symbol": "circle" + hollow, "size": 10}
            traces.append(trace)
    if not traces:
        return {}
    known = published.get("by_noise") or {}
    traces.append(_diamonds([int(n) for n in known], [*known.values()], ["MNIST"] * len(known)))
    figure = plotly_layout.figure(traces, "distinct noise images", "gain of accuracy over another init", (-0.12, 1.02))
    figure["layout"]["xaxis"] |= {"type": "log", "dtick": 1}
    return {"noise": figure}


def _noise(row: ArmRow) -> int:
    return int(row["noise"])


def _by_alpha(rows: Sequence[ArmRow]) -> dict[str, Figure]:
    undo = [row for row in rows if row["stage"] == "undo"]
    damaged = [(alpha, row["accuracy"]) for row in undo if (alpha := row.get("alpha")) is not None]
    whole = [(0.0, row["accuracy"]) for row in undo if row["arm"] == "same init"]
    if not damaged:
        return {}
    alphas, accuracies = zip(*whole, *sorted(damaged, key=operator.itemgetter(0)), strict=True)
    trace = _means("same init", alphas, accuracies)
    trace["marker"] = {"size": 11, "color": [alpha_colour(a) for a in trace["x"]], "line": {"width": 0}}
    figure = plotly_layout.figure([trace], "α", "accuracy on digits")
    control = next((row["accuracy"] for row in undo if row["arm"] == "other init"), None)
    if control:
        band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": control["low"], "y1": control["high"]}
        grey = {"fillcolor": "rgba(114,122,134,0.35)", "line": {"width": 0}, "layer": "below"}
        figure["layout"]["shapes"] = [{**band, **grey}]
    return {"alpha": figure}


def _by_arm(arm: str, rows: Sequence[ArmRow]) -> Trace:
    return _means(arm, [row["ghosts"] for row in rows], [row["accuracy"] for row in rows])


def _means(arm: str, places: Sequence[float], values: Sequence[MeanRow]) -> Trace:
    """Return means with their intervals, joined by a thin line."""
    colour, symbol = ARMS[arm]
    above = [_apart(one["high"], one["mean"]) for one in values]
    below = [_apart(one["mean"], one["low"]) for one in values]
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return {
        "type": "scatter", "mode": "lines+markers", "name": arm, "legendgroup": arm,
        "x": list(places), "y": [one["mean"] for one in values],
        "error_y": {**bars, "thickness": 1.4, "color": colour},
        "line": {"color": colour, "width": 1.2}, "marker": {"color": colour, "symbol": symbol, "size": 9},
        "hovertemplate": f"<b>{plotly_text(arm)}</b><br>%{{x}}: %{{y:.1%}}<extra></extra>",
    }  # fmt: skip


def _apart(upper: float | None, lower: float | None) -> float | None:
    return None if upper is None or lower is None else upper - lower
