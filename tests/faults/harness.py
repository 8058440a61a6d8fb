"""Workers to be killed, files to be spoilt, and what must come out all the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from distill_jax.io.files import read_sealed
from tests.programs import environment

ROOT = Path(__file__).parent.parent.parent
SWEEP = "tests/faults/tiny_sweep.py"
# Enough steps that accuracies differ, and checkpoints between logged steps and evaluations, where a careless restart
# would show.
SETTINGS = (
    "--config.data.multiplication_max=3",
    "--config.reference.steps=120",
    "--config.reference.batch=8",
    "--config.reference.checkpoint_every=35",
    "--config.distill.steps=25",
    "--config.distill.checkpoint_every=7",
    "--config.relearn.steps=24",
    "--config.relearn.evaluate_steps=(0,8,24)",
    "--config.relearn.checkpoint_every=11",
    "--config.run.progress_seconds=0",
)


def command(workdir: Path) -> list[str]:
    """Return the arguments of one worker."""
    return ["sweep", f"--sweep={SWEEP}", *SETTINGS, f"--workdir={workdir}"]


class Workers:
    """Start workers of the tiny sweep on one compilation cache."""

    def __init__(self, base: Path):
        self.base = base
        self.env = environment(base / "compiled")

    def start(self, workdir: Path, *more: str) -> subprocess.Popen[str]:
        """Start one worker in a process group of its own; what it says goes to a file that `said` reads."""
        workdir.parent.mkdir(parents=True, exist_ok=True)
        log = open(f"{workdir}.{len(list(workdir.parent.glob(f'{workdir.name}.*.log')))}.log", "w")  # noqa: SIM115
        line = [sys.executable, "-m", "distill_jax", *command(workdir), *more]
        with log:
            return subprocess.Popen(
                line, cwd=ROOT, env=self.env, stdout=log, stderr=log, text=True, start_new_session=True
            )

    def __call__(self, workdir: Path, *more: str) -> tuple[int, str]:
        """Run one worker to its end, and return its exit code and what it said."""
        process = self.start(workdir, *more)
        try:
            process.wait(timeout=600)
        finally:
            kill(process)
        return process.returncode, said(workdir)[-1]


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a worker and whatever it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def said(workdir: Path) -> list[str]:
    """Return what each worker of a directory said, in the order they were started."""
    logs = list(workdir.parent.glob(f"{workdir.name}.*.log"))
    return [path.read_text() for path in sorted(logs, key=lambda p: int(p.name.split(".")[-2]))]


def computed(texts: list[str]) -> list[str]:
    """Return the name of every node that a worker says it has done, once for each time."""
    found: list[str] = []
    for line in "".join(texts).splitlines():
        match = re.match(r"\[\d+/\d+\] (.*?)  done", line)
        if match:
            found += match[1].split(", ")
    return found


def nodes(workdir: Path) -> dict[str, Path]:
    """Return the nodes' directories by the names that workers give them."""
    found = sorted((workdir / "nodes").iterdir()) if (workdir / "nodes").exists() else []
    return {"data" if path.name.startswith("data-") else path.name: path for path in found}


def attempted(workdir: Path, stage: str) -> list[Path]:
    """Return the directories of the newest attempts at a stage's nodes that are not finished."""
    found = [[p for p in home.iterdir() if p.name.isdecimal()] for home in (workdir / "attempts").glob(f"{stage}-*")]
    return [max(paths, key=lambda path: int(path.name)) for paths in found if paths]


def results(workdir: Path) -> dict[str, Any]:
    """Return all numbers of a sweep: its summary, and every node's rows, results and FLOPs."""
    summary = read_sealed(workdir / "report/sweep.json")
    del summary["created"]
    found: dict[str, Any] = {"summary": summary}
    for name, path in nodes(workdir).items():
        assert (path / "DONE").exists(), name
        for file in ("metrics.jsonl", "result.json"):
            found[f"{name}/{file}"] = (path / file).read_text() if (path / file).exists() else None
        found[f"{name}/flops"] = json.loads((path / "ledger.json").read_text())["flops"]
    return found


def assert_same(one: Path, other: Path) -> None:
    """Fail unless two sweeps came to the same, number for number and row for row."""
    mine, theirs = results(one), results(other)
    assert set(mine) == set(theirs)
    assert [name for name in mine if mine[name] != theirs[name]] == []
