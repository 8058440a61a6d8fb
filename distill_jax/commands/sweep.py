"""`distill-jax sweep`: compute many points over one config, alone or beside other workers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill_jax import backend, console, shipped
from distill_jax.commands import command_line, config_line
from distill_jax.commands.command_line import flag
from distill_jax.config import check
from distill_jax.exit_codes import ExitCode
from distill_jax.experiment import workers
from distill_jax.experiment.named_config import NamedConfig, open_config
from distill_jax.experiment.sweep_file import SweepFile, open_sweep

if TYPE_CHECKING:
    from distill_jax.experiment.sweep_graph import Sweep
    from distill_jax.experiment.work_units import Resources

ENGINE = (
    "ray",
    "slurm",
    "jobset",
    "cpus",
    "gpus",
    "slice",
    "workers",
)  # flags that are no matter of the workers that an engine starts
WORKERS_A_CORE = 16  # at most: each is a process of some hundred MB
ABOUT = """Computes what is missing of all the sweep's points, then draws the trade-off report. Any number of workers
may run this command on one directory: each node is computed once, and a dead worker's nodes are taken over."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of sweep."""

    workdir: str = flag("", "DIR: where everything is written", path=True)
    workers: int = flag(
        1,
        "start N workers on this machine, each on its part of the cores",
        bounds=(1, WORKERS_A_CORE * (os.cpu_count() or 1)),
    )
    index: int | None = flag(None, "only point I and what it is made from, as a job of an array", bounds=(0, None))
    count: bool = flag(False, "print the number of points")
    dry_run: bool = flag(False, "say what would run, what is finished, what it would cost and what sharing saves")
    pack: int = flag(
        0, "nodes at most in one population; 0: as many as fit in memory, 1: none together", bounds=(0, None)
    )
    dead_after: float = flag(
        180.0, "seconds of silence until another machine's worker counts as dead", bounds=(1, None)
    )

    ray: str = flag("", "ADDRESS: have this Ray cluster run it: auto, HOST:PORT, ray://HOST:PORT, or local")
    slurm: str | None = flag(None, "'FLAGS of launch/slurm.sh': submit it to Slurm, a job array a level of the graph")
    jobset: str | None = flag(None, "'FLAGS of launch/jobset.sh': apply it as a JobSet, a replicated job a level")
    cpus: int = flag(1, "with --ray, cores of a population", bounds=(1, None))
    gpus: int = flag(0, "with --ray or --slurm, GPUs of a population", bounds=(0, None))
    slice: str = flag("", "with --ray, TPU slice of a population, of one host, such as v5e-8")
    unit: str = flag("", "LEVEL.INDEX: only this part, as an engine's task; --ray=auto --dry-run lists them")

    def __post_init__(self) -> None:
        check(bool(self.workdir) or self.count, config_line.WORKDIR)
        engines = [self.workers > 1, bool(self.ray), self.slurm is not None, self.jobset is not None, bool(self.unit)]
        check(sum(engines) <= 1, "--workers, --ray, --slurm, --jobset and --unit: give one of them")
        ray, mend = bool(self.ray), "add --ray=ADDRESS, or leave it out"
        check(ray or self.cpus == 1, f"--cpus={self.cpus}: only --ray reads it; {mend}")
        check(ray or not self.slice, f"--slice={self.slice}: only --ray reads it; {mend}")
        placed = ray or self.slurm is not None
        check(placed or not self.gpus, f"--gpus={self.gpus}: only --ray and --slurm read it; add one, or leave it out")
        check(not (self.unit and self.index is not None), "--unit and --index: give one of them")

    def resources(self) -> Resources:
        """Return what a population needs of a machine."""
        from distill_jax.experiment.work_units import Resources
        from distill_jax.perf import slices

        where = slices.find(self.slice) if self.slice else None
        fix_hint = "name a slice of one host, such as v5e-8; what needs more is for `distill-jax run`"
        one_host = where is None or where.chips <= 4 or where.shape == (2, 4)
        check(one_host, f"--slice={self.slice}: has several hosts; {fix_hint}")
        return Resources(self.cpus, self.gpus, where)


