"""How each model of a run is drawn: one colour, dash and marker through the whole page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from distill_jax.experiment.roles import Role
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


PART_OF_ROLE: dict[str, str] = {  # a model's role (`experiment.roles`): the part it plays on the page
    Role.REFERENCE: "reference",
    Role.ORACLE: "oracle",
    Role.SUPPRESSED: "suppressed",
    Role.LOCKED: "suppressed",
    Role.UNDO: "undo",
    Role.UNDAMAGED: "undo",
    Role.NOISE_ONLY: "undo",
    Role.RANDOM_STUDENT: "student",
    Role.EQUAL_COMPUTE: "student",
    Role.REFERENCE_STUDENT: "student",
    Role.FILTERED: "student",
    Role.MATCHED_STUDENT: "student",
}


def role(model: ModelSummary) -> str:
    """Return what part a model plays: a key of `ROLES`."""
    part = PART_OF_ROLE.get(model["role"], "control") if "role" in model else _part_of_stage(model)
    has_alpha = isinstance((model.get("settings") or {}).get("alpha"), int | float)
    return part if has_alpha or part != "undo" else "control"


def _part_of_stage(model: ModelSummary) -> str:
    """Return the part of a model whose summary was written before roles were."""
    settings = model.get("settings") or {}
    match model.get("stage"):
        case "pretrain":
            return "oracle" if settings.get("data") == "retain" else "reference"
        case "import":
            return "reference"
        case "unlearn":
            return "suppressed"
        case "distill":
            return "undo" if "alpha" in settings else "control" if settings.get("start") else "student"
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
