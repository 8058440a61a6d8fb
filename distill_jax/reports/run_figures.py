"""The figures of a run's page: worst-case curves under an attack, and compute against robustness and retain.

Every number that arrives here is finite or None (`rendering.clean` sees to that). A hollow marker is a model that did
not get its retain ability back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from distill_jax.evals.scale import ACCURACY, Scale
from distill_jax.reports import plotly_layout
from distill_jax.reports.attack_curves import Curve, Estimate, at_step, curve, landmarks, over_attack
from distill_jax.reports.label_places import place_labels, spread
from distill_jax.reports.plotly_layout import Figure, Trace, plotly_text
from distill_jax.reports.summary_types import ModelSummary, Number
from distill_jax.reports.trace_style import TraceStyle, family, short_label, trace_styles

RELEARNING = {  # measure: (place on the page, quantity)
    "forget_heldout": ("panel-heldout", "held-out"),
    "forget_shown": ("panel-shown", "shown"),
    "retain_at_worst": ("panel-retain", "retain"),
}
PANEL_HEIGHT, LABEL_HEIGHT, LETTER = 262.0, 13.5, 6.3  # pixels of a panel of curves and of its labels
MOST_LABELS = 12
LABELLED_FIRST = ("suppressed", "oracle", "reference", "undo", "student", "control")


@dataclass(frozen=True)
class Measure:
    """A way to sum up a curve in one number: `words` name it, `estimates` are the models' values by name."""

    key: str
    words: str
    estimates: dict[str, Estimate]


def relearning(
    models: Sequence[ModelSummary], scale: Scale = ACCURACY, compared: Collection[str] = ()
) -> dict[str, Figure]:
    """Return the three panels of worst-case curves under an attack, keyed by the id of their place on the page.

    Args:
      compared: names of the models that the answer compares, whose lines are labelled before others'.
    """
    styles = trace_styles(models)
    drawn = [(model, style) for model, style in zip(models, styles, strict=True) if curve(model, "").steps]
    if not drawn:
        return {}
    panels = {}
    steps = [step for model, _ in drawn for step in curve(model, "").steps]
    for measure, (place, quantity) in RELEARNING.items():
        traces = [trace for model, style in drawn for trace in _curve_traces(model, style, measure, scale)]
        y_range = plotly_layout.score_range(traces, scale)
        panel = plotly_layout.figure(traces, "attack step", f"{quantity} {scale.name}", y_range, scale)
        panel["layout"]["xaxis"]["range"] = _span(steps)
        _label_ends(panel, drawn, measure, compared)
        panels[place] = panel
    return panels


