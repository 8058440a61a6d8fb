"""`distill-jax sweep`: compute many points over one config, alone or beside other workers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill_jax import backend, console, shipped
from distill_jax.commands import command_line, config_line
from distill_jax.commands.cluster import ClusterFlags
from distill_jax.commands.command_line import flag
from distill_jax.commands.plan import PLANNING
from distill_jax.config import check
from distill_jax.exit_codes import ExitCode
from distill_jax.experiment import workers
from distill_jax.experiment.named_config import NamedConfig, open_config
from distill_jax.experiment.sweep_file import SweepFile, open_sweep
from distill_jax.perf import gpus, slices

if TYPE_CHECKING:
    from distill_jax.experiment.sweep_graph import Sweep
    from distill_jax.experiment.work_units import WorkUnit

# Flags that are no matter of the workers that an engine starts.
ENGINE = ("ray", "slurm", "jobset", "cpus", "gpus", "slice", "workers")
WORKERS_A_CORE = 16  # at most: each is a process of some hundred MB
ABOUT = """Computes what is missing of all the sweep's points, then draws the trade-off report. Any number of workers
may run this command on one directory: each node is computed once, and a dead worker's nodes are taken over."""


@dataclasses.dataclass(frozen=True)
class Flags(ClusterFlags):
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
    cpus: int = flag(1, "with --ray or --slurm, cores of a population", bounds=(1, None))
    gpus: str = flag(
        "0",
        f"with --ray or --slurm, GPUs of a population: a number, or the least of {', '.join(gpus.MEMORY)}",
    )
    slice: str = flag(
        "", "with --ray or --jobset, TPU slice of a population: v5e-16, or of v5e the least that it fits on"
    )
    unit: str = flag("", "LEVEL.INDEX: only this part, as an engine's task; --ray=auto --dry-run lists them")

    def __post_init__(self) -> None:
        check(bool(self.workdir) or self.count, config_line.WORKDIR)
        engines = [self.workers > 1, bool(self.ray), self.slurm is not None, self.jobset is not None, bool(self.unit)]
        check(sum(engines) <= 1, "--workers, --ray, --slurm, --jobset and --unit: give one of them")
        ray = bool(self.ray)
        on_tpus = ray or self.jobset is not None
        only = f"--slice={self.slice}: only --ray and --jobset read it; add one, or leave it out"
        check(on_tpus or not self.slice, only)
        if self.slice and self.slice not in slices.CHIPS:
            fix_hint = f"name one slice, such as v5e-16, or a generation: {', '.join(slices.CHIPS)}"
            single = self.slice != "auto" and slices.find(self.slice).slices == 1
            check(single, f"--slice={self.slice}: a population takes one slice; {fix_hint}")
        placed = ray or self.slurm is not None
        only = "only --ray and --slurm read it; add one, or leave it out"
        check(placed or self.cpus == 1, f"--cpus={self.cpus}: {only}")
        check(placed or self.gpus == "0", f"--gpus={self.gpus}: {only}")
        fix_hint = f"give a number, or one of {', '.join(gpus.MEMORY)}"
        check(self.gpus.isdecimal() or self.gpus in gpus.MEMORY, f"--gpus={self.gpus}: no such type; {fix_hint}")
        both = f"--gpus={self.gpus} --slice={self.slice}: a population is on one kind of device; leave one out"
        check(self.gpus == "0" or not self.slice, both)
        check(not (self.unit and self.index is not None), "--unit and --index: give one of them")
        super().__post_init__()
        fix_hint = "start every worker alone, or give the --unit that these compute together"
        check(not self.several or bool(self.unit), f"--distributed, --coordinator: {fix_hint}")

    @property
    def places(self) -> bool:
        """Whether an engine runs it, and this process computes nothing."""
        return bool(self.ray) or self.slurm is not None or self.jobset is not None

    @property
    def starts_workers(self) -> bool:
        """Whether this process starts workers, and computes nothing itself."""
        return self.workers > 1 and workers.COUNT not in os.environ


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
    with contextlib.ExitStack() as planning:
        kinds = {"slice": slices.CHIPS, "gpus": gpus.MEMORY}
        if any(config_line.take(arguments, name)[0] in known for name, known in kinds.items()):
            planning.enter_context(backend.environment(PLANNING))  # before the config's imports bring JAX
        return _main(arguments, planning)


