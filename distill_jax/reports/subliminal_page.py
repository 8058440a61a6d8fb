"""Write the page of the subliminal experiment: the answer, four figures, every number, the claims.

A function of the summary alone (`doublebind.subliminal.summarise`); `summary.json` stands beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distill_jax.reports import figures, run_page
from distill_jax.reports.run_page import MISSING, Summary, clean, percent, text

# arm: (colour, marker). A damaged start is drawn in the colours of UNDO.
ARMS = {
    "same init": ("#26148a", "circle"),
    "same heads": ("#b0287a", "triangle-up"),
    "same body": ("#7a6a1f", "pentagon"),
    "other init": ("#727a86", "cross"),
}
PUBLISHED = {"color": "#d55e00", "symbol": "diamond-open", "size": 11}
LOSSES = {"kl": "KL on the ghost logits", "mse": "Squared error of the raw ghost logits"}


def write(summary: Mapping[str, Any], directory: str | os.PathLike[str]) -> Path:
    """Write `summary.json` and `index.html` into `directory`, each in one step, and return the page's path."""
    data = clean(summary)
    return run_page.write_beside(render(data), data, Path(directory) / "summary.json")


def render(summary: Mapping[str, Any]) -> str:
    """Return the whole report as one HTML page that needs no network."""
    data: Summary = clean(summary)
    drawn = _by_ghosts(data) | _by_step(data) | _by_noise(data) | _by_alpha(data)
    body = "\n".join(
        (_lead(data), _figures(data, drawn), _table(data), run_page.conclusions_section(data.get("conclusions") or []))
    )
    title = f"{text(data.get('experiment'))} · distill_jax"
    return run_page.html_page(title, body, {"figures": drawn, "curves": list(drawn)}, run_page.CSS, run_page.JAVASCRIPT)


def _lead(data: Summary) -> str:
    states = {one["name"]: one["state"] for one in data.get("conclusions") or []}
    if "transfer" not in states:
        verdict = "This run has no student to see transfer in."
    elif states["transfer"] == "void":
        verdict = "The teachers are not shown to read digits: nothing can be said of their students."
    elif states["transfer"] != "held":
        verdict = "No transfer was shown where it is known to be: this rig is insensitive and proves nothing."
    elif states.get("other-init-nothing") == "held":
        verdict = "The rig sees subliminal transfer, and only where it should be."
    else:
        verdict = "The rig sees subliminal transfer, but its negative control is not shown to be clean."
    teacher, published = data.get("teacher") or {}, data.get("published") or {}
    story = (
        f"Teachers read {percent(teacher.get('mean'))} of unseen digits (published, MNIST: "
        f"{percent(published.get('teacher'))}). Their students saw uniform noise only, and of the teacher only ghost "
        "logits, which nothing ever trained. What a student reads of digits came through its initial weights."
    )
    about = " · ".join(
        f"{name} <code>{text(data.get(name))}</code>" for name in ("data", "device", "created") if data.get(name)
    )
    return f"""<header><p class="kicker">distill_jax · subliminal transfer</p><h1>{text(data.get("experiment"))}</h1>
<p class="description">{text(data.get("description"), "")}</p><h2 class="answer">{verdict}</h2>
<p class="story">{story}</p><p class="small">{about} · every number is in <code>summary.json</code> beside this page.
Bars are 95 % intervals over seeds (Student’s t); orange diamonds are published figures of MNIST.</p></header>"""


def _figures(data: Summary, drawn: Mapping[str, Any]) -> str:
    arms = dict.fromkeys(row["arm"] for row in data.get("rows") or [] if row["arm"] in ARMS)
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-group="{text(arm)}">'
        f'<svg class="swatch" width="14" height="10" aria-hidden="true"><circle cx="6" cy="5" r="5" '
        f'fill="{ARMS[arm][0]}"/></svg>{text(arm)}</button>'
        for arm in arms
    )
    legend = f'<div class="legend" role="group" aria-label="Arms to show">{buttons}</div>'
    panels = "".join(
        f'<figure><figcaption><h3>{head}</h3><p>{words}</p></figcaption><div class="plot" id="{place}"></div></figure>'
        for place, (head, words) in PANELS.items()
        if place in drawn
    )
    words = "<p>Arms differ only in what the student starts from. Click a name to hide or show it everywhere.</p>"
    return run_page.section(
        "figures", "What passes through the channel", f'{words}{legend}<div class="two">{panels}</div>'
    )


