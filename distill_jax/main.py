"""The only entry point: `distill-jax COMMAND`, the commands being those of USAGE. It ends in one of `exit_codes`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from distill_jax import backend, console
from distill_jax.config import ConfigError, Interrupted, check, check_local, nearest
from distill_jax.exit_codes import ExitCode
from distill_jax.experiment import workers
from distill_jax.experiment.config_file import (
    call,
    check_stages,
    load_experiment,
    load_module,
    one_line,
    with_content_hashes,
)
from distill_jax.experiment.sweep_points import Point

WORKERS_A_CORE = 16  # at most: each is a process of some hundred MB
INTEROP = ("import", "export", "score", "generate")

USAGE = """usage: distill-jax COMMAND --config=FILE.py[:preset] --workdir=DIR [--config.key=value …]
       distill-jax plan --config=FILE.py[:preset] --slice=v5e-16 [--json=FILE] [--stages=NAME,…] [--prices=FILE]

commands:
  run      compute what is missing of an experiment, then draw its report
  audit    the same, of teachers that are to be judged: the report ends in a verdict (configs/double_bind.py)
  prepare  make the experiment's data only
  data     show what a model will see of them: decoded rows, shares, counts (--examples=N rows of each set)
  report   draw the report again from a work directory (needs no --config)
  bench    measure speed and memory on synthetic data (needs neither; `distill-jax bench --help`)
  sweep    compute many points over one config, alone or beside other workers (`distill-jax sweep --help`)
  plan     compile an experiment for a TPU slice, without one, and print memory, time and cost of every stage
           (--slice=auto: the cheapest it fits on; --verbose: also where every parameter lies)
  import   make a model in the Hugging Face layout one that stages can start from; export: the way back
  score    per-token log-likelihoods of texts; generate: what a model writes after prompts
           (these four have flags of their own: `distill-jax import --help` and so on)"""

SWEEP_USAGE = """usage: distill-jax sweep --sweep=FILE.py[:preset] --workdir=DIR [--config.key=value …]

Computes what is missing of all the sweep's points, then draws the trade-off report. Any number of workers may run this
command on one directory: each node is computed once, and a dead worker's nodes are taken over.

  --workers=N    start N workers on this machine, each on its part of the cores
  --index=I      only point I and what it is made from, as a job of an array
  --count        print the number of points
  --dry-run      say what would run, what is finished, what it would cost and what sharing saves
  --pack=N       at most N nodes in one population (default 0: as many as fit in memory; 1: none together)
  --dead_after=S seconds of silence until another machine's worker counts as dead (default 180)"""

