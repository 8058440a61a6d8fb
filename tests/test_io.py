"""Files that are whole or do not count, metrics that survive a kill, and FLOPs against the compiler's own count."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.config import ConfigError
from distill_jax.io import files, metrics, sealed
from distill_jax.io.checkpoint import FINAL, Checkpoints, Damaged
from distill_jax.io.journal import Prefix
from distill_jax.io.metrics import Metrics, Progress, TrainingSize, read_rows
from distill_jax.models import transformer
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.units import span

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3)
)
JSON = st.recursive(
    LEAVES, lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(max_size=3), of, max_size=3), max_leaves=6
)


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b": {"count": np.int32(seed + 7), "flags": rng.integers(0, 9, 4).astype(np.int32)},
    }


def like():
    return jax.eval_shape(tree)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def kept(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


# Checkpoints


@pytest.mark.unit
def test_a_checkpoint_comes_back_to_the_bit(kept):
    assert kept.steps() == []
    kept.save(3, tree(1))
    kept.save(FINAL, jax.tree.map(jnp.asarray, tree(2)))
    assert_same(kept.restore(3, tree()), tree(1))
    assert_same(kept.restore(FINAL, {k: like()[k] for k in ("a", "b")}), tree(2))
    assert kept.steps() == [3]
    kept.save(3, tree(4))  # again, over the first
    assert_same(kept.restore(3, tree()), tree(4))


@pytest.mark.unit
def test_only_the_newest_are_kept_and_the_result_always(kept):
    kept.save(FINAL, tree(0))
    for step in (5, 10, 20, 100):
        kept.save(step, tree(step))
    assert kept.steps() == [20, 100]  # by number, not by name
    assert sorted(p.name for p in kept.directory.iterdir()) == [
        "100",
        "100.json",
        "20",
        "20.json",
        "final",
        "final.json",
    ]
    assert_same(kept.restore(20, tree()), tree(20))
    assert_same(kept.restore(FINAL, tree()), tree(0))
    kept.remove(20)
    assert kept.steps() == [100] and not (kept.directory / "20").exists()


def largest(directory):
    return max((f for f in directory.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


@pytest.mark.kill
@pytest.mark.parametrize("harm", ["cut", "flip", "lose", "empty", "lose all"])
def test_damage_is_named(kept, harm):
    kept.save(1, tree(1))
    kept.save(2, tree(2))
    file = largest(kept.directory / "2")
    content = file.read_bytes()
    match harm:
        case "cut":
            file.write_bytes(content[:-1])
        case "flip":
            middle = len(content) // 2
            file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        case "lose":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "lose all":
            shutil.rmtree(kept.directory / "2")
    with pytest.raises(Damaged) as caught:
        kept.restore(2, tree())
    assert isinstance(caught.value, ConfigError)
    name = str(file.relative_to(kept.directory / "2")) if harm != "lose all" else ""
    expected = "is damaged" if harm in ("cut", "flip", "empty") else "is missing"
    assert re.search(rf"{re.escape(str(kept.directory / '2'))}: file {re.escape(name)}.*{expected}", str(caught.value))
    assert_same(kept.restore(1, tree()), tree(1))  # the one before it is whole
    kept.save(2, tree(3))  # and the place can be used again
    assert_same(kept.restore(2, tree()), tree(3))


@pytest.mark.kill
def test_a_save_without_its_proof_does_not_count(kept):
    kept.save(1, tree(1))
    kept.save(2, tree(2))
    (kept.directory / "2.json").unlink()  # killed before the proof was written
    shutil.copytree(kept.directory / "2", kept.directory / "3.orbax-checkpoint-tmp")  # killed while writing 3
    (kept.directory / ".4.json.77.tmp").write_text("{")  # killed while writing a proof
    assert kept.steps() == [1]
    for step in (2, 3, 4):
        with pytest.raises(Damaged, match="no complete checkpoint"):
            kept.restore(step, tree())
    assert_same(kept.restore(1, tree()), tree(1))
    (kept.directory / "1.json").write_text('{"cut')
    with pytest.raises(Damaged, match=r"1\.json is damaged"):
        kept.restore(1, tree())


@pytest.mark.kill
def test_a_kill_while_saving_loses_nothing_older(kept, monkeypatch):
    """Whether it comes while the arrays are written or before the proof, over a new step or an old one."""
    kept.save(1, tree(1))
    kept.save(2, tree(2))

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    for where in ("distill_jax.io.checkpoint.write_sealed", "orbax.checkpoint.StandardCheckpointer.save"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(where, killed)
            kept.save(3, tree(3))
        assert kept.steps() == [1, 2]
        assert_same(kept.restore(2, tree()), tree(2))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("distill_jax.io.checkpoint.write_sealed", killed)
        kept.save(2, tree(9))  # new arrays must not stand under the old proof
    assert kept.steps() == [1]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", killed)
        kept.remove(1)
    assert kept.steps() == []  # half removed does not count either


# Files


@pytest.mark.unit
@pytest.mark.parametrize("where", ["os.replace", "os.fsync"])
def test_a_failed_write_leaves_the_old_contents(tmp_path, monkeypatch, where):
    path = tmp_path / "file.json"
    files.write_atomic(path, "old é\n")

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(where, fail)
        files.write_atomic(path, "new")
    assert path.read_text(encoding="utf-8") == "old é\n"
    assert os.listdir(tmp_path) == ["file.json"]
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError):
            files.write_json(path, {"x": bad})
    assert path.read_text(encoding="utf-8") == "old é\n"
    files.write_json(path, {"x": [1, None]})
    assert files.read_json(path) == {"x": [1, None]}
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.unit
def test_digest_is_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4's example
    assert files.digest(tmp_path / "abc") == expected


@pytest.mark.property
@settings(max_examples=200, deadline=None, database=None)
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.data())
def test_any_byte_that_changes_a_sealed_object_is_seen(value, data):
    """Whatever a flip, a cut or a deletion makes of the file, it is the same object or no object."""
    text = json.dumps(sealed.seal(value)).encode()
    assert sealed.unseal(json.loads(text)) == {key: item for key, item in value.items() if key != "sha256"}
    place = data.draw(st.integers(0, len(text) - 1))
    flipped = text[:place] + bytes([text[place] ^ 1 << data.draw(st.integers(0, 7))]) + text[place + 1 :]
    for harmed in (flipped, text[:place], text[:place] + text[place + 1 :]):
        try:
            found = sealed.unseal(json.loads(harmed))
        except ValueError:
            continue
        assert json.dumps(found) == json.dumps(sealed.unseal(json.loads(text)))


# Metrics


@pytest.mark.unit
def test_rows_are_written_rounded_and_without_nan(tmp_path):
    book = Metrics(tmp_path)
    book.write("train", 0, "lr=1,seed=0", {"loss": 1 / 3, "norm": math.nan})
    book.write("train", 10, "", {"loss": math.inf, "norm": -math.inf, "big": 123456789012.0})
    book.flush()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    book.close()
    assert rows == [
        {"kind": "train", "step": 0, "member": "lr=1,seed=0", "loss": 0.33333333, "norm": None},
        {"kind": "train", "step": 10, "member": "", "loss": None, "norm": None, "big": 123456790000.0},
    ]
    assert read_rows(tmp_path / "metrics.jsonl") == rows
    assert list((tmp_path / "tensorboard").iterdir())


def write_steps(directory, *steps: int, then=None) -> Prefix | None:
    """Write rows, and return what a checkpoint at step `then` would know of them."""
    book, known = Metrics(directory), None
    for step in steps:
        if step == then:
            known = book.sync()
        book.write("train", step, "", {"loss": float(step)})
    book.close()
    return known


@pytest.mark.kill
@pytest.mark.parametrize("cut", [0, 1, 20, 60])
def test_a_restart_forgets_what_it_will_write_again(tmp_path, cut):
    """Rows from the restart's step on go, whole or cut short, and those before it stay."""
    known = write_steps(tmp_path, 0, 10, 20, 30, then=20)
    path = tmp_path / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    assert known and known.begins(path)
    again = Metrics(tmp_path, 20, known)
    again.write("train", 20, "", {"loss": -1.0})
    again.close()
    assert [(row["step"], row["loss"]) for row in read_rows(path)] == [(0, 0), (10, 10), (20, -1)]
    Metrics(tmp_path).close()  # from the start: nothing is kept
    assert path.read_bytes() == b""


