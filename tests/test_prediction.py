"""What a run says of the plan's prediction: the same roofline of the same program, and nothing where there is none."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.experiment.config_file import load_experiment, load_module
from distill_jax.experiment.lowered_group import group_step
from distill_jax.experiment.slice_plan import SlicePlanner, planning_context
from distill_jax.perf import roofline
from distill_jax.perf.analysis_cache import AnalysisCache
from distill_jax.perf.clock import Clock
from distill_jax.perf.compile_for import topology
from distill_jax.perf.prices import Prices
from distill_jax.perf.slices import SLICES, Slice, find, of_devices
from distill_jax.sharding.mesh import make_mesh
from distill_jax.train import driver
from distill_jax.train.layout import WholeMembers
from distill_jax.train.settings import Training
from distill_jax.train.state import RUNNING, Hyper
from distill_jax.train.step import ACTIVE
from distill_jax.train.training_run import Cost, StepInputs, TrainingRun
from tests.test_plan import ROOT

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["v4-16", "v5e-1", "v5e-16", "v5p-128", "v6e-8", "tpu7x-16", "2xv5e-16"])
def test_devices_are_the_slice_that_they_are_of(name):
    pytest.importorskip("libtpu")
    where, known = find(name), of_devices(topology(find(name)))
    assert known == dataclasses.replace(where, name=known.name)


def test_devices_that_the_table_does_not_have_are_no_slice():
    def chips(kind, *places):
        return [SimpleNamespace(device_kind=kind, coords=place, slice_index=0) for place in places]

    assert of_devices(jax.devices()) is None
    assert of_devices(chips("TPU v99", (0, 0, 0))) is None
    assert of_devices(chips("TPU v5 lite", (0, 0, 0), (1, 1, 0))) is None  # a diagonal is no box
    assert of_devices(chips("TPU v5 lite", (4, 2, 0), (5, 2, 0))).shape == (2, 1)


def test_a_run_predicts_what_the_plan_does(monkeypatch):
    """The same stage, compiled for the same slice: by `distill-jax plan`, and by what a run asks of its own devices."""
    pytest.importorskip("libtpu")
    where, module = find("v5e-4"), load_module(ROOT / "configs/arithmetic.py")
    ctx = planning_context(load_experiment(module, module.get_config("smoke")))
    group = [ctx.nodes["reference"]]
    (stage,) = SlicePlanner(ctx, Prices.load(None), AnalysisCache(None), lambda line: None).on_slice([group], where)
    step = group_step(ctx, group, topology(where))
    seconds = roofline.predicted_seconds(step.job.build(step.mesh), step.shapes, step.mesh)
    assert seconds == stage.step_seconds > 0


WIDTH, STEPS = 256, 5


@jax.jit
def multiply(state, teacher, batch, base):
    """One product of [W, W] matrices a member, of which the devices' peak is known."""
    weight = state.params["w"] @ batch
    metrics = {"loss": weight[:, 0, 0], ACTIVE: state.status == RUNNING}
    return state.replace(step=state.step + 1, params={"w": weight}), metrics


def trained(said=None) -> Clock:
    layout = WholeMembers(make_mesh(1, devices=jax.devices()[:1]))
    state = layout.make_stacked({"w": np.eye(WIDTH)[None]}, optax.identity(), Hyper.of([0.0]))
    settings = Training(steps=STEPS, checkpoint_every=STEPS, evaluate_every=STEPS, log_every=1)
    inputs = StepInputs(multiply, lambda step: jnp.eye(WIDTH))
    cost = Cost(1.0, STEPS * 2.0 * WIDTH**3, 2.0 * WIDTH**3)
    clock = Clock()
    driver.train(TrainingRun(["m"], settings, layout, lambda: inputs, cost=cost, progress=said), state, clock)
    return clock


def test_the_ledger_gets_the_roofline_of_the_program_that_ran(monkeypatch):
    """Of a slow chip whose products bound the step; and what is compiled for the question is what then runs."""
    trained()  # all that is compiled beside the step
    compiled = []

    def count(event, *_, **__):
        compiled.append(event.endswith("backend_compile_duration"))

    jax.monitoring.register_event_duration_secs_listener(count)
    multiply.clear_cache()
    assert trained().lap().predicted is None
    without, compiled[:] = sum(compiled), []
    multiply.clear_cache()
    slow = dataclasses.replace(SLICES["v5e-1"].chip, flops=1e9)
    monkeypatch.setattr(Slice, "chip", property(lambda self: slow))
    monkeypatch.setattr(roofline, "of_devices", lambda devices: SLICES["v5e-1"])
    sizes = []
    said = SimpleNamespace(say=print, step=lambda step, size, text: sizes.append(size))
    assert trained(said).lap().predicted == pytest.approx(1e9)
    assert sizes[0].predicted is None and sizes[-1].predicted == pytest.approx(2 * WIDTH**3 / 1e9)
    assert sum(compiled) == without > 0


def test_one_training_without_a_prediction_leaves_none():
    clock = Clock()
    clock.predict(6.0, 2.0)
    clock.predict(2.0, 2.0)
    assert clock.lap().predicted == 2.0
    clock.predict(6.0, 2.0)
    clock.predict(2.0, None)
    assert clock.lap().predicted is None and clock.lap().predicted is None