def usage(arguments: Sequence[str]) -> str:
    """Return the help; with --sweep among the arguments, also every setting that points may change."""
    source, _ = config_line.take(arguments, "sweep")
    names = ", ".join(shipped.names(shipped.SWEEPS))
    synopsis = "--sweep=NAME|FILE.py[:preset] --workdir=DIR [--config.key=value …]"
    about = [ABOUT, f"sweep: a path, or one of the shipped: {names}"]
    if source:
        about.append(config_line.settings(open_sweep(source).base))
    return command_line.usage("sweep", Flags, synopsis, *about)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    source, rest = config_line.take(arguments, "sweep")
    missing = "--sweep=FILE.py is missing: name the sweep, such as configs/sweeps/undo_arithmetic.py"
    check(bool(source), missing)
    other, rest = config_line.take(rest, "config")
    mend = "a sweep says itself which config it is over; change its settings one by one"
    check(other is None, f"--config={other}: {mend}")
    assert source is not None
    file = open_sweep(source)
    named = open_config(file.base)
    flags = config_line.read_over("sweep", Flags, rest, named).flags
    if flags.count:
        print(len(file.points))
        return 0
    backend.import_jax()
    file, flags = _one_point(file, flags)
    sweep = _load(file, named, config_line.workdir(flags.workdir))
    chosen = sweep if flags.index is None else sweep.of_point(flags.index)
    if flags.ray or flags.slurm is not None or flags.jobset is not None:
        return _place(arguments, flags, sweep, chosen)
    if flags.unit:
        from distill_jax.experiment import work_units

        chosen = work_units.of_unit(sweep, flags.unit, flags.pack)
    if flags.dry_run:
        from distill_jax.experiment import sweep_graph

        print(sweep_graph.preview(chosen))
        return 0
    if flags.workers > 1 and workers.COUNT not in os.environ:
        return _start_workers(["distill-jax", "sweep", *arguments], flags, sweep, chosen)
    backend.set_up(named.config.run)  # not before: the workers' devices are fewer
    _work(flags, sweep, chosen)
    return 0


def _one_point(file: SweepFile, flags: Flags) -> tuple[SweepFile, Flags]:
    """Leave only the point that --index and --dry-run look at, be there a million others."""
    if flags.index is None:
        return file, flags
    count = len(file.points)
    check(flags.index < count, f"--index={flags.index}: the sweep has points 0 to {count - 1}")
    if not flags.dry_run:
        return file, flags
    return dataclasses.replace(file, points=[file.points[flags.index]]), dataclasses.replace(flags, index=0)


def _load(file: SweepFile, named: NamedConfig, workdir: Path) -> Sweep:
    from distill_jax.experiment import sweep_graph

    sweep = sweep_graph.load(file.name, file.points, named.module, named.config, workdir, file.description)
    for shard in sweep.shards:
        mend = "its page compares accuracies; run the points one by one"
        good = shard.experiment.data.MEASURE == "exact_match"
        check(good, f"{file.name}: a sweep over such data has no report; {mend}")
    return sweep


def _start_workers(line: Sequence[str], flags: Flags, sweep: Sweep, chosen: Sweep) -> int:
    """Start workers, wait for them, and draw the report if nothing is missing at their end."""
    code = workers.run(line, flags.workers)
    if chosen.done:  # a worker that died has been replaced by the others
        _report(sweep, config_line.workdir(flags.workdir))
        return 0
    if code == ExitCode.WORKERS_DIED:
        console.complain("no worker is left; the same command continues from their last checkpoints")
    return code


def _place(line: Sequence[str], flags: Flags, sweep: Sweep, chosen: Sweep) -> int:
    """Have an engine run the units of a sweep; with Ray, wait for them and draw the report if all is there then."""
    from distill_jax.experiment import work_units
    from distill_jax.experiment.engines import cluster_engine, ray_engine
    from distill_jax.io import leases

    units = work_units.work_units(chosen, flags.resources(), flags.pack)
    command = ["sweep", *line]
    for name in ENGINE:
        _, command = config_line.take(command, name)
    command = [word for word in command if word not in ("--dry-run", "--dry_run")]
    if flags.slurm is not None:
        return cluster_engine.slurm(units, command, flags.slurm, sweep.name, flags.dry_run)
    if flags.jobset is not None:
        return cluster_engine.jobset(units, command, flags.jobset, sweep.name, flags.dry_run)
    if flags.dry_run:
        print(work_units.preview(units))
        return 0
    with leases.held(config_line.workdir(flags.workdir), sweep.marker(), shared=True):
        code = ray_engine.run(units, command, flags.ray)
    if chosen.done:
        _report(sweep, config_line.workdir(flags.workdir))
        return 0
    return code


def _work(flags: Flags, sweep: Sweep, chosen: Sweep) -> None:
    """Compute, as one worker, what is missing."""
    from distill_jax.experiment import sweep_graph
    from distill_jax.io import leases
    from distill_jax.sharding import distributed

    backend.find_devices()
    distributed.heed_signals()
    with leases.held(config_line.workdir(flags.workdir), sweep.marker(), shared=True):
        held = leases.Leases(dead_after=flags.dead_after, heartbeat=min(10.0, flags.dead_after / 4))
        try:
            sweep_graph.run(chosen, held, flags.pack, int(os.environ.get(workers.COUNT, "1")))
        finally:
            held.close()
        if workers.COUNT not in os.environ and (sweep.done or not flags.unit):
            _report(sweep, config_line.workdir(flags.workdir))


def _report(sweep: Sweep, workdir: Path) -> None:
    from distill_jax.reports import sweep_summary

    print(f"report: {sweep_summary.write_report(sweep, workdir)}")
