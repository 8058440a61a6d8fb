"""`distill-jax plan`: compile an experiment for a TPU slice that is not there; print memory, time and cost."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_jax import backend
from distill_jax.commands import config_line
from distill_jax.commands.command_line import flag
from distill_jax.config import check
from distill_jax.experiment.config_file import check_stages, load_experiment
from distill_jax.experiment.named_config import check_settings_are_read
from distill_jax.io.files import write_json
from distill_jax.io.storage import location
from distill_jax.perf.prices import Prices
from distill_jax.perf.slices import find

if TYPE_CHECKING:
    from distill_jax.experiment.experiment import CheckedExperiment

# Of a process that plans, and of no other: on a pod the first would break the detection of the cluster.
PLANNING = {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two plans at a time: no chip is touched
    "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",  # a kernel carries the lines that called it, and would be another program
}
SLICE = "--slice is missing: name the TPU slice to plan for, such as v5e-16, or auto"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of plan."""

    slice: str = flag(
        "", "accelerator type to plan for, several as in 2xv5e-16, or auto: the cheapest it fits on", required=SLICE
    )
    workdir: str = flag("", "DIR: not needed; a run's own line may be used again", path=True)
    stages: tuple[str, ...] | None = flag(None, "NAME,…: the only stages")
    json: str | None = flag(None, "FILE: where the plan is also written", path="file")
    prices: str | None = flag(None, "FILE: price table", path=True)
    cache: bool = flag(
        True, "keep what the compiler says of a program in ~/.cache/distill_jax/plan; --nocache does not"
    )
    codegen: bool = flag(
        False, "let the compiler go on to machine code, minutes a program: its size, and what single operations need"
    )
    verbose: bool = flag(False, "also print where every parameter lies")


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    synopsis = "--config=NAME|FILE.py[:preset] --slice=v5e-16 [--config.key=value …]"
    return config_line.usage("plan", Flags, arguments, synopsis)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    os.environ.update(PLANNING)  # before the config's imports bring JAX
    name, _ = config_line.take(arguments, "slice")
    if name and name != "auto":
        find(name)  # refused before any file is read
    parsed, named = config_line.read("plan", Flags, arguments)
    flags = parsed.flags
    check(flags.stages is None or any(flags.stages), "--stages= names none; leave it out to plan all of them")
    check_stages(list(flags.stages or ()), named.module, named.config)
    prices = Prices.load(flags.prices)
    backend.import_jax()
    check_settings_are_read(named)
    print_plan(flags, load_experiment(named.module, named.config), prices)
    return 0


def print_plan(flags: Flags, experiment: CheckedExperiment, prices: Prices) -> None:
    """Plan the chosen stages, print the table, and write the file."""
    from distill_jax.experiment import compile_process, slice_plan, slice_ranking
    from distill_jax.perf.analysis_cache import AnalysisCache, default_directory
    from distill_jax.perf.compile_for import compiler_version
    from distill_jax.reports import plan_table

    compiler_version()  # refused where there is none
    ctx = slice_plan.planning_context(experiment)
    groups = slice_plan.chosen_groups(ctx, flags.stages or ())
    compiler = slice_plan.Compiler(compile_process.compile_apart, flags.codegen)
    cache = AnalysisCache(default_directory() if flags.cache else None)
    planner = slice_plan.SlicePlanner(ctx, prices, cache, functools.partial(print, flush=True), compiler)
    auto = flags.slice == "auto"
    stages = slice_ranking.cheapest(planner, groups) if auto else planner.on_slice(groups, find(flags.slice))
    mesh = planner.mesh(groups, find(stages[0].slice))
    print(ctx.attention_note(mesh))
    if flags.verbose:
        print(plan_table.parameters(ctx, mesh))
    print(plan_table.table(stages, prices))
    if flags.json:
        write_json(location(flags.json), [stage.as_json() for stage in stages])
