"""Figures of the report, as plain Plotly dictionaries.

Every number that arrives here is finite or None (`report.clean` sees to that). Models keep one colour, dash and marker
through the whole page; a hollow marker is a model that did not get its retain ability back.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from distill_jax.evals.scale import ACCURACY, Scale

Model = dict[str, Any]
Figure = dict[str, Any]
Estimate = tuple[float | None, float | None, float | None]  # value, low, high
Box = tuple[float, float, float, float]  # left, bottom, right, top

# role: (colour, marker, first dash). Vermilion, magenta, blues and black stay apart under common colour blindness.
ROLES = {
    "reference": ("#727a86", "cross", "dot"),
    "suppressed": ("#d55e00", "square", "solid"),
    "undo": ("", "circle", "solid"),
    "student": ("#b0287a", "triangle-up", "solid"),
    "oracle": ("#15181d", "diamond", "dash"),
    "control": ("#7a6a1f", "pentagon", "dashdot"),
}
UNDO_RAMP = ((60, 168, 152), (38, 136, 200), (46, 82, 180), (38, 20, 88))  # alpha = 0 ... 1; each step darker
UNDO_SYMBOLS = ("circle", "triangle-down", "hexagon", "star")  # one for each family of settings other than alpha
DASHES = ("solid", "dashdot", "longdash", "dot", "dash", "longdashdot")
TEXT, MUTED, GRID = "#1d2430", "#5a6372", "#e4e8ee"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
RELEARNING = {"forget_heldout": "panel-heldout", "forget_shown": "panel-shown", "retain_at_worst": "panel-retain"}


@dataclass(frozen=True)
class Look:
    """Hold how one model is drawn everywhere on the page."""

    role: str
    colour: str
    symbol: str
    dash: str


def role(model: Model) -> str:
    """Return what part a model plays: a key of `ROLES`."""
    settings = model.get("settings") or {}
    words = f"{model.get('name')} {model.get('label')}".lower()
    match model.get("stage"):
        case "pretrain" | "import":
            return "oracle" if "oracle" in words or "filter" in words else "reference"
        case "unlearn":
            return "suppressed"
        case "distill" if isinstance(settings.get("alpha"), int | float):
            return "undo"
        case "distill" if settings.get("start") in (None, "random", "init", "scratch") or "student" in words:
            return "student"
    return "control"


def ramp(alpha: float) -> str:
    """Return the colour of UNDO at damage `alpha`, the same in every report."""
    place = min(max(alpha, 0.0), 1.0) * (len(UNDO_RAMP) - 1)
    index = min(int(place), len(UNDO_RAMP) - 2)
    mixed = (a + (b - a) * (place - index) for a, b in zip(UNDO_RAMP[index], UNDO_RAMP[index + 1], strict=True))
    return "#" + "".join(f"{round(channel):02x}" for channel in mixed)


def looks(models: Sequence[Model]) -> list[Look]:
    """Return one look a model: colour by role and alpha; dash and marker tell apart those that share a colour."""
    families = list(dict.fromkeys(family(model) for model in models if role(model) == "undo"))
    used: Counter[str] = Counter()
    result = []
    for model in models:
        part = role(model)
        colour, symbol, dash = ROLES[part]
        turn = used[part]
        if part == "undo":
            turn = families.index(family(model))
            colour, symbol = ramp(model["settings"]["alpha"]), UNDO_SYMBOLS[turn % len(UNDO_SYMBOLS)]
        used[part] += 1
        result.append(Look(part, colour, symbol, DASHES[(DASHES.index(dash) + turn) % len(DASHES)]))
    return result


def family(model: Model) -> str:
    """Return what two UNDO models have in common when they differ in alpha only."""
    settings = model.get("settings") or {}
    return repr([settings.get(key) for key in ("method", "teacher", "beta")])


def curve(model: Model, measure: str) -> dict[str, list[Any]]:
    """Return `steps`, `worst`, `low` and `high` of one attack measure, equally long; empty lists without an attack."""
    attack = model.get("attack") or {}
    steps = attack.get("steps") or []
    values = attack.get(measure) or {}
    values = values if isinstance(values, dict) else {"worst": values}
    padded = {key: [*(values.get(key) or []), *[None] * len(steps)][: len(steps)] for key in ("worst", "low", "high")}
    return {"steps": steps, **padded}


def at_step(model: Model, step: int | None, measure: str = "forget_heldout") -> Estimate:
    """Return (value, low, high) of a measure after `step` attack steps, None where it was not measured."""
    points = curve(model, measure)
    if step not in points["steps"]:
        return None, None, None
    index = points["steps"].index(step)
    return points["worst"][index], points["low"][index], points["high"][index]


def over_attack(model: Model, measure: str = "forget_heldout") -> Estimate:
    """Return the mean height of a curve: its area divided by the attack's length."""
    points = curve(model, measure)
    return tuple(_mean_height(points["steps"], points[key]) for key in ("worst", "low", "high"))  # type: ignore[return-value]


