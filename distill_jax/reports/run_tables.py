"""The tables of a run's page: every number of every model, and the settings and compute by cause."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill_jax.evals.scale import MISSING, Scale
from distill_jax.reports.attack_curves import at_step, landmarks
from distill_jax.reports.formats import count, scientific, tenths
from distill_jax.reports.summary_types import ModelSummary
from distill_jax.reports.trace_style import TraceStyle, trace_styles
from distill_jax.stages.methods import METHODS
from distill_jax.stages.unlearn import unread_settings

Value = float | bool | None


@dataclass(frozen=True)
class Cell:
    """One number: `value` as JSON, by which the table sorts, `shade` between 0 and 1 or None, `warn` in red."""

    value: str
    words: str
    shade: str | None
    edge: bool
    warn: bool = False


@dataclass(frozen=True)
class Column:
    """One column: its values, one a model, and how they are written."""

    group: str
    label: str
    values: Sequence[Value]
    write: Callable[[float], str]
    shaded: bool = False

    def cell(self, row: int, edge: bool) -> Cell:
        """Return the cell of one model."""
        value = self.values[row]
        if value is None:
            return Cell("", MISSING, None, edge)
        shade = f"{min(max(value, 0), 1):.3f}" if self.shaded else None
        return Cell(json.dumps(value), self.write(value), shade, edge, warn=value is False)


@dataclass(frozen=True)
class Row:
    """One model."""

    name: str
    label: str
    style: TraceStyle
    cells: list[Cell]


@dataclass(frozen=True)
class ModelTable:
    """All models: `groups` are (name, columns), `heads` (label, whether a group begins)."""

    groups: list[tuple[str, int]]
    heads: list[tuple[str, bool]]
    rows: list[Row]


@dataclass(frozen=True)
class Ledger:
    """Settings and compute by cause: rows of (label, stage, settings, numbers)."""

    heads: list[str]
    rows: list[tuple[str, str | None, str, list[str]]]


def model_table(models: Sequence[ModelSummary], scale: Scale) -> ModelTable:
    """Return the table of all models, columns of one group side by side."""
    chosen = _columns(models, scale)
    groups = Counter(column.group for column in chosen)  # counts in order of first appearance
    order = list(groups)
    chosen.sort(key=lambda column: order.index(column.group))
    edges = [i == 0 or chosen[i - 1].group != column.group for i, column in enumerate(chosen)]
    heads = [(column.label, edge) for column, edge in zip(chosen, edges, strict=True)]
    rows = [
        Row(m["name"], m["label"], style, [c.cell(i, edge) for c, edge in zip(chosen, edges, strict=True)])
        for i, (m, style) in enumerate(zip(models, trace_styles(models), strict=True))
    ]
    return ModelTable(list(groups.items()), heads, rows)


def _columns(models: Sequence[ModelSummary], scale: Scale) -> list[Column]:
    """Return the columns that these models fill: one a group of prompts, one a landmark of the attack."""
    names = dict.fromkeys(name for model in models for name in model.get("by_group") or {})
    steps = sorted(set(landmarks(models) or ()))
    shaded = scale.is_share
    columns = [
        Column(scale.name, "retain", [m.get("retain") for m in models], scale.cell, shaded),
        Column(scale.name, "forget", [m.get("forget") for m in models], scale.cell, shaded),
    ]
    for name in names:
        values = [((m.get("by_group") or {}).get(name) or {}).get(scale.key) for m in models]
        columns.append(Column(*_group_heading(name, scale), values, scale.cell, shaded))
    for step in steps:
        values = [at_step(m, step)[0] for m in models]
        columns.append(Column("held-out, worst case", f"step {step:,}", values, scale.cell, shaded))
    columns.append(Column("training", "steps", [m.get("steps") for m in models], _whole))
    relative = ("compute", [m.get("compute_vs_oracle") for m in models])
    passage = ("to the same goal", [m.get("compute_vs_first_passage") for m in models])
    for label, shares in (relative, passage):
        if any(share is not None for share in shares):
            columns.append(Column("training", label, shares, tenths))
    return [*columns, Column("training", "goal", [m.get("recovered") for m in models], _goal)]


def _group_heading(name: str, scale: Scale) -> tuple[str, str]:
    operation, _, form = name.partition("/")
    return (operation, form) if form else (f"{scale.name} by group", operation)


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _goal(met: float) -> str:
    return "met" if met else "missed"


def _read_settings(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the settings without those that are there for other unlearning methods than the model's."""
    method = settings.get("method")
    unread = unread_settings(method, settings.get("robust") or "") if method in METHODS else ()
    return [(key, value) for key, value in settings.items() if key not in unread]


def ledger(models: Sequence[ModelSummary]) -> Ledger:
    """Return the settings, the compute by cause and the attackers that diverged."""
    causes = list(dict.fromkeys(cause for model in models for cause in model.get("flops") or {}))
    rows = []
    for model in models:
        settings = ", ".join(f"{key} = {value}" for key, value in _read_settings(model.get("settings") or {}))
        numbers = [scientific((model.get("flops") or {}).get(cause)) for cause in causes]
        numbers += [count(model.get("seeds")), count((model.get("attack") or {}).get("diverged"))]
        rows.append((model["label"], model.get("stage"), settings, numbers))
    return Ledger([*(f"{cause}, FLOPs" for cause in causes), "seeds", "diverged"], rows)