@pytest.mark.unit
def test_a_bad_line_is_an_error_and_no_end(tmp_path):
    write_steps(tmp_path, 0, 10, 20)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 10', '"step": 1x'))
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        read_rows(path)


@pytest.mark.unit
def test_metrics_that_something_else_writes_to_are_no_nodes(tmp_path):
    book = Metrics(tmp_path)
    book.write("train", 0, "", {"loss": 0.5})
    book.sync()
    os.truncate(tmp_path / "metrics.jsonl", 10)
    with pytest.raises(ConfigError, match="something else wrote"):
        book.close()


@pytest.mark.kill
@pytest.mark.parametrize("harm", ["none", "after", "empty", "cut", "delete", "flip", "first row"])
def test_a_checkpoint_counts_only_with_the_rows_before_it(tmp_path, harm):
    """What a power cut, a flipped bit or a careless hand does to the rows between two runs."""
    path = tmp_path / "metrics.jsonl"
    kept = Checkpoints(tmp_path / "checkpoints", journal=path)
    book = Metrics(tmp_path)
    for step in (0, 10, 20):
        if step:
            kept.save(step, tree(step), book.sync())
        book.write("train", step, "", {"loss": float(step)})
    book.close()
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    harmed = {
        "none": data,
        "after": data[:-3],  # of step 20, which will be taken again
        "empty": b"",
        "cut": data[: len(lines[0]) + 5],
        "flip": data.replace(b'"loss": 10.0', b'"loss": 11.0'),
        "first row": b"".join(lines[1:]),
    }
    path.unlink() if harm == "delete" else path.write_bytes(harmed[harm])
    for step, intact in ((20, harm in ("none", "after")), (10, harm in ("none", "after", "cut", "flip"))):
        if intact:
            assert_same(kept.restore(step, tree()), tree(step))
            assert kept.journal(step).bytes == sum(map(len, lines[: step // 10]))
        else:
            with pytest.raises(Damaged, match=r"metrics\.jsonl has lost or changed rows"):
                kept.restore(step, tree())


# Progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(metrics.time, "monotonic", lambda: self.now)


@pytest.mark.unit
def test_progress_says_stage_step_rate_and_time_left(monkeypatch):
    """Two stages of 1000 FLOPs each; the first takes 100 steps, 2 a second."""
    clock, out = Clock(monkeypatch), io.StringIO()
    progress = Progress(stages=2, flops=2000.0, every=5.0, out=out)
    progress.begin("reference")
    progress.step(0, TrainingSize(100, 32.0, 1000.0), "loss 3")
    assert out.getvalue() == "[1/2] reference  step 0/100  loss 3  starting  stage ? left, run ? left\n"
    clock.now += 4  # the first step is compiled
    for step in range(1, 21):
        clock.now += 0.5
        progress.step(step, TrainingSize(100, 32.0, 1000.0), f"loss {step}")
    lines = out.getvalue().splitlines()
    assert len(lines) == 3  # at 0 s, 5 s and 10 s
    # 2 steps of 32 tokens a second: 64; at step 12 the other 88 take 44 s; and stage two 50 s, as stage one.
    assert lines[2] == "[1/2] reference  step 12/100  loss 12  64 tok/s  stage 0:44 left, run 1:34 left"
    clock.now += 36
    progress.finish(1000.0, "retain 0.95")
    assert out.getvalue().splitlines()[3] == "[1/2] reference  retain 0.95  (0:50)"
    progress.begin("oracle")
    progress.step(0, TrainingSize(100, 32.0, 1000.0), "")
    progress.step(1, TrainingSize(100, 32.0, 1000.0), "")
    clock.now += 5
    progress.step(11, TrainingSize(100, 32.0, 1000.0), "")
    # 55 s for 1000 + 100 of 2000 FLOPs: 44.5 s for the 890 that are left.
    assert out.getvalue().splitlines()[5].startswith("[2/2] oracle  step 11/100")
    assert out.getvalue().endswith("run 0:44 left\n")
    progress.step(100, TrainingSize(100, 32.0, 1000.0), "end")  # the last step is said however soon it comes
    assert "step 100/100" in out.getvalue().splitlines()[6]


@pytest.mark.unit
def test_time_left_counts_what_each_stage_compiles_once(monkeypatch):
    """Three stages of 10 steps, a second each: beside nine of them that are timed, a stage takes 32 s."""
    clock, out = Clock(monkeypatch), io.StringIO()
    progress = Progress(stages=3, flops=3000.0, every=0.0, out=out)
    for stage in range(2):
        progress.begin(f"stage {stage}")
        clock.now += 30
        for step in range(11):
            progress.step(step, TrainingSize(10, 1.0, 1000.0), "")
            clock.now += 1
        progress.finish(1000.0, "done")
    lines = [line.rpartition("run ")[2] for line in out.getvalue().splitlines() if "left" in line]
    assert lines[11 + 2] == f"{span(8 + 10 + 32)} left"  # at step 2 of the second stage


@pytest.mark.unit
def test_time_left_of_a_continued_run(monkeypatch):
    """Continued at 50 of 100: 10 steps in 10 s leave 39 s, for the stage and for the run that has no other."""
    clock, out = Clock(monkeypatch), io.StringIO()
    progress = Progress(stages=1, flops=1000.0, every=5.0, out=out)
    progress.begin("reference")
    progress.step(50, TrainingSize(100, 32.0, 1000.0), "")
    clock.now += 60  # the first step is compiled
    progress.step(51, TrainingSize(100, 32.0, 1000.0), "")
    clock.now += 10
    progress.step(61, TrainingSize(100, 32.0, 1000.0), "")
    assert out.getvalue().endswith("stage 0:39 left, run 0:39 left\n")


# FLOPs. The one-hot look-up of a small vocabulary is a product that is not counted, so the vocabulary is large.

WIDE = TransformerConfig(vocab=1500, layers=2, hidden=128, mlp=384, heads=4, kv_heads=2, head_dim=32, unroll=2)


def compiled_flops(function, *args):
    fast = {"xla_backend_optimization_level": 0}
    return jax.jit(function, compiler_options=fast).lower(*args).compile().cost_analysis()["flops"]


def shapes(cfg, rows, length):
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    return jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0))), tokens, tokens


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "rows", "length"),
    [({}, 2, 32), ({"layers": 1, "kv_heads": 4, "mlp": 1024}, 1, 16), ({"heads": 8, "kv_heads": 1}, 1, 256)],
    ids=["wide", "mlp", "attention"],
)
def test_forward_flops_equal_the_compilers(change, rows, length):
    """Within 6 %: the compiler counts norms, softmax and activations too, so never fewer than ours."""
    cfg = dataclasses.replace(WIDE, **change)
    params, tokens, segments = shapes(cfg, rows, length)
    whole = compiled_flops(lambda p, t, s: transformer.apply(cfg, p, t, s), params, tokens, segments)
    assert 1 <= whole / flops.forward(cfg, rows, length) < 1.06
    if not change:
        body = compiled_flops(lambda p, t, s: transformer.hidden_states(cfg, p, t, s), params, tokens, segments)
        assert 1 <= body / flops.forward(cfg, rows, length, head=False) < 1.08
        one = compiled_flops(lambda p, t, s: transformer.residual_at(cfg, p, t, s, 1), params, tokens, segments)
        assert 1 <= one / flops.forward(cfg, rows, length, layers=1, head=False) < 1.08


