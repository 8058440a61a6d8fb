"""How each model of a run is drawn: one colour, dash and marker through the whole page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from distill_jax.reports.summary_types import ModelSummary

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
SVG_DASHES = {
    "solid": "none", "dashdot": "7 3 2 3", "longdash": "11 4", "dot": "2 3", "dash": "7 4", "longdashdot": "11 3 2 3",
}  # fmt: skip
DASHES = tuple(SVG_DASHES)


@dataclass(frozen=True)
class TraceStyle:
    """How one model is drawn; `svg_dash` is `dash` for a swatch."""

    role: str
    colour: str
    symbol: str
    dash: str

    @property
    def svg_dash(self) -> str:
        """Return the dash as SVG has it."""
        return SVG_DASHES[self.dash]


def role(model: ModelSummary) -> str:
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


def alpha_colour(alpha: float) -> str:
    """Return the colour of UNDO at damage `alpha`, the same in every report."""
    place = min(max(alpha, 0.0), 1.0) * (len(UNDO_RAMP) - 1)
    index = min(int(place), len(UNDO_RAMP) - 2)
    mixed = (a + (b - a) * (place - index) for a, b in zip(UNDO_RAMP[index], UNDO_RAMP[index + 1], strict=True))
    return "#" + "".join(f"{round(channel):02x}" for channel in mixed)


def trace_styles(models: Sequence[ModelSummary]) -> list[TraceStyle]:
    """Return one style a model: colour by role and alpha; dash and marker tell apart those that share a colour."""
    families = list(dict.fromkeys(family(model) for model in models if role(model) == "undo"))
    used: Counter[str] = Counter()
    styles = []
    for model in models:
        part = role(model)
        colour, symbol, dash = ROLES[part]
        turn = used[part]
        if part == "undo":
            turn = families.index(family(model))
            colour, symbol = alpha_colour(model["settings"]["alpha"]), UNDO_SYMBOLS[turn % len(UNDO_SYMBOLS)]
        used[part] += 1
        styles.append(TraceStyle(part, colour, symbol, DASHES[(DASHES.index(dash) + turn) % len(DASHES)]))
    return styles


def family(model: ModelSummary) -> str:
    """Return what two UNDO models have in common when they differ in alpha only."""
    settings = model.get("settings") or {}
    return repr([settings.get(key) for key in ("method", "teacher", "beta")])


def short_label(model: ModelSummary, longest: int = 22) -> str:
    """Return a model's label as it fits into a figure."""
    if role(model) == "undo":
        return f"α {model['settings']['alpha']:g}"
    label = re.sub(r" \([^)]*\)|, suppressed", "", model["label"]).replace("Random student", "student")
    return label if len(label) <= longest else label[: longest - 1].rstrip() + "…"