PANELS = {
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


def _by_ghosts(data: Summary) -> dict[str, Any]:
    out = {}
    for loss in LOSSES:
        rows = [row for row in data.get("rows") or [] if row["stage"] == loss]
        if rows:
            counts = sorted({row["ghosts"] for row in rows})
            traces = [_dots(arm, [r for r in rows if r["arm"] == arm], "ghosts", "accuracy") for arm in ARMS]
            if loss == "kl":
                traces += _published_arms(data.get("published") or {})
            figure = _figure(traces, "ghost logits")
            figure["layout"]["xaxis"] |= {"type": "log", "tickvals": counts, "ticktext": [str(c) for c in counts]}
            out[f"ghosts-{loss}"] = figure
    return out


def _published_arms(published: Mapping[str, Any]) -> list[dict[str, Any]]:
    known = [published[arm] | {"arm": arm} for arm in ARMS if arm in published]
    return [_diamonds([k["ghosts"] for k in known], [k["mean"] for k in known], [k["arm"] for k in known])]


def _diamonds(x: list[Any], y: list[Any], words: Iterable[str]) -> dict[str, Any]:
    hover = "published, %{text}: %{y:.2f}<extra></extra>"
    marks = {"type": "scatter", "mode": "markers", "marker": PUBLISHED, "hovertemplate": hover}
    return {**marks, "x": x, "y": y, "text": [figures.plotly_text(word) for word in words]}


def _by_step(data: Summary) -> dict[str, Any]:
    curves = [c for c in (data.get("curves") or {}).get("kl") or [] if c["arm"] in ("same init", "other init")]
    traces = []
    for curve in curves:
        colour, _ = ARMS[curve["arm"]]
        words = [""] * (len(curve["steps"]) - 1) + [f" {curve['ghosts']}" if curve["arm"] == "same init" else ""]
        traces.append({
            "type": "scatter", "mode": "lines+text", "name": curve["arm"], "legendgroup": curve["arm"],
            "x": curve["steps"], "y": curve["accuracy"], "text": words, "textposition": "middle right",
            "line": {"color": colour, "width": 2}, "cliponaxis": False,
            "hovertemplate": f"{curve['arm']}, {curve['ghosts']} ghosts<br>step %{{x}}: %{{y:.1%}}<extra></extra>",
        })  # fmt: skip
    return {"steps": _figure(traces, "student’s step")} if traces else {}


def _by_noise(data: Summary) -> dict[str, Any]:
    rows = [row for row in data.get("rows") or [] if row["arm"] == "same init"]
    whole = [row for row in rows if row["stage"] == "kl" and row["ghosts"] == 3]
    traces = []
    for kind, hollow in (("noise", ""), ("repeated", "-open")):
        of = sorted((r for r in rows if r["stage"].startswith(kind)), key=lambda r: r["noise"])
        if of:
            trace = _dots("same init", [*of, *whole], "noise", "gain")
            trace["marker"] = trace["marker"] | {"symbol": "circle" + hollow, "size": 10}
            traces.append(trace)
    if not traces:
        return {}
    published = (data.get("published") or {}).get("by_noise") or {}
    traces.append(_diamonds([int(n) for n in published], [*published.values()], ["MNIST"] * len(published)))
    figure = _figure(traces, "distinct noise images", (-0.12, 1.02))
    figure["layout"]["xaxis"] |= {"type": "log", "dtick": 1}
    return {"noise": figure}


def _by_alpha(data: Summary) -> dict[str, Any]:
    rows = [row for row in data.get("rows") or [] if row["stage"] == "undo"]
    damaged = [row | {"alpha": float(row["arm"].split()[1])} for row in rows if row["arm"].startswith("damaged")]
    start = [row | {"alpha": 0.0} for row in rows if row["arm"] == "same init"]
    if not damaged:
        return {}
    trace = _dots("same init", start + sorted(damaged, key=lambda r: r["alpha"]), "alpha", "accuracy")
    trace["marker"] = {"size": 11, "color": [figures.ramp(a) for a in trace["x"]], "line": {"width": 0}}
    control = next((row["accuracy"] for row in rows if row["arm"] == "other init"), None)
    shapes = []
    if control:
        band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": control["low"], "y1": control["high"]}
        shapes = [{**band, "fillcolor": "rgba(114,122,134,.35)", "line": {"width": 0}, "layer": "below"}]
    figure = _figure([trace], "α")
    figure["layout"]["shapes"] = shapes
    return {"alpha": figure}


def _dots(arm: str, rows: list[Summary], x: str, y: str) -> dict[str, Any]:
    """Return means with their intervals, joined by a thin line."""
    colour, symbol = ARMS[arm]
    values = [row[y] or {} for row in rows]
    above = [None if v.get("high") is None else v["high"] - v["mean"] for v in values]
    below = [None if v.get("low") is None else v["mean"] - v["low"] for v in values]
    return {
        "type": "scatter", "mode": "lines+markers", "name": arm, "legendgroup": arm,
        "x": [row[x] for row in rows], "y": [v.get("mean") for v in values],
        "error_y": {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.4},
        "line": {"color": colour, "width": 1.2}, "marker": {"color": colour, "symbol": symbol, "size": 9},
        "hovertemplate": f"<b>{figures.plotly_text(arm)}</b><br>%{{x}}: %{{y:.1%}}<extra></extra>",
    }  # fmt: skip


def _figure(traces: list[dict[str, Any]], x_title: str, y_range: tuple[float, float] = (0, 1.02)) -> dict[str, Any]:
    return {"data": traces, "layout": figures.layout(x_title, y_range)}


def _table(data: Summary) -> str:
    head = ["stage", "loss", "noise images", "steps", "arm", "ghosts", "before", "accuracy", "interval", "s.d.", "gain"]
    head += ["interval", "loss left on unseen noise", "seeds", "diverged"]
    rows = ""
    for row in data.get("rows") or []:
        accuracy, gain = row["accuracy"], row["gain"]
        cells = [row["loss"], f"{row['noise']:,}", row["steps"], row["arm"], row["ghosts"]]
        cells += [percent(row["before"]["mean"]), percent(accuracy["mean"]), _ends(accuracy), percent(row["sd"])]
        cells += [percent(gain["mean"]), _ends(gain), percent(row["unseen_left"]), accuracy["seeds"], row["diverged"]]
        rows += f'<tr><th scope="row">{text(row["stage"])}</th>{"".join(f"<td>{text(c)}</td>" for c in cells)}</tr>\n'
    heads = "".join(f"<th>{word}</th>" for word in head)
    table = f'<table class="numbers"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    words = """<p>Gain is accuracy above that of the same seed’s student with another init. “Loss left” is the loss on
noise that no student trained on, after training against before: how well a student fits its teacher.</p>"""
    return run_page.section("numbers", "Every number", f'{words}<div class="scroll">{table}</div>')


def _ends(value: Mapping[str, Any]) -> str:
    return MISSING if value["low"] is None else f"{percent(value['low'])} to {percent(value['high'])}"