@pytest.mark.unit
def test_training_flops_equal_the_compilers():
    params, tokens, segments = shapes(WIDE, 2, 32)

    def loss(params, tokens, segments):
        return jnp.sum(transformer.apply(WIDE, params, tokens, segments) ** 2)

    assert compiled_flops(jax.grad(loss), params, tokens, segments) == pytest.approx(
        flops.train_step(WIDE, 2, 32), rel=0.06
    )


@pytest.mark.unit
def test_training_takes_six_operations_a_weight_and_token():
    """The rule 6 N D, on rows so short that attention's pairs do not count."""
    weights = transformer.parameter_count(WIDE)
    assert flops.train_step(WIDE, 50, 2) == pytest.approx(6 * weights * 100, rel=0.01)
    assert flops.train_step(WIDE, 50, 2) == 50 * flops.train_step(WIDE, 1, 2)
    shallow = flops.train_step(WIDE, 1, 2, layers=1)
    layer = (weights - WIDE.vocab * WIDE.hidden) / WIDE.layers
    assert shallow == pytest.approx(6 * layer * 2, rel=0.02)


@pytest.mark.unit
def test_decoding_flops_by_hand():
    """3 prompts of 10 tokens, 4 new ones: 3 × (10 + 3) tokens pass the layers, 3 × 4 the head."""
    layers = transformer.parameter_count(WIDE) - WIDE.vocab * WIDE.hidden
    expected = 2 * (3 * 13 * layers + 3 * 4 * WIDE.vocab * WIDE.hidden)
    assert flops.decode(WIDE, 3, 10, 4) == pytest.approx(expected, rel=0.02)
