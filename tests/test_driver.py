"""The driver with a step of one addition: what it saves, continues from, writes and refuses."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.config import Interrupted
from distill_jax.io.metrics import read_rows
from distill_jax.io.node import Node
from distill_jax.sharding import distributed
from distill_jax.sharding.mesh import make_mesh
from distill_jax.train import driver
from distill_jax.train.layout import WholeMembers
from distill_jax.train.metric_writers import Row
from distill_jax.train.settings import Training
from distill_jax.train.state import DIVERGED, REACHED, RUNNING, Hyper
from distill_jax.train.step import ACTIVE
from distill_jax.train.training_run import Measurement, PeriodicEvaluation, StepInputs, TrainingRun

pytestmark = pytest.mark.unit

SETTINGS = Training(steps=8, checkpoint_every=3, evaluate_every=4, log_every=2)
RATES = [1.0, 2.0, 4.0]


@jax.jit
def add(state, teacher, batch, base):
    """A running member adds its rate times the batch; its loss is its weight before."""
    active = state.status == RUNNING
    weight = state.params["w"]
    moved = jnp.where(active[:, None], weight + (state.hyper.learning_rate * batch)[:, None], weight)
    return state.replace(step=state.step + 1, params={"w": moved}), {"loss": weight[:, 0], ACTIVE: active}


class Say(list):
    """A progress that keeps what is said, and no steps."""

    say = list.append

    def step(self, *_):
        """A step is nothing to keep."""


def nodes(directory, names=("a", "a", "b")):
    made = {name: Node(name, "verb", SETTINGS, {}, name, directory / name) for name in names}
    for node in made.values():
        node.directory.mkdir(parents=True, exist_ok=True)
    return [made[name] for name in names]


def train(owners, devices=2, settings=SETTINGS, status=None, said=None, clock=None, trackers=None):
    """Train three members from zero; return the outcome."""
    layout = WholeMembers(make_mesh(3, spread=True, devices=jax.devices()[:devices]))
    fresh = layout.make_stacked({"w": np.zeros((3, 2))}, optax.identity(), Hyper.of(RATES))
    labels = ["x", "y", "z"]

    def measure(state):
        rows = [
            Row(node.name, "evaluation", label, {"score": float(state.params["w"][i, 0])})
            for i, (node, label) in enumerate(zip(owners, labels, strict=True))
        ]
        return Measurement(rows, status)

    run = TrainingRun(
        labels=labels,
        settings=settings,
        layout=layout,
        inputs=lambda: StepInputs(add, lambda s: jnp.float32(s + 1)),
        nodes=owners,
        evaluation=PeriodicEvaluation(settings, measure),
        progress=said,
        trackers=trackers,
    )
    return driver.train(run, fresh, clock)


def stop_at(monkeypatch, step):
    asked = itertools.count()
    monkeypatch.setattr(distributed, "preempted", lambda: next(asked) == step)


def files(owners):
    return {node.name: (node.directory / "metrics.jsonl").read_bytes() for node in owners}


def test_members_train_and_their_nodes_keep_their_rows(tmp_path):
    owners = nodes(tmp_path)
    outcome = train(owners)
    total = sum(range(1, 9))
    np.testing.assert_array_equal(np.asarray(outcome.state.params["w"])[:3], [[r * total] * 2 for r in RATES])
    assert (outcome.steps, outcome.status, outcome.evaluations) == ([8] * 3, [RUNNING] * 3, [3] * 3)
    rows = read_rows(tmp_path / "b/metrics.jsonl")
    after = lambda s: 4.0 * s * (s + 1) / 2  # noqa: E731
    assert [(r["step"], r["score"]) for r in rows if r["kind"] == "evaluation"] == [(s, after(s)) for s in (0, 4, 8)]
    assert [(r["step"], r["loss"]) for r in rows if r["kind"] == "train"] == [(s, after(s)) for s in (0, 2, 4, 6)]
    assert {r["member"] for r in read_rows(tmp_path / "a/metrics.jsonl")} == {"x", "y"}


def test_members_stop_as_their_evaluation_says(tmp_path):
    outcome = train(nodes(tmp_path), status=np.array([REACHED, RUNNING, DIVERGED]))
    assert (outcome.steps, outcome.status) == ([0, 8, 0], [REACHED, RUNNING, DIVERGED])
    assert outcome.evaluations == [1, 3, 1]
    assert {r["member"] for r in read_rows(tmp_path / "a/metrics.jsonl") if r["kind"] == "train"} == {"y"}


@pytest.mark.parametrize(("stop", "devices"), [(1, (2, 1)), (3, (2, 2)), (4, (1, 2)), (7, (2, 1))])
def test_a_stopped_run_ends_as_one_that_was_not_on_any_devices(tmp_path, monkeypatch, stop, devices):
    """Three members fill two devices up to four; one device has no fourth."""
    whole = train(nodes(tmp_path / "whole"))
    owners, said = nodes(tmp_path / "parts"), Say()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, stop)
        train(owners, devices[0])
    parts = train(owners, devices[1], said=said)
    assert said == [f"a, b: continuing from step {stop} of an earlier run"]
    one, other = (jax.tree.map(lambda x: np.asarray(x)[:3], o.state.params) for o in (whole, parts))
    np.testing.assert_array_equal(one["w"], other["w"])
    assert files(nodes(tmp_path / "whole")) == files(owners)
    assert (whole.steps, whole.evaluations) == (parts.steps, parts.evaluations)


def stopped(owners, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 7)
        train(owners)  # leaves the steps 6 and 7


def test_all_nodes_continue_from_the_newest_step_that_each_has(tmp_path, monkeypatch):
    owners, said = nodes(tmp_path), Say()
    stopped(owners, monkeypatch)
    assert [node.checkpoints.steps() for node in owners[1:]] == [[6, 7]] * 2
    owners[2].checkpoints.remove(7)
    train(owners, said=said)
    assert said == ["a, b: continuing from step 6 of an earlier run"]


def test_a_damaged_state_is_left_for_the_one_before_it(tmp_path, monkeypatch):
    owners, said = nodes(tmp_path), Say()
    stopped(owners, monkeypatch)
    for path in (tmp_path / "b/checkpoints/7").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    train(owners, said=said)
    assert len(said) == 2 and "damaged" in said[0] and "step 6" in said[1]


def test_states_of_other_arrays_are_not_misread(tmp_path, monkeypatch):
    """A run that saved more members, or more arrays, begins anew and says so."""
    owners, said = nodes(tmp_path), Say()
    stopped(owners, monkeypatch)
    store = owners[0].checkpoints
    saved = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), store.shapes(6))
    store.save(6, jax.tree.map(lambda x: np.concatenate([x, x]) if x.ndim else x, saved), store.journal(6))
    store.save(7, {**saved, "extra": np.zeros(2)}, store.journal(7))
    train(owners, said=said)
    assert len(said) == 2 and all("other arrays" in line for line in said)
    assert files(owners) == files(trained(tmp_path / "whole"))


def trained(directory):
    owners = nodes(directory)
    train(owners)
    return owners


def test_a_state_saved_with_a_dict_of_hyper_parameters_is_read(tmp_path):
    """As runs saved it before `Hyper` had named fields: the names on the disk are the same."""
    layout = WholeMembers(make_mesh(3, spread=True))
    state = layout.make_stacked(
        {"w": np.arange(6.0).reshape(3, 2)}, optax.scale_by_adam(), Hyper.of(RATES, [2, 0, 1], forget=[0.5, 1, 2])
    )
    (node, *_) = nodes(tmp_path)
    piece = layout.take(state, (0, 1))
    node.checkpoints.save(5, piece.replace(hyper=piece.hyper._asdict()))
    back = node.checkpoints.restore(5, layout.shape(state, (0, 1)))
    assert isinstance(back.hyper, Hyper)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, piece))


def test_what_has_no_node_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = dataclasses.replace(SETTINGS, checkpoint_every=1)
    layout = WholeMembers(make_mesh(3, spread=True))
    fresh = layout.make_stacked({"w": np.zeros((3, 2))}, optax.identity(), Hyper.of(RATES))
    inputs = lambda: StepInputs(add, lambda s: jnp.float32(s + 1))  # noqa: E731
    outcome = driver.train(TrainingRun(["x", "y", "z"], settings, layout, inputs), fresh)
    assert outcome.steps == [8] * 3 and outcome.evaluations == [0] * 3
    assert not list(tmp_path.iterdir())
