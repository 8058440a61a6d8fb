"""A finished node is read as it was or not at all, and a save that the disk refuses says so in one error."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

from distill_jax.config import ConfigError
from distill_jax.io.checkpoint import FINAL, Checkpoints, Damaged
from distill_jax.io.files import read_sealed, write_json, write_sealed
from distill_jax.io.node import Node, finished
from tests.spoil import cut, fill, flip, small_disk

TREE = {"a": np.arange(60_000, dtype=np.float32) ** 0.5, "b": np.int32(7)}


@pytest.fixture
def node(tmp_path) -> Node:
    """A finished node with a file of every kind that is sealed."""
    node = Node("student", "distill", None, {}, "0123456789ab", tmp_path / "student-0123456789ab")
    (node.directory / "tokenizer").mkdir(parents=True)
    (node.directory / "tokenizer/tokenizer.json").write_text('{"model": 1}')
    write_json(node.directory / "config.json", {"name": "student"})
    for step in (0, 1):
        metrics = node.continued_metrics(0)
        metrics.write("train", step, "", {"loss": 0.5})
        metrics.close()
    node.checkpoints.save(FINAL, {"a": np.arange(3.0)})
    node.finish({"retain": 0.25}, {"flops": {"student": 3.0}})
    return node


def read(node: Node, name: str) -> Any:
    """Read a file of a node as the program does."""
    match name:
        case "result.json":
            return node.result()
        case "ledger.json":
            return node.ledger()
        case "metrics.jsonl":
            return node.rows()
        case "checkpoints/final.json":
            return node.checkpoints.restore(FINAL, {"a": np.arange(3.0)})
    return node.sealed(name).read_text()


SEALED = (
    "config.json",
    "metrics.jsonl",
    "ledger.json",
    "result.json",
    "checkpoints/final.json",
    "tokenizer/tokenizer.json",
)


@pytest.mark.unit
@pytest.mark.parametrize("harm", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", SEALED)
def test_a_file_of_a_finished_node_is_what_it_was_or_refused(node, name, harm):
    assert read(node, name)
    harm(node.directory / name)
    with pytest.raises(ConfigError) as caught:
        read(node, name)
    assert Path(name).stem in str(caught.value) and f"remove {node.directory} and run again" in str(caught.value)


@pytest.mark.unit
def test_a_plausible_number_is_refused_too(node):
    """Valid JSON of the right shape, and even a checkpoint whose own proof is right."""
    write_json(node.directory / "result.json", {"retain": 0.97})
    with pytest.raises(ConfigError, match=r"result\.json"):
        node.result()
    Checkpoints(node.directory / "checkpoints").save(FINAL, {"a": np.arange(3.0) + 1})
    with pytest.raises(Damaged, match=r"final\.json"):
        node.checkpoints.restore(FINAL, {"a": np.arange(3.0)})
    with pytest.raises(Damaged, match=r"final\.json"):
        node.checkpoints.shapes(FINAL)


def as_before(done: dict[str, Any]) -> str:
    return json.dumps({"identity": done["identity"], "sha256": {"metrics.jsonl": "0" * 64}})


def resealed(**change: Any):
    def text(done: dict[str, Any]) -> dict[str, Any]:
        return {**done, **change}

    return text


@pytest.mark.unit
@pytest.mark.parametrize(
    "changed",
    [
        lambda done: "",
        lambda done: "{}",
        lambda done: "[]",
        as_before,
        lambda done: json.dumps({**done, "sha256": "0" * 64}),
        resealed(identity="ba9876543210"),
        resealed(format=1),
        resealed(files={}),
        resealed(files={"ledger.json": "0" * 64}),
    ],
)
def test_a_done_that_is_not_this_nodes_is_refused(node, changed):
    done = read_sealed(node.directory / "DONE")
    new = changed(done)
    path = node.directory / "DONE"
    path.write_text(new) if isinstance(new, str) else write_sealed(path, new)
    for ask in (lambda: node.done, node.result, node.rows, lambda: finished(node.directory).result()):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert f"remove {node.directory}" in str(caught.value) or "result.json" in str(caught.value)
    path.unlink()
    assert not node.done


@pytest.mark.unit
def test_the_part_of_a_finished_node_goes_with_it(node):
    """A part is made only with its node, so removing the part alone would mend nothing."""
    (node.directory / "DONE").unlink()
    part = node.subnode("round-0")
    part.finish({"x": 1}, {})
    flip(part.directory / "result.json")
    with pytest.raises(ConfigError, match=f"remove {part.directory} and run again"):
        part.result()
    node.finish({}, {})
    with pytest.raises(ConfigError, match=f"remove {node.directory} and run again"):
        part.result()


@pytest.mark.kill
def test_what_a_kill_after_done_left_goes_with_the_next_run(node):
    """Training states, a save that was under way, and half a file."""
    Checkpoints(node.directory / "checkpoints").save(7, {"a": np.arange(3.0)})
    shutil.copytree(node.directory / "checkpoints/7", node.directory / "checkpoints/8.orbax-checkpoint-tmp")
    (node.directory / ".DONE.77.tmp").write_text("{")
    node.tidy()
    assert {path.name for path in (node.directory / "checkpoints").iterdir()} == {"final", "final.json"}
    assert not list(node.directory.glob(".*")) and node.result() == {"retain": 0.25}


# Saves that the disk refuses


@contextlib.contextmanager
def too_large(checkpoints: Path) -> Iterator[None]:
    """Let no file be larger than 50 kB, as `ulimit -f` does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def removed(checkpoints: Path) -> Iterator[None]:
    """Remove the directory when Orbax has written everything, and nothing of it counts yet."""
    real = ocp.StandardCheckpointer.wait_until_finished

    def wait(checkpointer: Any) -> None:
        real(checkpointer)
        if checkpoints.exists():
            shutil.move(checkpoints, checkpoints.with_name("away"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointer, "wait_until_finished", wait)
        yield
    shutil.move(checkpoints.with_name("away"), checkpoints)


@contextlib.contextmanager
def replaced(checkpoints: Path) -> Iterator[None]:
    """Put a file where the directory is expected."""
    shutil.move(checkpoints, checkpoints.with_name("away"))
    checkpoints.write_text("")
    yield
    checkpoints.unlink()
    shutil.move(checkpoints.with_name("away"), checkpoints)


@contextlib.contextmanager
def forbidden(checkpoints: Path) -> Iterator[None]:
    """Refuse every new file of the directory as one without permission, root or not."""

    def denied(path: Any, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "mkdir", denied)
        yield


@contextlib.contextmanager
def full(checkpoints: Path) -> Iterator[None]:
    """Fill the disk but for a part of what is needed, and let nobody look before."""
    fill(checkpoints.parent, 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: dataclasses.make_dataclass("U", ["free"])(10**12))
        yield
    (checkpoints.parent / "filler").unlink()


REFUSALS = {
    too_large: errno.EFBIG,
    removed: errno.ENOENT,
    replaced: errno.ENOTDIR,
    forbidden: errno.EACCES,
    full: errno.ENOSPC,
}


@pytest.mark.kill
@pytest.mark.parametrize("tag", [2, FINAL])
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.__name__)
def test_a_save_that_the_disk_refuses_is_one_error_and_loses_nothing(tmp_path, refusal, tag, capfd):
    with small_disk(tmp_path / "disk", "4m") if refusal is full else contextlib.nullcontext(tmp_path) as place:
        kept = Checkpoints(place / "checkpoints")
        kept.save(1, TREE)
        with refusal(kept.directory):
            with pytest.raises(OSError) as caught:
                kept.save(tag, TREE, background=tag != FINAL)
                kept.wait()
            assert caught.value.errno == REFUSALS[refusal]
            assert str(kept.directory) in str(caught.value.filename)
        assert kept.steps() == [1] and not (kept.directory / f"{FINAL}.json").exists()
        np.testing.assert_array_equal(kept.restore(1, TREE)["a"], TREE["a"])
        kept.save(tag, TREE)
        np.testing.assert_array_equal(kept.restore(tag, TREE)["a"], TREE["a"])
    assert "Traceback" not in capfd.readouterr().err
