"""What a stage held is gone after it: its arrays, and the memory that they lay in; and saves are reckoned with."""

from __future__ import annotations

import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import distill_jax
from distill_jax.experiment import graph
from distill_jax.perf import memory

# Buffers as steps leave them: of two sizes, one of which nothing larger fits into, below one that stays.
FREED = """
import numpy as np
from distill_jax import backend

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 2**10

backend._keep_freed_memory()
many = [np.ones(2**17) for _ in range(200)]
stays = np.ones(2**17)
before = resident()
del many
kept = resident()
backend.release_freed_memory()
print(before - kept < 20 and kept - resident() > 150, before, kept, resident())
"""


@pytest.mark.unit
@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_what_was_freed_goes_back_to_the_kernel():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("True"), done.stdout


@pytest.mark.end_to_end
def test_no_array_outlives_its_stage(tmp_path, monkeypatch):
    """Imported, suppressed, damaged, distilled, rounded and attacked: after each nothing lies on the device."""
    run = distill_jax.open_run("smollm2:smoke", tmp_path)
    nodes = graph.lineage(["int8-undo-0.05", "relearn-maxent-lora"], run.nodes)
    alive, before = [], len(jax.live_arrays())
    monkeypatch.setattr(graph, "release_freed_memory", lambda: alive.append(len(jax.live_arrays()) - before))
    graph.execute(nodes, run.experiment.model, run.experiment.run, io.StringIO())
    assert len(alive) == len(nodes) == 7 and alive == [0] * 7


@pytest.mark.unit
def test_a_save_is_reckoned_with():
    """Of two members of a hundred numbers each: on a CPU all are copied and encoded, elsewhere one after another."""
    at = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = {"weights": jax.ShapeDtypeStruct((2, 100), jnp.float32, sharding=at)}
    assert memory.saving_bytes(state, 2, "cpu") == 2 * 800
    assert memory.saving_bytes(state, 2, "gpu") == 400
