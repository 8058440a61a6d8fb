"""Read what the TPU compiler decided of a program before it generates its code: HLO, schedule and buffers.

The compiler writes them where `xla_dump_to` says, seconds after it began; its machine code takes minutes more and says
nothing of a program but its size, and what some operations need beside their results.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from pathlib import Path

from distill_jax.perf.compile_for import ProgramAnalysis, read_program

_PROGRAM = "*after_optimizations_after_buffer_assignment.txt"  # written last
_BUFFERS = "*after_optimizations-buffer-assignment.txt"
_ALLOCATION = re.compile(r"allocation \d+: size (\d+), (.*):$", re.MULTILINE)
_ELSEWHERE = re.compile(r"\bcolor [1-9]")


def read_schedule(directory: Path, slice_of: Sequence[int]) -> ProgramAnalysis | None:
    """Return the analysis of the one program that is dumped in a directory; None as long as it is not all there.

    Its `hbm` has no "code", and temporaries without what the code of single operations needs.

    Args:
      slice_of: the slice of each of the program's devices.
    """
    program, buffers = (next(directory.glob(pattern), None) for pattern in (_PROGRAM, _BUFFERS))
    if not program or not buffers:
        return None
    text = program.read_text(encoding="utf-8")
    if not text.rstrip().endswith("}"):
        return None  # being written
    return read_program(text, buffer_sizes(buffers.read_text(encoding="utf-8")), slice_of)


def buffer_sizes(text: str) -> dict[str, int]:
    """Return the bytes of HBM by kind, from a dump of the compiler's buffer assignment."""
    sizes = collections.Counter(dict.fromkeys(("arguments", "outputs", "aliased", "temporaries"), 0))
    for size, what in _ALLOCATION.findall(text):
        if _ELSEWHERE.search(what):
            continue
        lives_on = "maybe-live-out" in what
        if "parameter" in what:
            sizes["arguments"] += int(size)
            sizes["aliased"] += int(size) * lives_on
        elif "preallocated-temp" in what:
            sizes["temporaries"] += int(size)
        sizes["outputs"] += int(size) * (lives_on or what.startswith("output"))
    return dict(sizes)
