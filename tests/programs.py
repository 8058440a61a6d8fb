"""The program on small experiments: one run, shared by all the tests of a file."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import shutil
from pathlib import Path

from distill_jax.main import main
from tests.fast_xla import xla_flags
from tests.forked_preparation import quick_preparation
from tests.spoil import kept_in, shared

ROOT = Path(__file__).parents[1]
ARITHMETIC = ("--config=configs/arithmetic.py:smoke", "--config.data.multiplication_max=3")


def environment(cache: Path, devices: int = 2) -> dict[str, str]:
    """Return the environment of a run that compiles quickly, and nothing twice."""
    return os.environ | {"XLA_FLAGS": xla_flags(devices), **kept_in(cache)}


def output_of(*arguments: str) -> str:
    """Return what a command that succeeds prints, run in this process: one of its own imports for seconds."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), quick_preparation():
        code = main(["distill-jax", *arguments])
    assert code == 0, err.getvalue()
    return out.getvalue()


def finished_once(tmp_path_factory, name: str, *arguments: str) -> tuple[Path, str]:
    """Return the workdir of a command and what it printed; of all processes of a session, the first one runs it."""
    base = shared(tmp_path_factory, name)
    kept = base / "said.txt"
    with open(base / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_text(output_of(*arguments, f"--workdir={base}/run"))
    return base / "run", kept.read_text()


def with_data(tmp_path_factory, workdir: Path) -> Path:
    """Give a work directory the data of `ARITHMETIC`, prepared once a session: TensorFlow takes seconds to import."""
    home, _ = finished_once(tmp_path_factory, "arithmetic-data", "prepare", *ARITHMETIC)
    (data,) = (home / "nodes").glob("data-*")
    shutil.copytree(data, workdir / "nodes" / data.name)
    return workdir


def node(workdir: Path, name: str) -> Path:
    """Return a node's directory; the name is followed by twelve hex digits."""
    (found,) = (p for p in (workdir / "nodes").iterdir() if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", p.name))
    return found
