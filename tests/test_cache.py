"""Distilling from a teacher's stored hidden states is distilling from the teacher."""

import dataclasses
import io
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from distill_jax.config import ConfigError, Interrupted
from distill_jax.data.records import Rows
from distill_jax.data.teacher_states import States, StateWriter
from distill_jax.experiment.graph import build
from distill_jax.io.checkpoint import FINAL
from distill_jax.io.files import digest, write_sealed
from distill_jax.io.metrics import Progress
from distill_jax.models import transformer
from distill_jax.stages import Cache, Distill, Prepare, Pretrain, cache
from distill_jax.stages.context import Context, Node, RunSettings
from tests import mesh_worker
from tests.mesh_worker import COMMON, MODEL
from tests.spoil import cut, flip


@pytest.fixture
def ctx(tmp_path):
    """A teacher with weights, a cache node and the rows they read."""
    mesh_worker.write_data(tmp_path)
    manifest = {"sets": {"all": {"sha256": digest(tmp_path / "all.array_record"), "rows": 40}}}
    write_sealed(tmp_path / "manifest.json", manifest)
    teacher = Node("teacher", "pretrain", Pretrain(), {}, "", tmp_path / "teacher")
    teacher.checkpoints.save(FINAL, transformer.init(MODEL, jax.random.key(3)))
    store = Node(
        "store",
        "cache",
        Cache(teacher="teacher", batch=7, shard_rows=11),
        {"teacher": "teacher"},
        "",
        tmp_path / "store",
    )
    store.directory.mkdir()
    data = Node("data", "prepare", Prepare(mesh_worker.Data()), {}, "", tmp_path)
    nodes = {"teacher": teacher, "store": store, "data": data}
    progress = Progress(1, 0.0, out=io.StringIO())
    progress.begin("store")
    return Context(MODEL, nodes, tmp_path, progress, RunSettings(loss_chunk=7))


def fill(ctx: Context) -> States:
    ctx.nodes["store"].settings.run(ctx, [ctx.nodes["store"]])
    return States(ctx.nodes["store"].directory / "states", digest(ctx.data / "all.array_record"))


@pytest.mark.unit
def test_the_states_are_the_teachers(ctx):
    states = fill(ctx)
    rows = Rows(ctx.data / "all.array_record").gather(range(40))
    params = ctx.params("teacher")
    expected = transformer.hidden_states(MODEL, params, rows[:, 0], rows[:, 1])
    index = np.array([39, 0, 10, 11, 12, 22, 0])
    np.testing.assert_allclose(states.gather(index), np.asarray(expected)[index], rtol=1e-5, atol=1e-6)
    assert ctx.nodes["store"].done and ctx.nodes["store"].result() == {"rows": 40}
    assert ctx.nodes["store"].ledger()["flops"]["teacher"] > 0