def _mean_height(steps: Sequence[float], values: Sequence[float | None]) -> float | None:
    known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    if len(known) < 2:
        return known[0][1] if known else None
    area = sum((b - a) * (u + v) / 2 for (a, u), (b, v) in pairwise(known))
    return area / (known[-1][0] - known[0][0])


def landmarks(models: Sequence[Model]) -> tuple[int, int, int] | None:
    """Return the first, middle and last attack step that every attacked model was measured at, or None."""
    grids = [set(model["attack"]["steps"]) for model in models if (model.get("attack") or {}).get("steps")]
    if not grids:
        return None
    steps = sorted(set.intersection(*grids) or set.union(*grids))
    middle = min(steps, key=lambda step: abs(step - (steps[0] + steps[-1]) / 2))
    return steps[0], middle, steps[-1]


def relearning(models: Sequence[Model], scale: Scale = ACCURACY) -> dict[str, Figure]:
    """Return the three panels of worst-case curves under an attack, keyed by the id of their place on the page."""
    drawn = [(model, look) for model, look in zip(models, looks(models), strict=True) if curve(model, "")["steps"]]
    if not drawn:
        return {}
    panels = {}
    for measure, place in RELEARNING.items():
        traces = [trace for model, look in drawn for trace in _curve_traces(model, look, measure, scale)]
        panels[place] = _figure(traces, "attack step", _range(traces, scale), scale)
    for panel in panels.values():
        panel["layout"]["xaxis"]["range"] = _span([step for model, _ in drawn for step in model["attack"]["steps"]])
    low, high = panels["panel-heldout"]["layout"]["yaxis"]["range"]
    undo = [model for model, look in drawn if look.role == "undo"]
    _label_ends(panels["panel-heldout"], undo, 0.05 * (high - low) / 1.02)
    return panels


