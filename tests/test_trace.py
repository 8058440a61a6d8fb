"""A trace of training steps is one that xprof opens: its layout, what stands in it, and xprof itself where it is."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from distill_jax.perf import profile

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    """The directory of a traced training."""

    @jax.jit
    def train_step(x):
        with jax.named_scope("objective"):
            return jnp.tanh(x @ x)

    directory, x = tmp_path_factory.mktemp("traced") / "tensorboard", jnp.ones((64, 64))
    with profile.traced(train_step, (2, 3), directory) as step:
        for _ in range(6):
            x = step(x)
    return directory


def test_a_trace_has_the_layout_of_xprof_and_the_names_of_its_steps(trace):
    (path,) = trace.rglob("*.xplane.pb")
    directory, kind, run, name = path.relative_to(trace).parts
    assert (directory, kind) == ("plugins", "profile") and run and name.endswith(".xplane.pb")
    planes = ProfileData.from_file(str(path)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events]
    steps = [int(dict(event.stats)["step_num"]) for event in events if event.name == profile.STEP]
    assert sorted(steps) == [2, 3]
    assert sum("train_step" in event.name for event in events) >= 2


def test_xprof_opens_a_trace(trace):
    xprof = pytest.importorskip("xprof.convert.raw_to_tool_data", reason="needs xprof")
    paths = [str(path) for path in trace.rglob("*.xplane.pb")]
    assert {"overview_page", "trace_viewer@"} <= set(xprof.xspace_to_tool_names(paths))
    data, _ = xprof.xspace_to_tool_data(paths, "trace_viewer", {})
    events = [event.get("name", "") for event in json.loads(data)["traceEvents"]]
    assert sum("train_step" in event for event in events) >= 2
