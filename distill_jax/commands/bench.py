"""`distill-jax bench`: measure speed and memory on synthetic data."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from distill_jax import backend
from distill_jax.bench.options import Options
from distill_jax.commands import command_line
from distill_jax.commands.command_line import Parsed, flag
from distill_jax.config import check, nearest

HELP = {
    "json": "file for the results",
    "preset": "model of models/presets.py",
    "dtype": "float32 or bfloat16",
    "batch": "rows",
    "length": "tokens a row",
    "vocab": "vocabulary of kl_memory",
    "chunk": "tokens whose logits exist at a time",
    "steps": "steps timed together",
    "repeats": "rounds of interleaved times",
    "rounds": "whole runs of population",
    "members": "members of the population",
    "minutes": "what accelerator may take; it runs what fits, the most telling first",
    "tiny": "tiny shapes in accelerator, which then also runs on a CPU",
    "torch_python": "a Python that has torch and transformers",
}
Flags = dataclasses.make_dataclass(
    "Flags",
    [
        (f.name, f.type, flag(f.default, HELP[f.name], path="file" if f.name == "json" else False))
        for f in dataclasses.fields(Options)
    ],
    frozen=True,
)


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    from distill_jax.bench import runner

    lines = ["benchmarks (* runs only when named; a flag of 0 or nothing is the benchmark's own choice):"]
    for name in runner.BENCHMARKS:
        lines.append(f"  {name:13}{runner.summary_line(name)}{'' if name in runner.USUAL else ' *'}")
    return command_line.usage("bench", Flags, "[NAME …] [--flag=value …]", "\n".join(lines))


def main(arguments: Sequence[str], out: TextIO | None = None) -> int:
    """Run the benchmarks that are named, or the usual ones."""
    backend.set_up({"cpu_devices": 2})
    from distill_jax.bench import runner

    parsed: Parsed[Any] = command_line.read("bench", Flags, arguments, words=True)
    for name in parsed.words:
        mend = f"{nearest(name, runner.BENCHMARKS)}; there are {', '.join(runner.BENCHMARKS)}"
        check(name in runner.BENCHMARKS, f"unknown benchmark {name!r}{mend}")
    options = Options(**dataclasses.asdict(parsed.flags))
    backend.find_devices()
    line = shlex.join(["distill-jax", "bench", *arguments])
    runner.run(parsed.words or runner.USUAL, options, line, out or sys.stdout)
    return 0