def _span(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [low, high] if low < high else [low - 1, high + 1]


def _label_ends(figure: Figure, models: Sequence[Model], apart: float) -> None:
    """Write alpha at the end of the lines of `models`, leaving out those whose label would cover another."""
    alphas = {model["name"]: f"{model['settings']['alpha']:g}" for model in models}
    ends = [t for t in figure["data"] if t["legendgroup"] in alphas and "customdata" in t and t["y"][-1] is not None]
    below = -math.inf
    for trace in sorted(ends, key=lambda trace: trace["y"][-1]):
        if trace["y"][-1] - below >= apart:
            below = trace["y"][-1]
            words = [""] * (len(trace["x"]) - 1) + [f" α {alphas[trace['legendgroup']]}"]
            style = {"textposition": "middle right", "textfont": {"color": trace["line"]["color"], "size": 12}}
            trace.update(mode=trace["mode"] + "+text", text=words, cliponaxis=False, **style)
    figure["layout"]["margin"]["r"] = 48


def _curve_traces(model: Model, look: Look, measure: str, scale: Scale) -> list[dict[str, Any]]:
    """Return a confidence band (where there is one) and the line over it."""
    points = curve(model, measure)
    rates = [*((model["attack"].get("best_learning_rate")) or []), *[None] * len(points["steps"])]
    line = {
        **_named(model),
        "mode": "lines" if len(points["steps"]) > 12 else "lines+markers",
        "x": points["steps"],
        "y": points["worst"],
        "customdata": ["not recorded" if rate is None else f"{rate:g}" for rate in rates[: len(points["steps"])]],
        "line": {"color": look.colour, "dash": look.dash, "width": 2.4},
        "marker": {"color": look.colour, "symbol": look.symbol, "size": 6},
        "hovertemplate": "<b>%{fullData.name}</b><br>step %{x}: "
        + f"%{{y:{scale.hover}}}<br>learning rate %{{customdata}}<extra></extra>",
    }
    return [*_band(model, look, points), line]


def _band(model: Model, look: Look, points: dict[str, list[Any]]) -> list[dict[str, Any]]:
    rows = zip(points["steps"], points["low"], points["high"], strict=True)
    known = [(step, low, high) for step, low, high in rows if low is not None and high is not None]
    if len(known) < 2:
        return []
    steps, low, high = (list(column) for column in zip(*known, strict=True))
    outline = {"x": steps + steps[::-1], "y": high + low[::-1], "mode": "lines", "line": {"width": 0}}
    return [{**_named(model), **outline, "fill": "toself", "fillcolor": _fade(look.colour), "hoverinfo": "skip"}]


def compute(models: Sequence[Model], scale: Scale = ACCURACY) -> tuple[dict[str, Figure], list[str]]:
    """Return compute against robustness and against retain, and the labels of models that lack a number for it.

    Compute is a share of the oracle's training where any model has one, else FLOPs.
    """
    relative = any(model.get("compute_vs_oracle") is not None for model in models)
    costs = [model.get("compute_vs_oracle") if relative else flops(model) for model in models]
    points = [(m, k, c) for m, k, c in zip(models, looks(models), costs, strict=True) if c is not None]
    points = [point for point in points if at_step(point[0], _last(models))[0] is not None]
    missing = [m["label"] for m in models if curve(m, "")["steps"] and not any(m is point[0] for point in points)]
    if not points:
        return {}, missing
    left = [trace for key, _, estimate in measures(models) for trace in _scatter(points, key, estimate, scale)]
    right = _scatter(points, None, lambda model: (model.get("retain"), None, None), scale)
    axis = _compute_axis([cost for _, _, cost in points], relative)
    figures = {
        "panel-robustness": _figure(left, "", (-0.05, 1.06) if scale is ACCURACY else _range(left, scale), scale),
        "panel-cost-retain": _figure(right, "", _retain_range(points, right, scale), scale),
    }
    for figure in figures.values():
        figure["layout"]["xaxis"] |= axis
        figure["layout"]["shapes"] = [_vertical(1.0)] if relative else []
        figure["layout"]["annotations"] = [_hint(1.0)] if relative else []
        _place_labels(figure)
    return figures, missing


def measures(models: Sequence[Model]) -> list[tuple[str, str, Callable[[Model], Estimate]]]:
    """Return the ways to sum up a curve in one number: (key, words, function); the first is shown at the start."""
    steps = landmarks(models)
    if steps is None:
        return []
    _, middle, last = steps
    chosen: list[tuple[str, str, Callable[[Model], Estimate]]] = [
        ("last", f"after {last:,} attack steps", lambda model: at_step(model, last)),
        ("middle", f"after {middle:,} steps", lambda model: at_step(model, middle)),
        ("mean", "mean over the whole attack", over_attack),
    ]
    return chosen if len(set(steps)) == 3 else chosen[:1]


def flops(model: Model) -> float | None:
    """Return all FLOPs in a model's ledger, or None without one."""
    known = [value for value in (model.get("flops") or {}).values() if value is not None]
    return sum(known) if known else None


def _last(models: Sequence[Model]) -> int | None:
    steps = landmarks(models)
    return steps[-1] if steps else None


def _scatter(
    points: Sequence[tuple[Model, Look, float]], key: str | None, estimate: Callable[[Model], Estimate], scale: Scale
) -> list[dict[str, Any]]:
    """Return a thread through each family's alphas and a marker a model, tagged with the measure they belong to."""
    tag = {"meta": {"measure": key}, "visible": key in (None, "last")}
    drawn = [
        ({**_marker(model, look, cost, estimate(model), scale), **tag}, model, look) for model, look, cost in points
    ]
    undo = sorted((d for d in drawn if d[2].role == "undo"), key=lambda d: d[1]["settings"]["alpha"])
    threads = [
        {**THREAD, "x": [d[0]["x"][0] for d in members], "y": [d[0]["y"][0] for d in members], **tag}
        for name in dict.fromkeys(family(model) for _, model, _ in undo)
        for members in [[d for d in undo if family(d[1]) == name]]
    ]
    return [*threads, *(trace for trace, _, _ in drawn)]


THREAD = {"type": "scatter", "mode": "lines", "line": {"color": "#a9b7cc", "width": 1.6}, "hoverinfo": "skip"}


def _marker(model: Model, look: Look, cost: float, estimate: Estimate, scale: Scale) -> dict[str, Any]:
    value, low, high = estimate
    words = f"α = {model['settings']['alpha']:g}" if look.role == "undo" else model["label"]
    hollow = model.get("recovered") is False
    outline = {"width": 2, "color": look.colour if hollow else "#ffffff"}
    marker = {"symbol": look.symbol + "-open" * hollow, "color": look.colour, "size": 13, "line": outline}
    trace: dict[str, Any] = {
        **_named(model), "mode": "markers+text", "x": [cost], "y": [value], "text": [_wrapped(words)],
        "textfont": {"color": TEXT, "size": 12.5}, "cliponaxis": False, "marker": marker,
        "hovertemplate": "<b>%{fullData.name}</b><br>compute %{x}, "
        + f"{scale.name} %{{y:{scale.hover}}}<extra></extra>",
    }  # fmt: skip
    if value is not None and low is not None and high is not None:
        reach = {"type": "data", "symmetric": False, "array": [high - value], "arrayminus": [value - low]}
        trace["error_y"] = {**reach, "color": look.colour, "thickness": 1.4, "width": 4}
    return trace


def _compute_axis(costs: Sequence[float], relative: bool) -> dict[str, Any]:
    top = max([*costs, 1.0] if relative else costs)
    words = "compute, as a share of retraining the oracle" if relative else "compute (FLOPs)"
    ticks = {"tickformat": ".0%"} if relative else {"exponentformat": "power"}
    return {"title": {"text": words, "font": {"size": 13}}, "range": [-0.06 * top, 1.3 * top], **ticks}


def _retain_range(
    points: Sequence[tuple[Model, Look, float]], traces: Sequence[dict[str, Any]], scale: Scale
) -> tuple[float, float]:
    """Return a y range that shows differences, but never less than 20 points of accuracy."""
    if scale is not ACCURACY:
        return _range(traces, scale)
    floor = min((model["retain"] for model, _, _ in points if model.get("retain") is not None), default=0.0)
    return max(0.0, min(floor - 0.06, 0.8)), 1.02


def _place_labels(figure: Figure, width: float = 470, height: float = 300) -> None:
    """Choose a side for every label, first come first served, so that labels stay off markers and each other.

    Measures share a panel but not a moment, so each is placed by itself. Sizes are pixels of a typical panel. A label
    that would be hard to read anywhere is dropped; its marker still tells its name to the pointer.
    """
    (left, right), (bottom, top) = (figure["layout"][axis]["range"] for axis in ("xaxis", "yaxis"))
    labelled = [trace for trace in figure["data"] if "text" in trace and trace["y"][0] is not None]
    for measure in {trace["meta"]["measure"] for trace in labelled}:
        group = [trace for trace in labelled if trace["meta"]["measure"] == measure]
        group.sort(key=lambda trace: trace["text"][0].startswith("α"))  # names before alphas, which are easily guessed
        at = [_pixels(trace, (left, right, width), (bottom, top, height)) for trace in group]
        taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in at]
        for trace, point in zip(group, at, strict=True):
            _place_label(trace, point, taken, width, height)