# Of a process that plans, and of no other: on a pod the first would break the detection of the cluster.
PLANNING = {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two plans at a time: no chip is touched
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command line said: the command, its flags, and the config with the module it came from."""

    command: str
    flags: Any
    workdir: Path
    config: Any = None
    module: ModuleType | None = None
    points: tuple[str, list[Point], str] | None = None  # of a sweep: its name, its points, what it is about


def parse(argv: Sequence[str]) -> Arguments:
    """Read the command line.

    Raises:
      ConfigError: naming what is unknown, missing or of the wrong type.
    """
    commands = ("run", "audit", "prepare", "data", "report", "sweep", "plan", "bench", *INTEROP)
    check(len(argv) > 1, USAGE)
    command, given = argv[1], ["distill-jax", *(_DRY_RUN.get(a, a) for a in argv[2:])]
    mend = f"{nearest(command, commands)}; there are {', '.join(commands)}"
    check(command in commands, f"unknown command {command!r}{mend}")
    if command == "plan":
        os.environ.update(PLANNING)  # before the config's imports bring JAX
    points = None
    if command == "sweep":
        points, base = _sweep_file(given)
        given.insert(1, f"--config={base}")  # ml_collections wants it before what changes it
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "where everything is written", flag_values=values)
    flags.DEFINE_bool("distributed", False, "join the cluster that JAX detects", flag_values=values)
    flags.DEFINE_integer("coordinator_port", 8476, "port of process 0 there", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("processes", 1, "how many processes run this command", flag_values=values)
    flags.DEFINE_integer("process", 0, "which of them this is", flag_values=values)
    flags.DEFINE_integer("heartbeat", 100, "seconds of silence until a process counts as dead", flag_values=values)
    flags.DEFINE_string("slice", None, "accelerator type to plan for, or auto", flag_values=values)
    flags.DEFINE_string("json", None, "where a plan is also written", flag_values=values)
    flags.DEFINE_string("prices", None, "price table of a plan", flag_values=values)
    flags.DEFINE_list("stages", [], "the only stages of a plan", flag_values=values)
    flags.DEFINE_bool("verbose", False, "also print where every parameter lies", flag_values=values)
    flags.DEFINE_integer("examples", 2, "decoded rows of each set", lower_bound=0, flag_values=values)
    flags.DEFINE_string("sweep", None, "sweep", flag_values=values)
    most = WORKERS_A_CORE * (os.cpu_count() or 1)
    flags.DEFINE_integer("workers", 1, "of a sweep, here", lower_bound=1, upper_bound=most, flag_values=values)
    flags.DEFINE_integer("index", None, "the only point of a sweep", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("count", False, "print how many points a sweep has", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "say what a sweep would run", flag_values=values)
    flags.DEFINE_integer("pack", 0, "nodes at most in one population", lower_bound=0, flag_values=values)
    flags.DEFINE_float("dead_after", 180.0, "seconds of a worker's silence", lower_bound=1.0, flag_values=values)
    # sys_argv: otherwise ml_collections looks for --config.key=value in the process's arguments, not in ours.
    config_flags.DEFINE_config_file("config", None, "experiment", flag_values=values, sys_argv=given)
    path = _config_path(given)
    module = None
    if path and command != "report":
        module = load_module(path)
    if module:
        _check_keys(module, given)
    try:
        rest = values(given)
    except Exception as error:  # absl's, ml_collections', or what the config raises at the second call
        raise ConfigError(one_line(error)) from error
    for name, owners in _ONLY.items():
        mend = f"only `distill-jax {' and '.join(owners)}` has it"
        check(command in owners or not values[name].present, f"--{name}: {command} has no such flag; {mend}")
    check(len(rest) == 1, f"unexpected argument {rest[-1]!r}; settings are given as --config.key=value")
    if command == "plan":
        check(values.slice, "--slice is missing: name the TPU slice to plan for, such as v5e-16, or auto")
    elif not (command == "sweep" and values.count):
        check(values.workdir, "--workdir=DIR is missing: name the directory of this run")
    check(
        bool(values.coordinator) or values.processes == 1,
        f"--processes={values.processes}: also give --coordinator=HOST:PORT and --process, or --distributed alone",
    )
    check_local("--workdir", values.workdir or "")
    if command == "report":
        return Arguments(command, values, Path(values.workdir))
    check(path is not None, "--config=FILE.py is missing: name the experiment, such as configs/arithmetic.py:cpu")
    return Arguments(command, values, Path(values.workdir or ""), values.config, module, points)


# The commands that heed a flag; one that any other command is given would be ignored in silence.
_ONLY = {
    **dict.fromkeys(("slice", "json", "prices", "stages", "verbose"), ("plan",)),
    **dict.fromkeys(("sweep", "workers", "index", "count", "dry_run", "pack", "dead_after"), ("sweep",)),
    "examples": ("data",),
    **dict.fromkeys(("distributed", "coordinator", "coordinator_port"), ("run", "audit", "prepare")),
    **dict.fromkeys(("processes", "process", "heartbeat"), ("run", "audit", "prepare")),
}
_DRY_RUN = {"--dry-run": "--dry_run"}  # absl's flags have no hyphens


def _sweep_file(given: Sequence[str]) -> tuple[tuple[str, list[Point], str], str]:
    """Return (name, points, description) of the sweep that is named, and the base config with its preset."""
    named = [a.split("=", 1)[1] for a in given if a.startswith("--sweep=")]
    check(bool(named), "--sweep=FILE.py is missing: name the sweep, such as configs/sweeps/undo_arithmetic.py")
    other = [a for a in given if a.startswith("--config=")]
    check(not other, f"{other[:1]}: a sweep says itself which config it is over; change its settings one by one")
    path, _, arg = named[-1].partition(":")
    where = f"--sweep={named[-1]}"
    _check_file(where, path)
    module = load_module(path, "get_sweep", "get_sweep(arg) returns the base config and the points")
    base, points = _swept(where, call(where, module.get_sweep, arg))
    file, _, preset = base.partition(":")
    base = f"{Path(path).parent / file}{':' + preset if preset else ''}"
    text = " ".join((module.__doc__ or "").split("\n\n")[0].split())
    return (Path(path).stem + (f":{arg}" if arg else ""), points, text), base


def _swept(where: str, returned: Any) -> tuple[str, list[Point]]:
    """Check what a get_sweep returned."""
    mend = "get_sweep(arg) returns the base config, a path, and a list of points, which are dicts of settings"
    check(isinstance(returned, tuple | list) and len(returned) == 2, f"{where}: {mend}")
    base, points = returned
    check(isinstance(base, str), f"{where}: its base config is {base!r}; {mend}")
    check(isinstance(points, Iterable), f"{where}: its points are {type(points).__name__}; {mend}")
    points = call(where, list, points)  # they may come from a generator, which is the user's code
    for i, point in enumerate(points):
        if not (isinstance(point, dict) and all(isinstance(key, str) for key in point)):
            raise ConfigError(f"{where}: point {i} is {str(point)[:80]}; {mend}")
    return base, points


def _config_path(argv: Sequence[str]) -> str | None:
    given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    if not given:
        return None
    path = given[-1].split(":")[0]
    _check_file(f"--config={given[-1]}", path)
    return path


def _check_file(flag: str, path: str) -> None:
    check(Path(path).is_file(), f"{flag}: there is no file {path}")
    check(Path(path).suffix == ".py", f"{flag}: {path} is no Python file; name one, such as configs/arithmetic.py")


def _check_keys(module: ModuleType, argv: Sequence[str]) -> None:
    """Refuse a preset or a --config.key that the config does not have, naming the nearest it has."""
    whole = next(a.split("=", 1)[1] for a in reversed(argv) if a.startswith("--config="))
    config = call(f"--config={whole}", module.get_config, *whole.split(":", 1)[1:])
    mend = "get_config returns an ml_collections.ConfigDict"
    check(isinstance(config, ConfigDict), f"--config={whole}: {mend}, and this one {type(config).__name__}")
    for key in ("experiment", "description", "model", "data", "run"):
        check(key in config, f"--config={whole}: the config has no {key!r}; {mend} with it, as those in configs/ do")
    for flag in (a[2:].split("=", 1)[0] for a in argv if a.startswith("--config.")):
        section, where = config, "config"
        for key in flag.split(".")[1:]:
            known = list(section) if hasattr(section, "keys") else []
            mend = f"{nearest(key, known)}; {where} has {', '.join(known) or 'no settings of its own'}"
            check(key in known, f"--{flag}: no such setting{mend}")
            section, where = section[key], f"{where}.{key}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    console.show_anything()
    return console.flush(_guarded(list(sys.argv if argv is None else argv)))


def _guarded(argv: list[str]) -> int:
    """Run the program, and say in a line or two what it ends on."""
    try:
        return _main(argv)
    except KeyboardInterrupt:
        return _stopped_by_hand()
    except Exception as error:
        if console.interrupted():  # it comes of an interrupt that native code or another process had first
            return _stopped_by_hand()
        return _explained(error)


def _stopped_by_hand() -> int:
    console.complain("stopped; the same command continues from the last checkpoint")
    return ExitCode.INTERRUPTED


def _explained(error: Exception) -> int:
    """Say what an error means to the user; raise it again if it means a bug."""
    if isinstance(error, ConfigError):
        console.complain(str(error))
        return ExitCode.REFUSED
    if isinstance(error, Interrupted):
        console.complain(f"{error}; the same command continues from there")
        return ExitCode.SAVED
    if isinstance(error, BrokenPipeError):
        return ExitCode.BROKEN_PIPE
    if isinstance(error, OSError):
        # Writers that are still open fail once more as the interpreter closes them; the user has been told.
        sys.unraisablehook = lambda _: None
        threading.excepthook = lambda _: None
        where = f": {error.filename}" if error.filename else ""
        mend = "what was finished is kept, and the same command continues once this is mended"
        console.complain(f"{error.strerror or error}{where}; {mend}")
        return ExitCode.REFUSED
    raise error


def _main(argv: Sequence[str]) -> int:
    if ({"--help", "-h"} & set(argv[1:]) and argv[1] not in ("bench", *INTEROP)) or argv[1:2] == ["help"]:
        print(SWEEP_USAGE if argv[1] == "sweep" else USAGE)
        return 0
    backend.pin_numerics()
    if argv[1:2] == ["bench"]:
        backend.set_up({"cpu_devices": 2})
        from distill_jax.commands import bench_command as command

        command.main(argv[2:])
        return 0
    if argv[1:2] and argv[1] in INTEROP:
        backend.import_jax()
        from distill_jax.commands import model_commands as interop

        interop.main(argv[1], argv[2:])
        return 0
    given = parse(argv)
    if given.command == "report":
        from distill_jax.reports import run_summary

        print(f"report: {run_summary.redraw(given.workdir)}")
        return 0
    assert given.module is not None
    if given.command == "plan":
        return _plan(given)
    if given.command == "sweep":
        return _sweep(given, argv)
    backend.set_up(given.config.run)
    from distill_jax.experiment import graph
    from distill_jax.io import files, leases
    from distill_jax.sharding import distributed

    mend = "it ends in no verdict; use `distill-jax run`"
    experiment = load_experiment(given.module, given.config)
    check(given.command != "audit" or experiment.audited, f"audit: {experiment.name}: {mend}")
    shown = given.command != "data" or experiment.data.MEASURE
    check(bool(shown), f"{experiment.name}: its data are images, and `distill-jax data` shows text")
    digests = files.Digests(given.workdir / "digests.json")
    experiment = with_content_hashes(experiment, digests)
    nodes = graph.build(experiment, given.workdir)
    _join(given.flags)
    backend.find_devices()
    # One of a run's processes holds the directory for all.
    alone = distributed.is_primary()
    with leases.held(given.workdir, {"experiment": experiment.name}) if alone else contextlib.nullcontext():
        began = time.monotonic()
        if alone:
            digests.save()
        whole = given.command in ("run", "audit")
        wanted = nodes if whole else {graph.DATA: nodes[graph.DATA]}
        ctx = graph.execute(wanted, experiment.model, experiment.run)
        if given.command == "data":
            from distill_jax.data import show_rows

            graph.verify_data(nodes[graph.DATA])
            print(*show_rows.describe(ctx.data, experiment.data.vocabulary, given.flags.examples), sep="\n")
        if whole and distributed.is_primary():
            from distill_jax.reports import run_summary  # not before: a third of the time to start is scipy's

            identity = graph.experiment_identity(nodes)
            write = experiment.report or run_summary.write_report
            page = write(experiment, nodes, identity, given.workdir, time.monotonic() - began)
            print(f"report: {page}")
    return 0


def _sweep(given: Arguments, argv: Sequence[str]) -> int:
    said, workdir = given.flags, given.workdir
    assert given.module is not None and given.points is not None
    name, points, text = given.points
    if said.count:
        print(len(points))
        return 0
    backend.import_jax()
    from distill_jax.experiment import sweep_graph
    from distill_jax.io import leases
    from distill_jax.reports import sweep_summary
    from distill_jax.sharding import distributed

    if said.index is not None:
        check(said.index < len(points), f"--index={said.index}: the sweep has points 0 to {len(points) - 1}")
        if said.dry_run:  # alone, be there a million others
            points, said.index = points[said.index :][:1], 0
    whole = sweep_graph.load(name, points, given.module, given.config, workdir, text)
    for world in whole.worlds:
        mend = "its page compares accuracies; run the points one by one"
        check(world.experiment.data.MEASURE == "exact_match", f"{name}: a sweep over such data has no report; {mend}")
    mine = whole if said.index is None else whole.of_point(said.index)
    if said.dry_run:
        print(sweep_graph.preview(mine))
        return 0
    if said.workers > 1 and workers.COUNT not in os.environ:
        code = workers.run(argv, said.workers)
        if mine.done:  # a worker that died has been replaced by the others
            print(f"report: {sweep_summary.write_report(whole, workdir)}")
            return 0
        if code == ExitCode.WORKERS_DIED:
            console.complain("no worker is left; the same command continues from their last checkpoints")
        return code
    backend.set_up(given.config.run)  # not before: the workers' devices are fewer
    backend.find_devices()
    distributed.heed_signals()
    with leases.held(workdir, whole.marker(), shared=True):
        held = leases.Leases(dead_after=said.dead_after, heartbeat=min(10.0, said.dead_after / 4))
        try:
            sweep_graph.run(mine, held, said.pack, int(os.environ.get(workers.COUNT, "1")))
        finally:
            held.close()
        if workers.COUNT not in os.environ:
            print(f"report: {sweep_summary.write_report(whole, workdir)}")
    return 0


def _plan(given: Arguments) -> int:
    from distill_jax.perf import slices

    assert given.module is not None
    said = given.flags
    if said.slice != "auto":
        slices.find(said.slice)
    check_stages(said.stages, given.module, given.config)
    backend.import_jax()
    from distill_jax.experiment import slice_plan

    prices = slice_plan.load_prices(said.prices)
    experiment = load_experiment(given.module, given.config)
    rows = slice_plan.run(experiment, said.slice, prices, stages=said.stages, verbose=said.verbose)
    if said.json:
        slice_plan.save(rows, said.json)
    return 0


def _join(given: Any) -> None:
    from distill_jax.sharding import distributed

    distributed.heed_signals()
    if given.distributed:
        distributed.join_detected(given.coordinator_port, given.heartbeat)
    elif given.coordinator:
        distributed.join(given.coordinator, given.processes, given.process, given.heartbeat)


if __name__ == "__main__":
    sys.exit(main())
