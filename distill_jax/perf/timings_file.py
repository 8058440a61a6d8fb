"""What an unfinished node has taken so far, in `timings.json` beside it: a killed process's time is not forgotten.

It goes as the node is finished, whose ledger then has it, and is copied to a new attempt like every record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from distill_jax.io.files import read_json, write_json
from distill_jax.io.node_files import DONE, TIMINGS
from distill_jax.io.storage import is_file
from distill_jax.perf.clock import CAUSES, Clock, Timings


def read_timings(directory: Path) -> Timings:
    """Return what earlier processes have taken for a node: nothing, if nothing can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return Timings.from_json(read_json(directory / TIMINGS))
    return Timings(dict.fromkeys(CAUSES, 0.0))


def write_timings(directories: Sequence[Path], clock: Clock) -> None:
    """Write what each node has taken so far, but of those that are finished meanwhile."""
    for directory, timings in zip(directories, clock.timings(), strict=True):
        if not is_file(directory / DONE):
            with contextlib.suppress(OSError):
                write_json(directory / TIMINGS, {**timings.as_json(), "training": clock.training()})
