"""What a command is to compute in a directory, in `workers/plan-<identity>.json`: for the eye, not for decisions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from distill_jax.config import identity
from distill_jax.io.files import read_json, write_json
from distill_jax.io.storage import make_directory

WORKERS = "workers"


@dataclasses.dataclass(frozen=True)
class PlannedNode:
    """A node that a command computes unless it is there.

    Attributes:
      name: its stage's; directory: the name of its own.
      inputs: the directories of the nodes that it needs.
      flops: at its most steps.
    """

    name: str
    directory: str
    verb: str
    inputs: Sequence[str]
    flops: float


def write_plan(workdir: Path, nodes: Sequence[PlannedNode]) -> str:
    """Write a plan, unless it cannot be written, and return its name."""
    name = f"plan-{identity([node.directory for node in nodes])}"
    with contextlib.suppress(OSError):
        make_directory(workdir / WORKERS)
        write_json(workdir / WORKERS / f"{name}.json", [dataclasses.asdict(node) for node in nodes])
    return name


def read_plan(workdir: Path, name: str) -> list[PlannedNode]:
    """Return a plan's nodes, inputs first; [] if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return [PlannedNode(**entry) for entry in read_json(workdir / WORKERS / f"{name}.json")]
    return []
