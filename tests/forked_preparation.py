"""Preparing data in forks of one process that has imported TensorFlow, which takes longer than all else.

That the real program starts a process of its own is tried by `test_run.py` and `test_data.py`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from distill_jax.stages import prepare

PRELOADED = "tests.tensorflow_loaded"


@contextlib.contextmanager
def quick_preparation() -> Iterator[None]:
    """Within this, stages that prepare data fork instead of starting a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_run", _run)
        yield


def _run(command: Sequence[str], say: Callable[[str], None]) -> tuple[int, str]:
    """Do as `prepare._run` does, but for a preparation that fails."""
    _, _, module, *flags = command
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([PRELOADED])
    with tempfile.NamedTemporaryFile("r") as out:
        child = forks.Process(target=_child, args=(module, flags, out.name))
        child.start()
        child.join()
        printed = Path(out.name).read_text()
    assert child.exitcode == 0, printed
    for line in printed.splitlines():
        say(line)
    return 0, ""


def _child(module: str, flags: list[str], out: str) -> None:
    file = os.open(out, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # pytest's may be others
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.stdout.flush()
