"""Make the tables of docs/planning.md anew: run the plans that stand above each, and write what they say.

python docs/make_planning.py                  # all, in some ten minutes of a core; a program is compiled once
python docs/make_planning.py --only=steps     # one table; --help lists them

Where a table lies in the page is said by its markers. What a plan compiled is kept in the user's cache, so a run that
was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "planning.md"
GIB = 2**30
Row = Mapping[str, Any]  # of a plan's JSON file


@dataclasses.dataclass(frozen=True)
class Plan:
    """One row: a stage of a config on a slice, under a label; "" for the stage's name."""

    config: str
    stage: str
    slice: str
    label: str = ""
    changed: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The arguments of `distill-jax` that plan it."""
        stages = [f"--stages={self.stage}"]
        return ["plan", f"--config=configs/{self.config}", f"--slice={self.slice}", *stages, *self.changed]


Column = tuple[str, Callable[[Plan, Row], str]]


def _gib(plan: Plan, row: Row) -> str:
    del plan
    kinds = " + ".join(
        f"{row['hbm'][kind] / GIB:.2f}" for kind in ("arguments", "temporaries", "code") if kind in row["hbm"]
    )
    return f"{kinds} = {row['hbm_bytes'] / GIB:.2f} ({row['hbm_capacity'] / GIB:.2f})"


def _parts(plan: Plan, row: Row) -> str:
    del plan
    shares = sorted(row["traffic_by_part"].items(), key=lambda share: -share[1])
    return f"{row['hbm_traffic'] / 1e9:,.0f}: " + ", ".join(
        f"{part} {moved / 1e9:,.0f}" for part, moved in shares if moved >= 0.005 * row["hbm_traffic"]
    )


def _money(plan: Plan, row: Row) -> str:
    del plan
    return "unknown" if row["cost"] is None else f"{row['cost']:,.3g}"


LABEL: Column = ("step", lambda plan, row: plan.label.format(members=row["members"]) or f"`{row['stage']}`")
SLICE: Column = ("slice", lambda plan, row: row["slice"] + "".join(f" ({flag[9:]})" for flag in plan.changed))
MEMORY: Column = ("GiB a chip: arguments + temporaries = all (of)", _gib)
WORK: Column = ("TFLOP a step", lambda plan, row: f"{row['flops_per_step'] / 1e12:,.0f}")
SECONDS: Column = (
    "seconds: compute, memory, interconnect",
    lambda plan, row: ", ".join(f"{row['seconds'][kind]:.2f}" for kind in ("compute", "memory", "interconnect")),
)
STEP: Column = ("seconds a step", lambda plan, row: f"{row['step_seconds']:.3g}")
FLOOR: Column = ("of them compute", lambda plan, row: f"{row['seconds']['compute']:.3g}")
BOUND: Column = ("bound by", lambda plan, row: row["bound"])
MFU: Column = ("MFU at most", lambda plan, row: f"{100 * row['mfu_ceiling']:.0f} %")
PARTS: Column = ("through HBM in a step, GB, by part", _parts)
RECEIVED: Column = (
    "received by a chip",
    lambda plan, row: f"{sum(kind['bytes'] for kind in row['collectives'].values()) / 1e9:,.3g} GB",
)
STEPS: Column = ("steps", lambda plan, row: str(row["steps"]))
HOURS: Column = ("chip-hours", lambda plan, row: f"{row['chip_hours']:,.3g}")
COST: Column = ("USD", _money)

WHOLE = (LABEL, SLICE, MEMORY, WORK, SECONDS, MFU, RECEIVED, STEPS, HOURS, COST)
STUDENT = "teacher-organism-0-through-positive"
TABLES: dict[str, tuple[Sequence[Column], Sequence[Plan]]] = {
    "steps": (
        (LABEL, SLICE, STEP, FLOOR, BOUND, MFU, PARTS),
        (
            Plan("language.py", "reference", "v5e-16", "`language.py`, reference"),
            Plan("language.py", "student", "v5e-16", "`language.py`, {members} students together"),
            Plan("wmdp.py", "undo", "v5e-16", "`wmdp.py`, undo"),
            Plan("wmdp.py", "undo", "v6e-8", "`wmdp.py`, undo"),
            Plan("wmdp.py:9b", "undo", "v5p-64", "`wmdp.py:9b`, undo"),
            Plan("auditbench.py:qwen3-14b", STUDENT, "v5e-64", "qwen3-14b, an organism's student"),
            Plan("auditbench.py:llama-3.3-70b", STUDENT, "v5p-128", "llama-3.3-70b, an organism's student"),
        ),
    ),
    "gemma": (
        WHOLE,
        (
            Plan("wmdp.py", "undo", "v5e-16"),
            Plan("wmdp.py", "undo", "v5e-256", changed=("--config.run.tensor=4",)),
            Plan("wmdp.py", "undo", "v6e-8"),
            Plan("wmdp.py", "undo", "v5p-8"),
            Plan("wmdp.py", "undo", "v5p-128"),
            Plan("wmdp.py", "undo", "tpu7x-16"),
            Plan("wmdp.py:9b", "undo", "v5p-64", "`undo` of gemma-2-9b"),
        ),
    ),
    "llama": (WHOLE, (Plan("wmdp.py:70b", "thin", "v5p-128"), Plan("wmdp.py:70b", "relearn-thin", "v5p-128"))),
    "organisms": (
        WHOLE,
        (
            Plan("auditbench.py:qwen3-14b", STUDENT, "v5e-64", "qwen3-14b, a student"),
            Plan("auditbench.py:llama-3.3-70b", STUDENT, "v5p-128", "llama-3.3-70b, a student"),
            Plan("organism.py:qwen3-14b", "teacher-0", "v6e-64", "qwen3-14b, {members} teachers"),
        ),
    ),
    "language": (
        WHOLE,
        (
            Plan("language.py", "reference", "v5e-16"),
            Plan("language.py", "student", "v5e-16", "{members} students together"),
        ),
    ),
}


def rows_of(plan: Plan) -> list[Row]:
    """Plan, and return what the plan's file says of the stage."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "plan.json"
        print("distill-jax", *plan.arguments, flush=True)
        subprocess.run([sys.executable, "-m", "distill_jax", *plan.arguments, f"--json={file}"], cwd=ROOT, check=True)
        return [row for row in json.loads(file.read_text()) if row["stage"] == plan.stage]


