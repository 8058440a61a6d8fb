"""Where the labels of a figure go, so that they stay off each other, the marks, the ticks and the plot's edge."""

from __future__ import annotations

import html
from collections.abc import Sequence

from distill_jax.reports.plotly_layout import Figure, Trace

Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels
LETTER, LINE = 7.0, 16.0  # pixels of a label's letter and line
TOLERATED = 40.0  # square pixels of overlap: about half a letter


def place_labels(figure: Figure, width: float = 500, height: float = 300) -> None:
    """Choose a side for every label of a scatter plot, first come first served.

    Measures share a panel but not a moment, so each is placed by itself. Sizes are pixels of a typical panel. A label
    that has no free place is dropped; its marker still tells its name to the pointer.
    """
    x_range, y_range = (figure["layout"][axis]["range"] for axis in ("xaxis", "yaxis"))
    labelled = [trace for trace in figure["data"] if "text" in trace and trace["y"][0] is not None]
    for measure in {trace["meta"]["measure"] for trace in labelled}:
        group = [trace for trace in labelled if trace["meta"]["measure"] == measure]
        group.sort(key=_is_alpha)  # names before alphas, which are easily guessed
        points = [(_pixels(trace["x"][0], x_range, width), _pixels(trace["y"][0], y_range, height)) for trace in group]
        taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in points]
        for trace, point in zip(group, points, strict=True):
            _place_label(trace, point, taken, width, height)


def _is_alpha(trace: Trace) -> bool:
    return bool(trace["text"][0].startswith("α"))


def _pixels(value: float, ends: Sequence[float], size: float) -> float:
    return (value - ends[0]) / (ends[1] - ends[0]) * size


def _place_label(trace: Trace, point: tuple[float, float], taken: list[Box], width: float, height: float) -> None:
    lines = html.unescape(trace["text"][0]).split("<br>")
    sides = _label_boxes(*point, LETTER * max(map(len, lines)), LINE * len(lines))
    inside = {side: box for side, box in sides.items() if _is_inside(box, width, height)}
    cost = {side: sum(_overlap(box, other) for other in taken) for side, box in inside.items()}
    best = min(cost, key=lambda side: cost[side], default=None)
    if best is None or cost[best] > TOLERATED:
        trace["mode"] = "markers"
        return
    trace["textposition"] = best
    taken.append(sides[best])


def _label_boxes(x: float, y: float, wide: float, tall: float) -> dict[str, Box]:
    """Return where a label of this many pixels would lie for each of Plotly's text positions, best first."""
    across = {"center": (x - wide / 2, x + wide / 2), "right": (x + 9, x + 9 + wide), "left": (x - 9 - wide, x - 9)}
    along = {"middle": (y - tall / 2, y + tall / 2), "top": (y + 9, y + 9 + tall), "bottom": (y - 9 - tall, y - 9)}
    order = ("middle right", "top right", "bottom right", "middle left", "top left", "bottom left")
    boxes = {}
    for name in (*order, "top center", "bottom center"):
        vertical, horizontal = name.split()
        (left, right), (bottom, top) = across[horizontal], along[vertical]
        boxes[name] = (left, bottom, right, top)
    return boxes


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _is_inside(box: Box, width: float, height: float) -> bool:
    return box[0] >= 4 and box[1] >= 4 and box[2] <= width - 4 and box[3] <= height - 4


def spread(places: Sequence[float], apart: float, top: float) -> list[float]:
    """Return ascending places moved as little as it takes to lie `apart` from each other, within [0, top].

    Neighbours that are too near share one block, centred on its members (pool adjacent violators).
    """
    blocks: list[tuple[float, int]] = []  # (mean of place less index within all · apart, members)
    for index, place in enumerate(places):
        mean, members = place - index * apart, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, members = (before * count + mean * members) / (count + members), count + members
        blocks.append((mean, members))
    room = max(top - (len(places) - 1) * apart, 0.0)
    offsets = [min(max(mean, 0.0), room) for mean, members in blocks for _ in range(members)]
    return [offset + index * apart for index, offset in enumerate(offsets)]
