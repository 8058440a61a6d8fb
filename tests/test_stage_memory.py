"""Memory that a stage freed goes back to the kernel; and saves are reckoned with.

That no array outlives its stage is in `test_smollm2.py`.
"""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

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


@pytest.mark.unit
def test_a_save_is_reckoned_with():
    """Of two members of a hundred numbers each: on a CPU all are copied and encoded, elsewhere one after another."""
    at = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = {"weights": jax.ShapeDtypeStruct((2, 100), jnp.float32, sharding=at)}
    assert memory.saving_bytes(state, 2, "cpu") == 2 * 800
    assert memory.saving_bytes(state, 2, "gpu") == 400
