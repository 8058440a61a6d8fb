"""A trace of training steps is one that xprof opens: its layout, and what stands in it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from distill_jax.perf import profile


@pytest.mark.unit
def test_a_trace_has_the_layout_of_xprof_and_the_names_of_its_steps(tmp_path):
    @jax.jit
    def train_step(x):
        with jax.named_scope("objective"):
            return jnp.tanh(x @ x)

    x = jnp.ones((64, 64))
    with profile.traced(train_step, (2, 3), tmp_path / "tensorboard") as step:
        for _ in range(6):
            x = step(x)
    (path,) = tmp_path.rglob("*.xplane.pb")
    directory, kind, run, name = path.relative_to(tmp_path / "tensorboard").parts
    assert (directory, kind) == ("plugins", "profile") and run and name.endswith(".xplane.pb")
    planes = ProfileData.from_file(str(path)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events]
    steps = [int(dict(event.stats)["step_num"]) for event in events if event.name == profile.STEP]
    assert sorted(steps) == [2, 3]
    assert sum("train_step" in event.name for event in events) >= 2
