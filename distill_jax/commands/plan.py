"""`distill-jax plan`: compile an experiment for a TPU slice that is not there; print memory, time and cost."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from distill_jax import backend
from distill_jax.commands import config_line
from distill_jax.commands.command_line import flag
from distill_jax.config import check
from distill_jax.experiment.config_file import check_stages, load_experiment

# Of a process that plans, and of no other: on a pod the first would break the detection of the cluster.
PLANNING = {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two plans at a time: no chip is touched
}
SLICE = "--slice is missing: name the TPU slice to plan for, such as v5e-16, or auto"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of plan."""

    slice: str = flag("", "accelerator type to plan for, or auto: the cheapest it fits on", required=SLICE)
    workdir: str = flag("", "DIR: not needed; a run's own line may be used again", path=True)
    stages: tuple[str, ...] | None = flag(None, "NAME,…: the only stages")
    json: str | None = flag(None, "FILE: where the plan is also written", path=True)
    prices: str | None = flag(None, "FILE: price table", path=True)
    verbose: bool = flag(False, "also print where every parameter lies")


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    synopsis = "--config=NAME|FILE.py[:preset] --slice=v5e-16 [--config.key=value …]"
    return config_line.usage("plan", Flags, arguments, synopsis)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    os.environ.update(PLANNING)  # before the config's imports bring JAX
    parsed, named = config_line.read("plan", Flags, arguments)
    from distill_jax.perf import slices

    flags = parsed.flags
    if flags.slice != "auto":
        slices.find(flags.slice)
    check(flags.stages is None or any(flags.stages), "--stages= names none; leave it out to plan all of them")
    stages = list(flags.stages or ())
    check_stages(stages, named.module, named.config)
    backend.import_jax()
    from distill_jax.experiment import slice_plan

    prices = slice_plan.load_prices(flags.prices)
    experiment = load_experiment(named.module, named.config)
    rows = slice_plan.run(experiment, flags.slice, prices, stages=stages, verbose=flags.verbose)
    if flags.json:
        slice_plan.save(rows, flags.json)
    return 0