def _pixels(trace: dict[str, Any], x: tuple[float, float, float], y: tuple[float, float, float]) -> tuple[float, float]:
    return (trace["x"][0] - x[0]) / (x[1] - x[0]) * x[2], (trace["y"][0] - y[0]) / (y[1] - y[0]) * y[2]


def _place_label(
    trace: dict[str, Any], point: tuple[float, float], taken: list[Box], width: float, height: float
) -> None:
    lines = html.unescape(trace["text"][0]).split("<br>")
    sides = _label_boxes(*point, 7.0 * max(map(len, lines)), 16.0 * len(lines))
    cost = {
        side: _outside(box, width, height) + sum(_overlap(box, other) for other in taken) for side, box in sides.items()
    }
    best = min(cost, key=lambda side: cost[side])
    if cost[best] > 150:  # square pixels: about two letters
        trace["mode"] = "markers"
        return
    trace["textposition"] = best
    taken.append(sides[best])


def _label_boxes(x: float, y: float, wide: float, tall: float) -> dict[str, Box]:
    """Return where a label of this many pixels would lie for each of Plotly's text positions, best first."""
    across = {"center": (x - wide / 2, x + wide / 2), "right": (x + 9, x + 9 + wide), "left": (x - 9 - wide, x - 9)}
    along = {"middle": (y - tall / 2, y + tall / 2), "top": (y + 9, y + 9 + tall), "bottom": (y - 9 - tall, y - 9)}
    order = ("middle right", "top right", "bottom right", "middle left", "top left", "bottom left")
    return {
        name: _box(across[name.split()[1]], along[name.split()[0]]) for name in (*order, "top center", "bottom center")
    }


