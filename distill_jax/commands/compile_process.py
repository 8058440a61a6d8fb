"""Ask the TPU compiler in a process of its own, which is ended once the program is scheduled.

Generating machine code takes libtpu minutes for a program that it schedules in seconds, and no option ends it before.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from distill_jax.config import check
from distill_jax.experiment.lowered_group import LoweredGroup, group_step
from distill_jax.io.files import read_json, write_json
from distill_jax.perf.analysis_cache import program_key
from distill_jax.perf.compile_for import ProgramAnalysis, compile_for, partitioner_warnings, slices_of, topology
from distill_jax.perf.schedule import read_schedule
from distill_jax.perf.slices import Slice, find

_ANALYSIS, _PRINTED = "analysis.json", "printed.txt"
_POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Request:
    """What a process is asked.

    Attributes:
      arguments: of `distill-jax plan`.
      nodes: the stages that train together.
      program: its hash, so that both processes mean the same.
      directory: where the answer is written.
    """

    arguments: Sequence[str]
    slice: str
    nodes: Sequence[str]
    remat: str
    program: str
    directory: str


class CompileProcess:
    """Compiles programs of one plan, each in a process of its own."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Compile for the plan that `distill-jax plan` makes of these arguments."""
        self._arguments = list(arguments)

    def __call__(self, group: LoweredGroup, where: Slice, codegen: bool) -> ProgramAnalysis:
        """Return what the compiler says of a group's program: to its end, or up to the schedule.

        Raises:
          RuntimeError: with the compiler's message, if it fails for another reason than the program's size.
        """
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="distill-jax-plan-") as directory:
            here = Path(directory)
            names = [node.name for node in group.nodes]
            key = program_key(group.lowered, where)
            request = Request(self._arguments, where.name, names, group.remat, key, directory)
            with (here / _PRINTED).open("w") as printed:
                process = subprocess.Popen(
                    [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(request))],
                    stdout=subprocess.DEVNULL,
                    stderr=printed,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            try:
                analysis = _answer(process, here, slices_of(group.mesh), codegen)
            finally:
                process.kill()
                process.wait()
            warnings = partitioner_warnings((here / _PRINTED).read_text(errors="replace").splitlines())
        return dataclasses.replace(analysis, seconds=time.monotonic() - began, warnings=warnings)


def _answer(
    process: subprocess.Popen[bytes], directory: Path, slice_of: Sequence[int], codegen: bool
) -> ProgramAnalysis:
    """Wait for what a process finds out: its schedule, if no more is wanted, else what it says at its end."""
    while process.poll() is None:
        time.sleep(_POLL_SECONDS)
        schedule = None if codegen else read_schedule(directory, slice_of)
        if schedule:
            return schedule
    if process.returncode:
        raise RuntimeError((directory / _PRINTED).read_text(errors="replace")[-2000:])
    return ProgramAnalysis.from_json(read_json(directory / _ANALYSIS))


def main(argument: str) -> None:
    """Compile what a `Request` names, and write the analysis beside what the compiler dumps."""
    from distill_jax import backend
    from distill_jax.commands import config_line, plan
    from distill_jax.experiment.config_file import load_experiment
    from distill_jax.experiment.slice_plan import planning_context

    request = Request(**json.loads(argument))
    _, named = config_line.read("plan", plan.Flags, request.arguments)
    backend.import_jax()
    ctx, where = planning_context(load_experiment(named.module, named.config)), find(request.slice)
    step = group_step(ctx, [ctx.nodes[name] for name in request.nodes], topology(where)).with_remat(request.remat)
    lowered = step.trace().lower()
    check(program_key(lowered, where) == request.program, "the config changed while it was planned; plan it again")
    directory = Path(request.directory)
    write_json(directory / _ANALYSIS, compile_for(lowered, step.mesh, directory).as_json())


if __name__ == "__main__":
    main(sys.argv[1])