def table(name: str, rows: Callable[[Plan], Sequence[Row]] = rows_of) -> str:
    """Return a table under the commands that make it."""
    columns, plans = TABLES[name]
    commands = dict.fromkeys(" ".join(["distill-jax", *plan.arguments]) for plan in plans)
    lines = ["```bash", *commands, "```", ""]
    lines += ["|" + "|".join(f" {heading} " for heading, _ in columns) + "|", "|" + "---|" * len(columns)]
    for plan in plans:
        for row in rows(plan):
            cells = [cell(plan, row) if row["fits"] or i < 2 else "does not fit" for i, (_, cell) in enumerate(columns)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def replaced(page: str, name: str, text: str) -> str:
    """Return the page with another text between a table's markers.

    Raises:
      ValueError: if the page has no such markers.
    """
    begin, end = f"<!-- table {name}: docs/make_planning.py -->\n", f"\n<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, also, after = rest.partition(end)
    if not found or not also:
        raise ValueError(f"the page has no table {name}: put {begin.strip()} and {end.strip()} where it belongs")
    return before + begin + text + end + after


def main() -> None:
    """Make the tables, one after the other, and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"NAME,… of {', '.join(TABLES)}")
    chosen = parser.parse_args().only
    names = chosen.split(",") if chosen else list(TABLES)
    if unknown := set(names) - set(TABLES):
        parser.error(f"--only: no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    for name in names:
        text = table(name)
        PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), name, text), encoding="utf-8")


if __name__ == "__main__":
    main()
