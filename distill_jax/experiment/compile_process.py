"""Ask the TPU compiler in a process of its own, which is ended once the program is scheduled.

Generating machine code takes libtpu minutes for a program that it schedules in seconds, and no option ends it before.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cloudpickle

from distill_jax.experiment.config_file import user_modules
from distill_jax.experiment.lowered_group import LoweredGroup, group_step
from distill_jax.io.files import read_json, write_json
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf.analysis_cache import program_key
from distill_jax.perf.compile_for import ProgramAnalysis, compile_for, partitioner_warnings, slices_of, topology
from distill_jax.perf.schedule import read_schedule
from distill_jax.perf.slices import Slice, find
from distill_jax.stages.context import Context, Node, RunSettings

_REQUEST, _ANALYSIS, _PRINTED = "request.pickle", "analysis.json", "printed.txt"
_POLL_SECONDS = 0.1


class Request(NamedTuple):
    """What a process is asked, and the other half of what it needs to lower the same program.

    Attributes:
      stages: that train together.
      program: its hash, so that both processes mean the same.
    """

    model: TransformerConfig
    nodes: dict[str, Node]
    run: RunSettings
    stages: Sequence[str]
    remat: str
    slice: str
    program: str


def compile_apart(group: LoweredGroup, where: Slice, codegen: bool) -> ProgramAnalysis:
    """Return what the compiler says of a group's program: to its end, or up to the schedule.

    Raises:
      RuntimeError: with the compiler's message, if it fails for another reason than the program's size.
    """
    began, ctx = time.monotonic(), group.ctx
    names, key = [node.name for node in group.nodes], program_key(group.lowered, where)
    with tempfile.TemporaryDirectory(prefix="distill-jax-plan-") as directory:
        here = Path(directory)
        (here / _REQUEST).write_bytes(
            pickled(Request(ctx.model, ctx.nodes, ctx.run, names, group.remat, where.name, key))
        )
        with (here / _PRINTED).open("w") as printed:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, directory],
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


def pickled(request: Request) -> bytes:
    """Return a request in bytes, with the definitions of stages that config files define."""
    for module in user_modules():
        cloudpickle.register_pickle_by_value(module)
    return bytes(cloudpickle.dumps(request))


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


def main(directory: Path) -> None:
    """Compile what a request names, and write the analysis beside what the compiler dumps."""
    request: Request = pickle.loads((directory / _REQUEST).read_bytes())
    ctx = Context.not_run(request.model, request.nodes, Path(), request.run)
    where = find(request.slice)
    step = group_step(ctx, [ctx.nodes[name] for name in request.stages], topology(where)).with_remat(request.remat)
    lowered = step.trace().lower()
    if program_key(lowered, where) != request.program:
        raise RuntimeError(f"{', '.join(request.stages)}: another program than the plan's came of the same settings")
    write_json(directory / _ANALYSIS, compile_for(lowered, step.mesh, directory).as_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