@pytest.mark.unit
def test_a_student_learns_the_same_from_the_cache(ctx):
    """The same losses and weights, at a fraction of the teacher's FLOPs; the cached teacher is its head alone."""
    fill(ctx)
    out = {}
    for name in ("", "store"):
        settings = Distill(teacher="teacher", cache=name, **{**COMMON, "loss_on": "all", "microbatches": 2})
        inputs = {"teacher": "teacher"} | ({"cache": settings.cache} if settings.cache else {})
        node = Node("student", "distill", settings, inputs, "", ctx.data / "student")
        program = node.settings.train_job(ctx, [node])
        mesh = program.mesh(ctx)
        state = program.state(ctx, mesh, [ctx.fresh(node, mesh)])
        step, feed, teacher = program.build(mesh), program.batches(ctx, mesh), program.frozen(ctx, mesh)[0]
        assert set(teacher) == ({"embedding"} if name else set(ctx.params("teacher")))
        losses = []
        for s in range(3):
            state, metrics = step(state, teacher, feed(s))
            losses.append(float(metrics["kl"][0]))
        out[name] = losses, jax.tree.leaves(state.params), program.flops
    assert out[""][0] == pytest.approx(out["store"][0], rel=1e-6) and out[""][0][0] > 0.1
    for a, b in zip(out[""][1], out["store"][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    assert out["store"][2]["student"] == out[""][2]["student"]
    assert out["store"][2]["teacher"] < out[""][2]["teacher"]


@pytest.mark.kill
def test_a_cache_that_was_stopped_continues(ctx, monkeypatch):
    asked = iter([False] * 3 + [True])  # the first file is whole, the second is not
    monkeypatch.setattr(cache, "preempted", lambda: next(asked))
    with pytest.raises(Interrupted, match="store: stopped at row"):
        fill(ctx)
    directory = ctx.nodes["store"].directory / "states"
    before = {p.name: p.stat().st_mtime_ns for p in directory.iterdir()}
    assert set(before) == {"00000.npy", "00000.npy.json"} and not ctx.nodes["store"].done
    monkeypatch.undo()
    states = fill(ctx)
    assert (directory / "00000.npy").stat().st_mtime_ns == before["00000.npy"]
    assert states.gather(np.arange(40)).shape == (40, mesh_worker.LENGTH, MODEL.hidden)


@pytest.mark.kill
def test_a_file_of_a_stopped_cache_that_was_damaged_is_written_again(ctx, monkeypatch):
    """Before the cache is whole nothing else vouches for its files."""
    expected = fill(ctx).gather(np.arange(40))
    store = ctx.nodes["store"].directory
    (store / "DONE").unlink()
    for name, harm in (("00000.npy", flip), ("00001.npy", cut), ("00002.npy.json", cut)):
        harm(store / "states" / name)
    np.testing.assert_array_equal(fill(ctx).gather(np.arange(40)), expected)


@pytest.mark.unit
def test_states_of_other_data_or_damaged_ones_are_refused(ctx):
    fill(ctx)
    directory = ctx.nodes["store"].directory / "states"
    with pytest.raises(ValueError, match="of other data"):
        States(directory, "0" * 64)
    path = directory / "00001.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    node = Node(
        "s",
        "distill",
        Distill(teacher="teacher", cache="store", **COMMON),
        {"teacher": "teacher", "cache": "store"},
        "",
        ctx.data,
    )
    program = node.settings.train_job(ctx, [node])
    with pytest.raises(ConfigError, match=r"00001\.npy is missing or damaged.*remove .*store and run again"):
        program.batches(ctx, program.mesh(ctx))
    path.unlink()
    with pytest.raises(ValueError, match=r"00001\.npy"):
        States(directory, digest(ctx.data / "all.array_record"))


@pytest.mark.unit
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_states_come_back_to_the_bit(tmp_path, dtype):
    values = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(dtype)
    writer = StateWriter(tmp_path, 5, 2)
    for shard in writer.missing():
        writer.write(shard, values[shard.start : shard.stop])
    assert list(writer.missing()) == []
    writer.seal({"data": "x", "dtype": "bfloat16" if dtype is ml_dtypes.bfloat16 else "float32"})
    found = States(tmp_path, "x").gather(np.array([4, 1, 1]))
    assert found.dtype == dtype and found.tobytes() == values[[4, 1, 1]].tobytes()


@dataclasses.dataclass(frozen=True)
class Experiment:
    stages: dict
    model = MODEL
    data = mesh_worker.Data()
    precision = "fp32"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cache": "reference"}, r"stages\.student\.cache = 'reference': a pretrain stage holds no hidden states"),
        ({"teacher": "other"}, "has teacher = 'reference', the student 'other'"),
        ({"data": "retain"}, "has data = 'all', the student 'retain'"),
        ({"start": "store"}, r"stages\.student\.start = 'store': a cache stage leaves no model"),
    ],
)
def test_wrong_wiring_is_named(change, message):
    good = {"teacher": "reference", "cache": "store"}
    stages = {"reference": Pretrain(), "other": Pretrain(), "store": Cache(teacher="reference")}
    build(Experiment({**stages, "student": Distill(**good)}), Path("w"))
    with pytest.raises(ConfigError, match=message):
        build(Experiment({**stages, "student": Distill(**{**good, **change})}), Path("w"))
