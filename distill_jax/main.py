"""The only entry point: `distill-jax run | prepare | report | plan | bench`.

Exit codes: 0 when everything asked for is complete; 2 with a line or two when the input is wrong or the disk refuses;
42 when SIGTERM came and everything up to it is saved: the same command, started again, continues.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_flags

from distill_jax.config import ConfigError, Interrupted, build, check, nearest

TRY_AGAIN = 42

USAGE = """usage: distill-jax COMMAND --config=FILE.py[:preset] --workdir=DIR [--config.key=value …]
       distill-jax plan --config=FILE.py[:preset] --slice=v5e-16 [--json=FILE] [--stages=NAME,…] [--prices=FILE]

commands:
  run      compute what is missing of an experiment, then draw its report
  prepare  make the experiment's data only
  report   draw the report again from a work directory (needs no --config)
  bench    measure speed and memory on synthetic data (needs neither; `distill-jax bench --help`)
  plan     compile an experiment for a TPU slice, without one, and print memory, time and cost of every stage
           (--slice=auto: the cheapest it fits on; --verbose: also where every parameter lies)"""

# Of a process that plans, and of no other: on a pod the first would break the detection of the cluster.
PLANNING = {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two plans at a time: no chip is touched
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment, checked: its model, its data, its stages and how to run them."""

    name: str
    description: str
    model: Any
    data: Any
    stages: dict[str, Any]
    run: Any
    precision: str = "fp32"