def _box(across: tuple[float, float], along: tuple[float, float]) -> Box:
    return across[0], along[0], across[1], along[1]


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, width: float, height: float) -> float:
    return 100.0 * (box[0] < 0 or box[2] > width + 10 or box[1] < 0 or box[3] > height + 10)


def plotly_text(words: str) -> str:
    """Escape `words` for Plotly, which reads tags in names and labels."""
    return html.escape(str(words), quote=False)


def _wrapped(words: str, width: int = 18) -> str:
    return "<br>".join(plotly_text(line) for line in textwrap.wrap(str(words), width) or [""])


def _named(model: Model) -> dict[str, Any]:
    return {"type": "scatter", "name": plotly_text(model["label"]), "legendgroup": model["name"]}


def _fade(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"


def _vertical(x: float) -> dict[str, Any]:
    line = {"color": MUTED, "width": 1.2, "dash": "dot"}
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": line, "layer": "below"}


def _hint(x: float) -> dict[str, Any]:
    place = {"x": x, "yref": "paper", "y": 1.0, "xanchor": "center", "yanchor": "bottom", "showarrow": False}
    return {**place, "text": "oracle = 100 %", "font": {"size": 11.5, "color": MUTED}}


def _range(traces: Sequence[dict[str, Any]], scale: Scale) -> tuple[float, float]:
    """Return a y range that holds the traces: all of a scale that ends, else their own span with a margin."""
    if math.isfinite(scale.bounds[1]):
        return scale.bounds[0], 1.02 * scale.bounds[1]
    values = [y for trace in traces for y in trace["y"] if y is not None] or [0.0, 1.0]
    margin = 0.08 * (max(values) - min(values)) or 0.1
    return max(min(values) - margin, scale.bounds[0]), max(values) + margin


def _figure(
    traces: Iterable[dict[str, Any]], x_title: str, y_range: tuple[float, float] = (0, 1.02), scale: Scale = ACCURACY
) -> Figure:
    """Return a figure in the page's style; y is a score."""
    return {"data": list(traces), "layout": layout(x_title, y_range, scale)}


def layout(x_title: str = "", y_range: tuple[float, float] = (0, 1.02), scale: Scale = ACCURACY) -> dict[str, Any]:
    """Return the layout that all figures share; y is a score."""
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": "#b9c1cc", "ticks": "outside", "tickcolor": "#b9c1cc"}
    return {
        "font": {"family": FONT, "size": 13, "color": TEXT},
        "xaxis": {**axis, "title": {"text": x_title, "font": {"size": 13}}, "showgrid": False, "showline": True},
        "yaxis": {**axis, "range": list(y_range), "tickformat": scale.tick},
        "margin": {"l": 52, "r": 22, "t": 28, "b": 50},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#a9b3c0", "activecolor": TEXT},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False, "hovermode": "closest", "hoverlabel": {"bgcolor": "#ffffff", "font": {"color": TEXT}},
    }  # fmt: skip
