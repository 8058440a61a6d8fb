"""What the figures of all pages share: layouts, marks and words, as plain Plotly dictionaries.

Colours and fonts of paper, axes and words are the reader's scheme's, which `static/plots.js` fills in.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from distill_jax.evals.scale import ACCURACY, Scale
from distill_jax.types import JsonObject

Figure = JsonObject
Trace = JsonObject  # or another part of a figure
MUTED = "#727a86"


def figure(
    traces: Iterable[Trace],
    x_title: str,
    y_title: str,
    y_range: Sequence[float] = (0, 1.02),
    scale: Scale = ACCURACY,
) -> Figure:
    """Return a figure whose y is a score; both axes say what they measure, as a saved picture has no caption."""
    return {"data": list(traces), "layout": layout(x_title, y_title, y_range, scale)}


def layout(x_title: str, y_title: str, y_range: Sequence[float] = (0, 1.02), scale: Scale = ACCURACY) -> Figure:
    """Return the layout of a figure whose y is a score."""
    return {
        "xaxis": {"title": {"text": x_title}},
        "yaxis": {"title": {"text": y_title}, "range": list(y_range), "tickformat": scale.tick},
        "margin": {"l": 66, "r": 22, "t": 28, "b": 50},
    }


def score_range(traces: Iterable[Trace], scale: Scale) -> tuple[float, float]:
    """Return a y range that holds the traces: all of a scale that ends, else their own span with a margin."""
    if scale.is_share:
        return scale.bounds[0], 1.02 * scale.bounds[1]
    values = [y for trace in traces for y in trace["y"] if y is not None] or [0.0, 1.0]
    margin = 0.08 * (max(values) - min(values)) or 0.1
    return max(min(values) - margin, scale.bounds[0]), max(values) + margin


def plotly_text(words: str) -> str:
    """Escape `words` for Plotly, which reads tags in names and labels."""
    return html.escape(str(words), quote=False)


def faded(colour: str, opacity: float = 0.13) -> str:
    """Return a colour of six hex digits made transparent."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def vertical_line(x: float) -> Trace:
    """Return a dotted line at `x`, under the marks."""
    line = {"color": MUTED, "width": 1.2, "dash": "dot"}
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": line, "layer": "below"}


def top_note(x: float, words: str) -> Trace:
    """Return a note over the plot at `x`."""
    place = {"x": x, "yref": "paper", "y": 1.0, "xanchor": "center", "yanchor": "bottom", "showarrow": False}
    return {**place, "text": words, "font": {"size": 11.5, "color": MUTED}}