def _main(arguments: Sequence[str], planning: contextlib.ExitStack) -> int:
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
    if not (flags.places or flags.dry_run):
        backend.check_platforms()  # which takes no device from the workers
    backend.import_jax()
    file, flags = _one_point(file, flags)
    if not (flags.places or flags.dry_run or flags.starts_workers):
        backend.set_up(named.config.run)
        if flags.several:
            flags.join()  # before anything touches a device
        backend.find_devices()  # refused before a large sweep is read
    sweep = _load(file, named, config_line.workdir(flags.workdir))
    chosen = sweep if flags.index is None else sweep.of_point(flags.index)
    if flags.places:
        units = _units(flags, chosen)
        planning.close()  # for an engine's processes on this machine
        return _place(arguments, flags, sweep, chosen, units)
    if flags.unit:
        from distill_jax.experiment import work_units

        chosen = work_units.of_unit(sweep, flags.unit, flags.pack)
    if flags.dry_run:
        from distill_jax.experiment import sweep_graph

        print(sweep_graph.preview(chosen))
        return 0
    if flags.starts_workers:
        return _start_workers(["distill-jax", "sweep", *arguments], flags, sweep, chosen)
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


def _place(line: Sequence[str], flags: Flags, sweep: Sweep, chosen: Sweep, units: Sequence[WorkUnit]) -> int:
    """Have an engine run the units of a sweep; with Ray, wait for them and draw the report if all is there then."""
    from distill_jax.experiment import work_units
    from distill_jax.experiment.engines import cluster_engine, ray_engine
    from distill_jax.io import leases
    from distill_jax.io.storage import check_processes

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
    workdir = config_line.workdir(flags.workdir)
    check_processes(workdir, max(unit.resources.hosts for unit in units))
    with leases.held(workdir, sweep.marker(), shared=True):
        code = ray_engine.run(units, command, flags.ray)
    if chosen.done:
        _report(sweep, workdir)
        return 0
    return code


def _units(flags: Flags, chosen: Sweep) -> list[WorkUnit]:
    """Return the units of a sweep with what each needs of a machine: by the flags, or by the plan for a kind."""
    from distill_jax.experiment import compile_process, gpu_plan, slice_plan, unit_plan, work_units
    from distill_jax.perf.analysis_cache import AnalysisCache, default_directory

    where = slices.find(flags.slice) if flags.slice and flags.slice not in slices.CHIPS else None
    count, kind = (int(flags.gpus), "") if flags.gpus.isdecimal() else (0, flags.gpus)
    asked = work_units.Resources(flags.cpus, count, where, gpu=kind)
    planner: unit_plan.Planner | None = None
    if kind:
        planner = gpu_plan.GpuPlanner(kind)
    elif flags.slice in slices.CHIPS:
        compiler = slice_plan.Compiler(compile_process.compile_apart)
        planner = unit_plan.UnitPlanner(flags.slice, AnalysisCache(default_directory()), console.complain, compiler)
    return work_units.work_units(chosen, asked, flags.pack, planner)


def _work(flags: Flags, sweep: Sweep, chosen: Sweep) -> None:
    """Compute, as one worker, what is missing."""
    from distill_jax.experiment import graph, sweep_graph
    from distill_jax.io import leases
    from distill_jax.sharding import distributed

    distributed.heed_signals()
    for shard in chosen.shards:
        graph.check_mesh(shard.nodes, shard.experiment.model, shard.experiment.run)
    count = int(os.environ.get(workers.COUNT, "1"))
    if not distributed.is_primary():
        sweep_graph.run(chosen, None, flags.pack, count)
        return
    with leases.held(config_line.workdir(flags.workdir), sweep.marker(), shared=True):
        held = leases.Leases(dead_after=flags.dead_after, heartbeat=min(10.0, flags.dead_after / 4))
        try:
            sweep_graph.run(chosen, held, flags.pack, count)
        finally:
            held.close()
        if workers.COUNT not in os.environ and (sweep.done or not flags.unit):
            _report(sweep, config_line.workdir(flags.workdir))


def _report(sweep: Sweep, workdir: Path) -> None:
    from distill_jax.reports import sweep_summary

    print(f"report: {sweep_summary.write_report(sweep, workdir)}")
