"""Where the time of a run or a sweep went: `goodput.json` beside its summary, and the section of its page.

It is a file of its own because two runs of one experiment have the same summary and never the same times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from distill_jax.evals.scale import MISSING, percent
from distill_jax.io.files import write_sealed
from distill_jax.io.node import Node
from distill_jax.io.presence import read_workers
from distill_jax.io.storage import make_directory
from distill_jax.perf.clock import CAUSES
from distill_jax.perf.ledger import Goodput, total
from distill_jax.reports.formats import duration, scientific
from distill_jax.reports.report_file import read_report_file

FILE = "goodput.json"
BARS = 40  # of the nodes that took longest
LABELS = {
    "step": "productive steps",
    "compile": "compiling",
    "data": "waiting for data",
    "evaluate": "evaluating",
    "save": "saving",
    "restart": "lost to restarts",
    "idle": "idle",
}


class GoodputSummary(TypedDict):
    """What `goodput.json` holds.

    Attributes:
      nodes: finished ones by name; None of those whose ledgers do not have it.
      total: of the nodes together, and of what their workers did beside them; None if no ledger has it.
      workers: processes that ever worked in the directory.
    """

    nodes: dict[str, Goodput | None]
    total: Goodput | None
    workers: int


def summarise(nodes: Iterable[Node], workdir: Path) -> GoodputSummary:
    """Return where the time of finished nodes went, and of the workers of their directory."""
    by_name: dict[str, Goodput | None] = {node.name: node.ledger().get("goodput") for node in nodes if node.done}
    recorded, workers = [one for one in by_name.values() if one], read_workers(workdir)
    idle = sum(worker.outside for worker in workers)
    return {"nodes": by_name, "total": total(recorded, idle) if recorded else None, "workers": len(workers)}


def write(nodes: Iterable[Node], workdir: Path) -> None:
    """Write `report/goodput.json`, sealed."""
    path = workdir / "report" / FILE
    make_directory(path.parent)
    write_sealed(path, summarise(nodes, workdir))


def read(directory: Path) -> dict[str, GoodputSummary]:
    """Return {"goodput": what stands in a report's directory}, or {} if nothing does.

    Raises:
      ConfigError: if the file was changed since it was written, or is an earlier version's.
    """
    path = directory / FILE
    if not path.is_file():  # as in a report of an earlier version
        return {}
    return {"goodput": cast(GoodputSummary, read_report_file(path))}


@dataclass(frozen=True)
class Bar:
    """One bar: how long it took, and {cause: per cent} of what was anything."""

    name: str
    seconds: str
    shares: Mapping[str, float]


@dataclass(frozen=True)
class GoodputView:
    """The section of a page: an answer, bars, and the table for the run."""

    answer: str
    legend: Sequence[tuple[str, str]]
    bars: Sequence[Bar]
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


def view(summary: GoodputSummary) -> GoodputView | None:
    """Return what a page shows of it; None if no node's time was recorded."""
    overall, by_name = summary["total"], summary["nodes"]
    if overall is None:
        return None
    recorded = {name: one for name, one in by_name.items() if one}
    longest = sorted(recorded, key=lambda name: -_wall(recorded[name]))
    drawn = [name for name in recorded if name in set(longest[:BARS])]
    shown = {"all": overall, **{name: recorded[name] for name in drawn}}
    notes = []
    if len(recorded) < len(by_name):
        notes.append(f"Not recorded for {len(by_name) - len(recorded)} of {len(by_name)} nodes, of an earlier version.")
    if len(drawn) < len(recorded):
        notes.append(f"Shown are the {BARS} of {len(recorded)} nodes that took longest.")
    if any(one["achieved"] is not None and one["predicted"] is None for one in recorded.values()):
        notes.append("Predicted is the plan's roofline of the program that ran; it has no figures for these devices.")
    heads = ["", "wall time", *LABELS.values(), "achieved FLOP/s", "predicted FLOP/s", "achieved / predicted"]
    answer = f"{percent(_share(overall, 'step'))} of {duration(_wall(overall))} went into productive steps."
    bars = [Bar(name, duration(_wall(one)), _shares(one)) for name, one in shown.items()]
    rows = [[name, duration(_wall(one)), *_cells(one)] for name, one in shown.items()]
    return GoodputView(answer, list(LABELS.items()), bars, heads, rows, notes)


def _wall(one: Goodput) -> float:
    return sum(one["seconds"].values())


def _share(one: Goodput, cause: str) -> float:
    return one["seconds"][cause] / max(_wall(one), 1e-9)


def _shares(one: Goodput) -> dict[str, float]:
    return {cause: round(100 * _share(one, cause), 3) for cause in CAUSES if one["seconds"][cause] > 0}


def _cells(one: Goodput) -> list[str]:
    achieved, predicted = one["achieved"], one["predicted"]
    if achieved is None:  # it takes no steps
        speeds = [MISSING] * 3
    elif predicted is None:
        speeds = [scientific(achieved), "unknown", MISSING]
    else:
        speeds = [scientific(achieved), scientific(predicted), percent(achieved / predicted)]
    return [*(percent(_share(one, cause)) for cause in LABELS), *speeds]