def load_experiment(module: ModuleType, config: Any) -> Experiment:
    """Check a config and turn it into an experiment.

    Raises:
      ConfigError: naming the key, the value and the mend.
    """
    from distill_jax.data.arithmetic import ArithmeticConfig
    from distill_jax.data.vocabulary import load_entries
    from distill_jax.models.transformer import TransformerConfig
    from distill_jax.stages.context import RunSettings

    plain = config.to_dict()
    model = build(TransformerConfig, plain["model"], "model")
    data = build(getattr(module, "DATA", ArithmeticConfig), plain["data"], "data")
    try:
        stages = module.get_stages(config)
    except TypeError as error:
        raise ConfigError(f"{module.__file__}: a setting has a value of the wrong type ({error})") from error
    except ValueError as error:
        raise ConfigError(f"{module.__file__}: {error}") from error
    for name, stage in stages.items():
        build(type(stage), {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}, f"stages.{name}")
        if getattr(stage, "method", "") == "rmu":
            mend = f"must be at most model.layers = {model.layers}"
            check(stage.layer <= model.layers, f"stages.{name}.layer = {stage.layer}: {mend}")
    words = len(load_entries()) if getattr(data, "vocabulary", "") == "words" else 0
    mend = f"the data's vocabulary has {words} entries; raise it to that"
    check(words <= model.vocab, f"model.vocab = {model.vocab}: {mend}")
    run = build(RunSettings, plain["run"], "run")
    return Experiment(plain["experiment"], plain["description"], model, data, stages, run)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command line said: the command, its flags, and the config with the module it came from."""

    command: str
    flags: Any
    workdir: Path
    config: Any = None
    module: ModuleType | None = None


def parse(argv: Sequence[str]) -> Arguments:
    """Read the command line.

    Raises:
      ConfigError: naming what is unknown, missing or of the wrong type.
    """
    commands = ("run", "prepare", "report", "plan", "bench")
    check(len(argv) > 1, USAGE)
    command, given = argv[1], ["distill-jax", *argv[2:]]
    mend = f"{nearest(command, commands)}; there are {', '.join(commands)}"
    check(command in commands, f"unknown command {command!r}{mend}")
    if command == "plan":
        os.environ.update(PLANNING)  # before the config's imports bring JAX
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
    # sys_argv: otherwise ml_collections looks for --config.key=value in the process's arguments, not in ours.
    config_flags.DEFINE_config_file("config", None, "experiment", flag_values=values, sys_argv=given)
    path = _config_path(argv)
    module = _load(path) if path and command != "report" else None
    if module:
        _check_keys(module, given)
    try:
        rest = values(given)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError) as error:
        raise ConfigError(_explain(error)) from error
    check(len(rest) == 1, f"unexpected argument {rest[-1]!r}; settings are given as --config.key=value")
    if command == "plan":
        check(values.slice, "--slice is missing: name the TPU slice to plan for, such as v5e-16, or auto")
    else:
        check(values.workdir, "--workdir=DIR is missing: name the directory of this run")
    check(
        bool(values.coordinator) or values.processes == 1,
        f"--processes={values.processes}: also give --coordinator=HOST:PORT and --process, or --distributed alone",
    )
    if command == "report":
        return Arguments(command, values, Path(values.workdir))
    check(path is not None, "--config=FILE.py is missing: name the experiment, such as configs/arithmetic.py:cpu")
    return Arguments(command, values, Path(values.workdir or ""), values.config, module)


def _config_path(argv: Sequence[str]) -> str | None:
    given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    if not given:
        return None
    path = given[-1].split(":")[0]
    check(Path(path).is_file(), f"--config={given[-1]}: there is no file {path}")
    return path


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("experiment_config", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    check(hasattr(module, "get_stages"), f"{path} has no get_stages(config): it says which stages the experiment has")
    return module


def _check_keys(module: ModuleType, argv: Sequence[str]) -> None:
    """Refuse a preset or a --config.key that the config does not have, naming the nearest it has."""
    whole = next(a.split("=", 1)[1] for a in reversed(argv) if a.startswith("--config="))
    try:
        config = module.get_config(*whole.split(":", 1)[1:])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--config={whole}: {error}") from error
    for flag in (a[2:].split("=", 1)[0] for a in argv if a.startswith("--config.")):
        section, where = config, "config"
        for key in flag.split(".")[1:]:
            known = list(section) if hasattr(section, "keys") else []
            mend = f"{nearest(key, known)}; {where} has {', '.join(known) or 'no settings of its own'}"
            check(key in known, f"--{flag}: no such setting{mend}")
            section, where = section[key], f"{where}.{key}"


def _explain(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    argv = list(sys.argv if argv is None else argv)
    if ({"--help", "-h"} & set(argv[1:]) and argv[1] != "bench") or argv[1:2] == ["help"]:
        print(USAGE)
        return 0
    try:
        return _main(argv)
    except ConfigError as error:
        print(f"distill-jax: {error}", file=sys.stderr)
    except OSError as error:
        # Writers that are still open fail once more as the interpreter closes them; the user has been told.
        sys.unraisablehook = lambda _: None
        threading.excepthook = lambda _: None
        where = f": {error.filename}" if error.filename else ""
        mend = "what was finished is kept, and the same command continues once this is mended"
        print(f"distill-jax: {error.strerror or error}{where}; {mend}", file=sys.stderr)
    except Interrupted as stopped:
        print(f"distill-jax: {stopped}; the same command continues from there", file=sys.stderr)
        return TRY_AGAIN
    except KeyboardInterrupt:
        print("distill-jax: stopped; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 2


def _main(argv: Sequence[str]) -> int:
    if argv[1:2] == ["bench"]:
        _set_up_jax({"run": {"cpu_devices": 2}})
        from distill_jax.bench import command

        command.main(argv[2:])
        return 0
    given = parse(argv)
    if given.command == "report":
        from distill_jax.evals import summary

        print(f"report: {summary.redraw(given.workdir)}")
        return 0
    assert given.module is not None
    if given.command == "plan":
        return _plan(given)
    _set_up_jax(given.config)
    from distill_jax import graph
    from distill_jax.evals import summary
    from distill_jax.sharding import distributed

    experiment = load_experiment(given.module, given.config)
    mend = "only `distill-jax plan` knows what to do with it"
    check(not getattr(experiment.data, "PLAN_ONLY", False), f"{experiment.name}: its data have no loader yet; {mend}")
    nodes = graph.build(experiment, given.workdir)
    _join(given.flags)
    with graph.claimed(given.workdir, experiment.name):
        began = time.monotonic()
        wanted = {graph.DATA: nodes[graph.DATA]} if given.command == "prepare" else nodes
        graph.execute(wanted, experiment.model, experiment.run)
        if given.command == "run" and distributed.chief():
            identity = graph.experiment_identity(nodes)
            page = summary.write_report(experiment, nodes, identity, given.workdir, time.monotonic() - began)
            print(f"report: {page}")
    return 0


def _plan(given: Arguments) -> int:
    from distill_jax import plan

    assert given.module is not None
    prices = plan.load_prices(given.flags.prices)
    experiment, said = load_experiment(given.module, given.config), given.flags
    rows = plan.run(experiment, said.slice, prices, stages=said.stages, verbose=said.verbose)
    if said.json:
        plan.save(rows, said.json)
    return 0


def _join(given: Any) -> None:
    from distill_jax.sharding import distributed

    distributed.heed_signals()
    if given.distributed:
        distributed.join_detected(given.coordinator_port, given.heartbeat)
    elif given.coordinator:
        distributed.join(given.coordinator, given.processes, given.process, given.heartbeat)


def _set_up_jax(config: Any) -> None:
    import jax

    run = config.get("run", {})
    given = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in given:
        count = run.get("cpu_devices", 1)
        os.environ["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count={count}".strip()
    if run.get("compile_cache"):
        jax.config.update("jax_compilation_cache_dir", str(run["compile_cache"]))
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Stop glibc from handing each step's buffers back to the kernel: mapping them anew cost a third of a CPU step."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h's M_ constants
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)


if __name__ == "__main__":
    sys.exit(main())
