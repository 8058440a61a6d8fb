"""A save that the disk of one of two processes refuses: both give it up, neither waits for ever, and both go on."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest

from distill_jax.sharding import distributed
from distill_jax.sharding.mesh import make_mesh
from distill_jax.train.layout import WholeMembers
from distill_jax.train.saved_states import SavedStates
from distill_jax.train.state import Hyper
from tests.programs import ROOT, environment
from tests.test_failing_saves import LARGE, owners, small_files


def work(coordinator: str, process: int, directory: Path) -> None:
    """Save a member of each process three times, of which the second fails on one; write what was said and is kept."""
    distributed.join(coordinator, 2, process)
    layout, (node,) = WholeMembers(make_mesh(2, spread=True)), owners(directory, "a")
    weights, lines = np.random.default_rng(0).normal(size=(2, LARGE)), list[Any]()
    state = layout.make_stacked({"w": weights}, optax.identity(), Hyper.of([1.0] * 2))
    saved = SavedStates(layout, [node] * 2, lines.append)
    for step in (3, 6, 9):
        refused = small_files() if (process, step) == (1, 6) else contextlib.nullcontext()
        with refused:
            saved.save(step, state.replace(step=state.step + step), {})
            saved.wait()
        distributed.barrier(f"{step}")
        lines.append(f"{node.checkpoints.steps()}")
    lines.append(int(saved.restore(state).step))
    Path(f"{directory}.{process}.json").write_text(json.dumps(lines))


@pytest.mark.end_to_end
def test_a_save_that_one_process_cannot_write_is_given_up_by_both(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
    env = environment(tmp_path / "compiled", devices=1) | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "tests.test_failing_saves_together", coordinator]
    both = [
        subprocess.Popen([*line, str(i), str(tmp_path / "run")], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    first, second = (json.loads(Path(f"{tmp_path}/run.{i}.json").read_text()) for i in range(2))
    warning = "warning: step 6 of a could not be saved ({}: {}); step 3 stays, and the next save tries again"
    rest = ["[3]", "[3, 9]", "a: continuing from step 9 of an earlier run", 9]
    refused = tmp_path / "run/a/checkpoints/6"
    assert second == ["[3]", warning.format("File too large", refused), *rest]
    elsewhere = "Input/output error (another process could not do its part)"
    assert first == ["[3]", warning.format(elsewhere, refused), *rest]


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
