"""Training states that the storage refuses: the run says so and goes on, and only the end needs what it saves."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import main
from distill_jax.config import Interrupted
from distill_jax.io.checkpoint import FINAL, Checkpoints
from distill_jax.io.node import Node
from distill_jax.sharding import distributed
from distill_jax.sharding.mesh import make_mesh
from distill_jax.train import driver
from distill_jax.train.layout import WholeMembers
from distill_jax.train.settings import Training
from distill_jax.train.state import RUNNING, Hyper
from distill_jax.train.step import ACTIVE
from distill_jax.train.training_run import StepInputs, TrainingRun

pytestmark = pytest.mark.unit

SETTINGS = Training(steps=12, checkpoint_every=3, log_every=2)
SMALL, LARGE = 2, 40_000  # weights of a model; the larger one's do not fit into LIMIT
LIMIT = 64 * 1024  # bytes of a file


class Progress(list):
    """A progress that keeps its lines."""

    say = list.append

    def step(self, *_):
        """Keep nothing of a step."""


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Have the kernel refuse every file beyond LIMIT, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@jax.jit
def add(state, teacher, batch, base):
    """Add the rate times the batch."""
    moved = state.params["w"] + (state.hyper.learning_rate * batch)[:, None]
    active = state.status == RUNNING
    return state.replace(step=state.step + 1, params={"w": moved}), {"loss": moved[:, 0], ACTIVE: active}


def owners(directory: Path, names=("a", "b")) -> list[Node]:
    """Return a node for each member, with its directory."""
    nodes = [Node(name, "verb", SETTINGS, {}, name, directory / name) for name in names]
    for node in nodes:
        node.directory.mkdir(parents=True, exist_ok=True)
    return nodes


def train(nodes, width=LARGE, refused=(), background=True):
    """Train a member a node; the kernel refuses the saves of some steps. Return the weights and the lines."""
    with contextlib.ExitStack() as limit:

        class Layout(WholeMembers):
            saves_in_background = background

            def take(self, state, index):
                limit.close()  # the save before this one is over
                if int(state.step) in refused:
                    limit.enter_context(small_files())
                return super().take(state, index)

        layout = Layout(make_mesh(len(nodes), spread=True, devices=jax.devices()[:1]))
        weights = np.random.default_rng(0).normal(size=(len(nodes), width))
        fresh = layout.make_stacked({"w": weights}, optax.identity(), Hyper.of([1.0] * len(nodes)))
        inputs, lines = lambda: StepInputs(add, lambda step: jnp.float32(step + 1)), Progress()
        outcome = driver.train(
            TrainingRun([n.name for n in nodes], SETTINGS, layout, inputs, nodes, progress=lines), fresh
        )
    return np.asarray(outcome.state.params["w"]), lines


@pytest.mark.parametrize("background", [True, False])
def test_a_refused_save_is_said_and_the_run_goes_on(tmp_path, background):
    undisturbed, lines = train(owners(tmp_path / "undisturbed"), background=background)
    assert lines == []
    nodes = owners(tmp_path / "run")
    weights, lines = train(nodes, refused=(6, 9), background=background)
    np.testing.assert_array_equal(weights, undisturbed)
    assert len(lines) == 2
    for step, line in zip((6, 9), lines, strict=True):
        assert line.startswith(f"warning: step {step} of a, b could not be saved (File too large: ")
        assert line.endswith("); step 3 stays, and the next save tries again")
    assert [node.checkpoints.steps() for node in nodes] == [[3, 12]] * 2
    assert {path.name for path in (tmp_path / "run/a/checkpoints").iterdir()} == {"3", "3.json", "12", "12.json"}


def test_a_run_that_was_stopped_meanwhile_continues_from_what_stayed(tmp_path, monkeypatch):
    undisturbed, _ = train(owners(tmp_path / "undisturbed"))
    nodes, asked = owners(tmp_path / "run"), iter(range(100))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(distributed, "preempted", lambda: next(asked) == 8)
        train(nodes, refused=(6, 8))
    weights, lines = train(nodes)
    assert lines == ["a, b: continuing from step 3 of an earlier run"]
    np.testing.assert_array_equal(weights, undisturbed)
    rows = [(node.directory / "metrics.jsonl").read_bytes() for node in nodes]
    assert rows == [(tmp_path / "undisturbed" / name / "metrics.jsonl").read_bytes() for name in "ab"]


def test_nodes_keep_a_step_in_common_when_one_alone_is_refused(tmp_path):
    nodes = owners(tmp_path)
    (nodes[1].directory / "checkpoints").write_text("a file where the directory should be")
    _, lines = train(nodes, SMALL)
    assert len(lines) == 4 and all("nothing is saved yet" in line for line in lines)
    assert nodes[0].checkpoints.steps() == []


def test_the_last_save_must_succeed(tmp_path, capsys, monkeypatch):
    tree = {"w": np.random.default_rng(0).normal(size=LARGE)}
    store = Checkpoints(tmp_path / "checkpoints")
    store.save(3, tree)

    def finish(_):
        with small_files():
            store.save(FINAL, tree)

    monkeypatch.setattr(main, "_dispatch", finish)
    assert main.main(["distill-jax", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "File too large" in line and "the same command continues once this is mended" in line
    assert store.steps() == [3]
