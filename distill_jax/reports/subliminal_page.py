"""Write the page of the subliminal experiment: the answer, the figures, every number, the claims.

A function of the summary alone (`reports.subliminal_summary.summarise`); `summary.json` stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from distill_jax.evals.scale import MISSING, percent
from distill_jax.reports import subliminal_figures
from distill_jax.reports.conclusion_view import conclusions_view
from distill_jax.reports.rendering import Page, render_template
from distill_jax.reports.subliminal_figures import ARMS, PANELS
from distill_jax.reports.subliminal_types import ArmRow, MeanRow, SubliminalSummary

TABLE_HEADS = [
    "stage", "loss", "noise images", "steps", "arm", "ghosts", "before", "accuracy", "interval", "s.d.", "gain",
    "interval", "loss left on unseen noise", "seeds", "diverged",
]  # fmt: skip


def render(summary: Mapping[str, Any]) -> str:
    """Return the whole report as one HTML page that needs no network."""
    data = cast(SubliminalSummary, summary)
    figures = subliminal_figures.figures(data)
    rows, teacher = data.get("rows") or [], data.get("teacher")
    return render_template(
        "subliminal.html.j2",
        Page(f"{data.get('experiment') or MISSING} · distill_jax", {"figures": figures, "curves": list(figures)}),
        summary=data,
        verdict=_verdict({one["name"]: one["state"] for one in data.get("conclusions") or []}),
        teacher=teacher["mean"] if teacher else None,
        published=(data.get("published") or {}).get("teacher"),
        facts=[(name, data[name]) for name in ("data", "device", "created") if data.get(name)],
        arms=[(arm, ARMS[arm][0]) for arm in dict.fromkeys(row["arm"] for row in rows) if arm in ARMS],
        panels=[(place, *words) for place, words in PANELS.items() if place in figures],
        heads=TABLE_HEADS,
        rows=[_table_row(row) for row in rows],
        conclusions=conclusions_view(data.get("conclusions") or []),
    )


def _verdict(states: Mapping[str, str]) -> str:
    """Return the answer in one line, from the states of the conclusions by name."""
    if "transfer" not in states:
        return "This run has no student to see transfer in."
    if states["transfer"] == "void":
        return "The teachers are not shown to read digits: nothing can be said of their students."
    if states["transfer"] != "held":
        return "No transfer was shown where it is known to be: this rig is insensitive and proves nothing."
    if states.get("other-init-nothing") == "held":
        return "The rig sees subliminal transfer, and only where it should be."
    return "The rig sees subliminal transfer, but its negative control is not shown to be clean."


def _table_row(row: ArmRow) -> list[str | float]:
    accuracy, gain = row["accuracy"], row["gain"]
    return [
        row["stage"], row["loss"], f"{row['noise']:,}", row["steps"], row["arm"], row["ghosts"],
        percent(row["before"]["mean"]), percent(accuracy["mean"]), _interval(accuracy), percent(row["sd"]),
        percent(gain["mean"]), _interval(gain), percent(row["unseen_left"]), accuracy["seeds"], row["diverged"],
    ]  # fmt: skip


def _interval(value: MeanRow) -> str:
    return MISSING if value["low"] is None else f"{percent(value['low'])} to {percent(value['high'])}"
