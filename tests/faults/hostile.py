"""Hostile command lines, configs, files and environments, made up from a seed, and what the program does with them.

  python -m tests.faults.hostile --seed=0 --cases=400 --scratch=DIR     prints one JSON object a case

Every case runs in a child forked from this process, which has imported the program but has started no backend: a
process of its own would take seconds. What would train is stopped where it would begin; all before it is real.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults.hostile_cases import Case, make, settings

CPU_SECONDS, WALL_SECONDS = 20, 300  # of one case; the wall is far, as machines are shared
MEMORY = 6 << 30  # bytes of data: less than makes a machine swap


class Begun(BaseException):
    """The program would compute now: everything before was accepted."""


def run(case: Case, home: Path) -> dict[str, object]:
    """Run a case in a child, in a directory made for it, and return how it ended."""
    here = home / "deep" / "cwd"
    (here / "full").mkdir(parents=True)
    (home / "tmp").mkdir()
    (here / "file").write_text("x")
    (here / "full" / "thesis.tex").write_text("mine")
    for prepare in case.prepare:
        prepare(here)
    before, began = _outside(home, case), time.monotonic()
    child = os.fork()
    if child == 0:
        _child(case, home, here)
    ended = _waited(child)
    out = (home / "stderr").read_text(errors="replace")
    return {
        "arguments": case.arguments, "environment": case.environment, "stdin": not case.no_stdin,
        "cwd": not case.no_cwd, "code": ended, "stderr": out, "seconds": round(time.monotonic() - began, 2),
        "written": sorted(set(_outside(home, case)) ^ set(before)),
    }  # fmt: skip


def _waited(child: int) -> int | str:
    until = time.monotonic() + WALL_SECONDS
    while time.monotonic() < until:
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(ended[1])
            return "hang" if -code in (signal.SIGXCPU, signal.SIGKILL) else code
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hang"


def _outside(home: Path, case: Case) -> list[str]:
    """Return what there is outside of every place that the command line names to be written to."""
    here = home / "deep" / "cwd"
    named = [
        a.split("=", 1)[1] for a in case.arguments if a.startswith(("--workdir=", "--output=", "--to=", "--json="))
    ]
    places = [os.path.normpath(here / name.rstrip("/")) for name in named if name and "://" not in name]
    found = []
    for path in home.rglob("*"):
        if path != home / "stderr" and not any(f"{path}/".startswith(f"{place}/") for place in places):
            found += [str(path)] if not any(place.startswith(f"{path}/") for place in places) else []
    return found


def _child(case: Case, home: Path, here: Path) -> None:
    code = 70
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS + 5, CPU_SECONDS + 6))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        os.chdir(here)
        if case.no_cwd:
            gone = home / "gone"
            gone.mkdir()
            os.chdir(gone)
            gone.rmdir()
        with open(home / "stderr", "w") as file, open(os.devnull, "w") as nowhere:
            os.dup2(file.fileno(), 2)
            os.dup2(nowhere.fileno(), 1)
        if case.no_stdin:
            os.close(0)
        os.environ.update({"HOME": str(home), "TMPDIR": str(home / "tmp"), **case.environment})
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        code = _program(case.arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _program(arguments: Sequence[str]) -> int:
    """Do as the interpreter does: an exception that nobody catches is a traceback and 1."""
    from distill_jax import backend, main

    find_devices = backend.find_devices

    def found() -> None:
        find_devices()
        _stop_where_it_computes()

    backend.find_devices = found  # which comes before all that computes; earlier would import JAX
    try:
        return int(main.main(["distill-jax", *arguments]))
    except Begun:
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _stop_where_it_computes() -> None:
    from distill_jax.experiment import graph, sweep_graph

    def begin(*_: object) -> None:
        raise Begun

    graph.schedule = sweep_graph.leased = begin


def main() -> None:
    """Run the cases; those of other environments first, before JAX has read this one's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--scratch", type=Path, required=True)
    given = parser.parse_args()
    sys.dont_write_bytecode = True  # of the configs, which lie beside what is watched
    os.environ["JAX_PLATFORMS"] = "cpu"

    keys = json.loads(_in_child(lambda: json.dumps(settings())))
    numbers = range(given.first, given.first + given.cases)
    cases = {i: make(random.Random(f"{given.seed}/{i}"), keys) for i in numbers}
    for i in sorted(cases, key=lambda i: (not cases[i].environment, i)):
        home = given.scratch / str(i)
        print(json.dumps({"case": i, **run(cases[i], home)}), flush=True)
        shutil.rmtree(home, ignore_errors=True)


def _in_child(compute: Callable[[], str]) -> str:
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException), io.FileIO(write, "w") as out:
            out.write(compute().encode())
        os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as file:
        told = file.read()
    os.waitpid(child, 0)
    return told


if __name__ == "__main__":
    main()
