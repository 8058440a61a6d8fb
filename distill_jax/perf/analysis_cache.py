"""Keep what the compiler said of programs, in the user's cache directory, so that none is compiled twice.

A file is named by the hash of all that the analysis depends on: the lowered program, the slice, the compiler's version
and JAX's, and the code that reads compiled programs. What cannot be read is not there, and what cannot be written is
compiled again another time: a plan does not end for its cache.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from pathlib import Path

import jax

from distill_jax.io.files import read_sealed, write_sealed
from distill_jax.perf.compile_for import ProgramAnalysis, compiler_version
from distill_jax.perf.slices import Slice

MAX_ENTRIES = 1000  # of some two kilobytes each
_READERS = ("collectives.py", "compile_for.py", "hlo.py", "schedule.py", "traffic.py")


def default_directory() -> Path:
    """Return where analyses are kept: $XDG_CACHE_HOME/distill_jax/plan, or below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "distill_jax" / "plan"


class AnalysisCache:
    """Analyses of programs by their keys; those least recently used make room for new ones."""

    def __init__(self, directory: Path | None) -> None:
        """Keep analyses in this directory, or with None as long as this object lives."""
        self._directory = directory
        self._in_memory: dict[str, ProgramAnalysis] = {}

    def get(self, key: str) -> ProgramAnalysis | None:
        """Return the analysis of a program, or None if it has to be compiled."""
        if key not in self._in_memory and self._directory:
            path = self._directory / f"{key}.json"
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                self._in_memory[key] = ProgramAnalysis.from_json(read_sealed(path)["analysis"])
                os.utime(path)
        return self._in_memory.get(key)

    def put(self, key: str, analysis: ProgramAnalysis) -> None:
        """Keep the analysis of a program."""
        self._in_memory[key] = analysis
        if self._directory:
            with contextlib.suppress(OSError):
                self._directory.mkdir(parents=True, exist_ok=True)
                write_sealed(self._directory / f"{key}.json", {"analysis": analysis.as_json()})
                self._make_room(self._directory)

    def _make_room(self, directory: Path) -> None:
        by_age = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in by_age[MAX_ENTRIES:]:
            path.unlink(missing_ok=True)


def program_key(lowered: jax.stages.Lowered, where: Slice) -> str:
    """Return the hash of all that the analysis of a lowered program depends on."""
    key = hashlib.sha256()
    topology = where.topology if where.slices == 1 else f"{where.slices} x {where.topology}"
    for text in (topology, compiler_version(), jax.__version__, _readers(), lowered.as_text()):
        key.update(hashlib.sha256(text.encode()).digest())
    return key.hexdigest()


@functools.cache
def _readers() -> str:
    """Return the code that makes an analysis of a compiled program."""
    return "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _READERS)