def _span(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [low, high] if low < high else [low - 1, high + 1]


def _label_ends(
    panel: Figure, drawn: Sequence[tuple[ModelSummary, TraceStyle]], measure: str, compared: Collection[str]
) -> None:
    """Write at the end of each line what it is, moved off its neighbours; the least telling are left out."""
    low, high = panel["layout"]["yaxis"]["range"]
    ends = [(model, style, step, y) for model, style in drawn for step, y in _last_point(curve(model, measure))]
    ends.sort(key=lambda end: (end[0]["name"] not in compared, LABELLED_FIRST.index(end[1].role)))
    ends = sorted(ends[:MOST_LABELS], key=lambda end: end[3])
    heights = [(y - low) / (high - low) * PANEL_HEIGHT for *_, y in ends]
    places = spread(heights, LABEL_HEIGHT, PANEL_HEIGHT)
    panel["layout"]["annotations"] = [
        _end_label(*end, shift=place - height) for end, place, height in zip(ends, places, heights, strict=True)
    ]
    longest = max((len(note["text"]) for note in panel["layout"]["annotations"]), default=0)
    panel["layout"]["margin"]["r"] = 24 + LETTER * longest


def _last_point(points: Curve) -> list[tuple[int, float]]:
    """Return the last point that was measured; none of an empty curve."""
    return [(step, y) for step, y in zip(points.steps, points.worst, strict=True) if y is not None][-1:]


def _end_label(model: ModelSummary, style: TraceStyle, step: int, y: float, shift: float) -> Trace:
    arrow = {"showarrow": True, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": plotly_layout.faded(style.colour, 0.6)}
    place = {"x": step, "y": y, "ax": 16, "ay": -shift, "xanchor": "left", "yanchor": "middle"}
    font = {"size": 11.5, "color": style.colour}
    return {**arrow, **place, "font": font, "text": plotly_text(short_label(model)), "name": model["name"]}


def _curve_traces(model: ModelSummary, style: TraceStyle, measure: str, scale: Scale) -> list[Trace]:
    """Return a confidence band (where there is one) and the line over it."""
    points = curve(model, measure)
    rates = [*((model.get("attack") or {}).get("best_learning_rate") or []), *[None] * len(points.steps)]
    line = {
        **_named(model),
        "mode": "lines" if len(points.steps) > 12 else "lines+markers",
        "x": points.steps,
        "y": points.worst,
        "customdata": ["not recorded" if rate is None else f"{rate:g}" for rate in rates[: len(points.steps)]],
        "line": {"color": style.colour, "dash": style.dash, "width": 2.4},
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 6},
        "hovertemplate": "<b>%{fullData.name}</b><br>step %{x}: "
        + f"%{{y:{scale.hover}}}<br>learning rate %{{customdata}}<extra></extra>",
    }
    return [*_band(model, style, points), line]


def _band(model: ModelSummary, style: TraceStyle, points: Curve) -> list[Trace]:
    if len(points.known_band) < 2:
        return []
    steps, low, high = (list(column) for column in zip(*points.known_band, strict=True))
    outline = {"x": steps + steps[::-1], "y": high + low[::-1], "mode": "lines", "line": {"width": 0}}
    fill = {"fill": "toself", "fillcolor": plotly_layout.faded(style.colour), "hoverinfo": "skip"}
    return [{**_named(model), **outline, **fill}]


def compute(models: Sequence[ModelSummary], scale: Scale = ACCURACY) -> tuple[dict[str, Figure], list[str]]:
    """Return compute against robustness and against retain, and the labels of models that lack a number for it.

    Compute is a share of the oracle's training where any model has one, else FLOPs.
    """
    relative = any(model.get("compute_vs_oracle") is not None for model in models)
    costs = [model.get("compute_vs_oracle") if relative else total_flops(model) for model in models]
    steps = landmarks(models)
    last = steps[-1] if steps else None
    points = [(m, s, c) for m, s, c in zip(models, trace_styles(models), costs, strict=True) if c is not None]
    points = [point for point in points if at_step(point[0], last)[0] is not None]
    missing = [m["label"] for m in models if curve(m, "").steps and not any(m is point[0] for point in points)]
    if not points:
        return {}, missing
    robust = [trace for measure in measures(models) for trace in _scatter(points, measure, scale)]
    kept = Measure("", "", {model["name"]: (model.get("retain"), None, None) for model in models})
    retained = _scatter(points, kept, scale)
    y_range = (-0.05, 1.06) if scale.bounds[1] == 1 else plotly_layout.score_range(robust, scale)
    retain_range = _retain_range(points, retained, scale)
    panels = {
        "panel-robustness": plotly_layout.figure(robust, "", f"held-out {scale.name}", y_range, scale),
        "panel-cost-retain": plotly_layout.figure(retained, "", f"retain {scale.name}", retain_range, scale),
    }
    for panel in panels.values():
        panel["layout"]["xaxis"] = _compute_axis([cost for _, _, cost in points], relative)
        panel["layout"]["shapes"] = [plotly_layout.vertical_line(1.0)] if relative else []
        panel["layout"]["annotations"] = [plotly_layout.top_note(1.0, "oracle = 100 %")] if relative else []
        place_labels(panel)
    return panels, missing


def measures(models: Sequence[ModelSummary]) -> list[Measure]:
    """Return the ways to sum up a curve in one number; the first is shown at the start."""
    steps = landmarks(models)
    if steps is None:
        return []
    _, middle, last = steps
    at_last = Measure("last", f"after {last:,} attack steps", {m["name"]: at_step(m, last) for m in models})
    at_middle = Measure("middle", f"after {middle:,} steps", {m["name"]: at_step(m, middle) for m in models})
    mean = Measure("mean", "mean over the whole attack", {m["name"]: over_attack(m) for m in models})
    return [at_last, at_middle, mean] if len(set(steps)) == 3 else [at_last]


def measure_titles(models: Sequence[ModelSummary], scale: Scale) -> dict[str, str]:
    """Return the y axis of compute against robustness by the measure that is shown."""
    return {measure.key: f"held-out {scale.name}, {measure.words}" for measure in measures(models)}


def total_flops(model: ModelSummary) -> float | None:
    """Return all FLOPs in a model's ledger, or None without one."""
    known = [value for value in (model.get("flops") or {}).values() if value is not None]
    return sum(known) if known else None


def _scatter(points: Sequence[tuple[ModelSummary, TraceStyle, float]], measure: Measure, scale: Scale) -> list[Trace]:
    """Return a thread through each family's alphas and a marker a model, tagged with the measure they belong to."""
    tag = {"meta": {"measure": measure.key}, "visible": measure.key in ("", "last")}
    marks = [{**_marker(*point, measure.estimates[point[0]["name"]], scale), **tag} for point in points]
    undo = [(point[0], mark) for point, mark in zip(points, marks, strict=True) if point[1].role == "undo"]
    undo.sort(key=lambda pair: pair[0]["settings"]["alpha"])
    families = dict.fromkeys(family(model) for model, _ in undo)
    threads = [[mark for model, mark in undo if family(model) == name] for name in families]
    joined = [{**THREAD, "x": [m["x"][0] for m in same], "y": [m["y"][0] for m in same], **tag} for same in threads]
    return [*joined, *marks]


THREAD = {"type": "scatter", "mode": "lines", "line": {"color": "#a9b7cc", "width": 1.6}, "hoverinfo": "skip"}


def _marker(model: ModelSummary, style: TraceStyle, cost: float, estimate: Estimate, scale: Scale) -> Trace:
    value, low, high = estimate
    hollow = model.get("recovered") is False
    outline = {"width": 2 if hollow else 1, "color": style.colour}
    marker = {"symbol": style.symbol + "-open" * hollow, "color": style.colour, "size": 12, "line": outline}
    trace: Trace = {
        **_named(model), "mode": "markers+text", "x": [cost], "y": [value],
        "text": [plotly_text(short_label(model, longest=30))],
        "textfont": {"size": 12}, "cliponaxis": False, "marker": marker,
        "hovertemplate": "<b>%{fullData.name}</b><br>compute %{x}, "
        + f"{scale.name} %{{y:{scale.hover}}}<extra></extra>",
    }  # fmt: skip
    if value is not None and low is not None and high is not None:
        reach = {"type": "data", "symmetric": False, "array": [high - value], "arrayminus": [value - low]}
        trace["error_y"] = {**reach, "color": style.colour, "thickness": 1.4, "width": 4}
    return trace


def _compute_axis(costs: Sequence[float], relative: bool) -> Trace:
    top = max([*costs, 1.0] if relative else costs)
    words = "compute, as a share of retraining the oracle" if relative else "compute (FLOPs)"
    ticks = {"tickformat": ".0%"} if relative else {"exponentformat": "power"}
    return {"title": {"text": words}, "range": [-0.06 * top, 1.3 * top], **ticks}


def _retain_range(
    points: Sequence[tuple[ModelSummary, TraceStyle, float]], traces: Sequence[Trace], scale: Scale
) -> tuple[float, float]:
    """Return a y range that shows differences, but never less than 20 points of accuracy."""
    if scale.bounds[1] != 1:
        return plotly_layout.score_range(traces, scale)
    known: list[Number] = [model.get("retain") for model, _, _ in points]
    floor = min((retain for retain in known if retain is not None), default=0.0)
    return max(-0.05, min(floor - 0.06, 0.8)), 1.02


def _named(model: ModelSummary) -> Trace:
    return {"type": "scatter", "name": plotly_text(model["label"]), "legendgroup": model["name"]}
