"""Whatever the dead write, and whenever: a node has the records of one worker and the numbers of one that was alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.config import ConfigError
from distill_jax.experiment import sweep_graph
from distill_jax.io import attempts, checkpoint
from distill_jax.io.checkpoint import FINAL
from distill_jax.io.files import read_json, write_json
from distill_jax.io.leases import Leases
from distill_jax.io.node import Node
from distill_jax.stages import Stage
from distill_jax.stages.context import Context

pytestmark = pytest.mark.unit

STEPS, EVERY = 6, 2
CALLS = ("replace", "rename", "link", "unlink", "rmdir", "mkdir")


@dataclasses.dataclass(frozen=True)
class Toy(Stage):
    """A stage that needs nothing but itself; the tests compute its node."""

    kind: ClassVar[str] = "toy"

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Do nothing."""


def node_in(workdir: Path) -> Node:
    """Return a node that needs nothing but itself."""
    return Node("data", "toy", Toy(), {}, "0123456789ab", workdir / "nodes/data-0123456789ab")


def computing(node: Node, worker: str) -> Iterator[int]:
    """Do what stages do: continue from a checkpoint, write rows and checkpoints, leave weights and a result.

    Yields at each step, and before each of the last things written.
    """
    node.directory.mkdir(parents=True, exist_ok=True)
    write_json(node.directory / "config.json", {"worker": worker})
    state, start = {"x": jnp.zeros(3)}, 0
    for step in node.checkpoints.steps():
        with contextlib.suppress(checkpoint.Damaged):  # its worker removed it while it was copied
            state, start = node.checkpoints.restore(step, state), step
    metrics, checkpoints = node.continued_metrics(start), node.checkpoints
    for step in range(start, STEPS):
        yield step
        if step > start and step % EVERY == 0:
            checkpoints.save(step, state, metrics.sync())
            yield step
        state = {"x": state["x"] * 1.5 + step}
        metrics.write("train", step, "", {"loss": float(state["x"][0])})
    metrics.close()
    yield STEPS
    node.checkpoints.save(FINAL, state)
    yield STEPS
    node.finish({"loss": float(state["x"][0])}, {"worker": worker, "seconds": time.monotonic()})


def compute(node: Node, worker: str, at_step: Callable[[int], None] = lambda step: None) -> None:
    """Do all of it."""
    for step in computing(node, worker):
        at_step(step)


def work(node: Node, leases: Leases, at_step: Callable[[int], None] = lambda step: None) -> None:
    """Be a worker of a sweep of one node."""
    for (attempt,) in sweep_graph.leased({node.name: node}, leases, len, lambda text: None):
        compute(attempt, leases.worker, at_step)


def numbers(node: Node) -> dict[str, Any]:
    """Return what a finished node says, and fail unless all of it is one worker's."""
    assert read_json(node.directory / "config.json")["worker"] == node.ledger()["worker"]
    weights = node.checkpoints.restore(FINAL, {"x": jnp.zeros(3)})
    assert node.checkpoints.steps() == []
    return {"rows": node.rows(), "result": node.result(), "weights": np.asarray(weights["x"]).tolist()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, impatient) -> dict[str, Any]:
    """What the node comes to undisturbed."""
    node = node_in(tmp_path_factory.mktemp("alone"))
    compute(node, "alone")
    assert len(node.rows()) == STEPS
    return numbers(node)


class Writer:
    """Writes checkpoints as Orbax does: below another name, then renamed. Two Orbax in one process share barriers."""

    def __init__(self, **_: Any):
        pass

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def save(self, target: Path, tree: Any, **_: Any) -> None:
        work = target.with_name(f"{target.name}.orbax-checkpoint-tmp")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        np.save(work / "x.npy", tree["x"])
        shutil.rmtree(target, ignore_errors=True)
        os.rename(work, target)

    def restore(self, target: Path, _: Any) -> Any:
        return {"x": jnp.asarray(np.load(target / "x.npy"))}

    def wait_until_finished(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def impatient():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_graph, "POLL_SECONDS", 0.01)
        patch.setattr(checkpoint.ocp, "StandardCheckpointer", Writer)
        yield


def as_of_another_machine(directory: Path) -> None:
    """Rewrite the newest lease as one whose worker's process cannot be looked for, and that beats no more."""
    newest = max(directory.glob("lease-*.json"), key=lambda path: int(path.stem.split("-")[1]))
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"machine": "elsewhere", "heartbeat": 0.0}))


class Stalled:
    """A worker that stops inside its n-th change of the file system and does not know how long.

    Args:
      call: the number of the change, from 0 on; with a larger one than there are it never stops.
    """

    def __init__(self, node: Node, call: int, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[str] = []
        self.stopped, self.go_on = threading.Event(), threading.Event()
        self.lost: list[str] = []
        self.failed: list[Exception] = []
        self.leases = Leases(heartbeat=1000, lost=self.lost.append)
        self._node, self._call, self._guard = node, call, threading.Lock()
        for name in CALLS:
            monkeypatch.setattr(os, name, self._slow(name, getattr(os, name)))
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            work(self._node, self.leases)
        except Exception as error:  # as the program does
            self.failed.append(error)
        self.leases.close()
        self.stopped.set()

    def _slow(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        home = str(attempts.home(self._node))

        def slow(*paths: Any, **how: Any) -> Any:
            own = [str(path) for path in paths if str(path).startswith((f"{home}/0", f"{home}/.0"))]
            if own and not self.go_on.is_set():  # afterwards it runs freely
                with self._guard:
                    self.calls.append(f"{name} {own[0].removeprefix(home)}")
                    stop = len(self.calls) == self._call + 1
                if stop:
                    as_of_another_machine(Path(home))
                    self.stopped.set()
                    self.go_on.wait(60)
            return call(*paths, **how)

        return slow


def changes(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how often an undisturbed worker changes the file system below its attempt."""
    with monkeypatch.context() as patch:
        worker = Stalled(node_in(workdir), 10**9, patch)
        worker.thread.join(60)
    assert not worker.failed, worker.failed
    assert node_in(workdir).done
    return len(worker.calls)


def race(workdir: Path, call: int, overtaken: bool, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what a node comes to if a worker stalls in a change, another takes over, and the first wakes.

    Args:
      overtaken: whether it wakes when its successor has finished; else when that is at its second checkpoint.
    """
    node = node_in(workdir)
    with monkeypatch.context() as patch:
        dead = Stalled(node, call, patch)
        assert dead.stopped.wait(60)
        successor = Leases(dead_after=0.02)

        def wake(step: int) -> None:
            if step >= STEPS - EVERY and not overtaken:
                dead.go_on.set()

        try:
            work(node, successor, wake)
            dead.go_on.set()
            dead.thread.join(60)
            assert not dead.thread.is_alive()
            assert dead.lost or not dead.failed, dead.failed  # it fails only for having been taken over
        finally:
            dead.go_on.set()
            successor.close()
    last = Leases(dead_after=0.02)
    work(node, last)  # what another run finds
    last.close()
    left = [path.name for path in attempts.home(node).iterdir() if not path.name.startswith("lease")]
    assert left == [], (call, left)
    return numbers(node)


@pytest.mark.kill
@pytest.mark.parametrize("overtaken", [False, True])
def test_who_wakes_beside_a_successor_changes_nothing(tmp_path, monkeypatch, alone, request, overtaken):
    """A stall in every change of the file system that a worker makes; a few of them in the ordinary suite."""
    total = changes(tmp_path / "count", monkeypatch)
    assert total > 30
    few = range(int(overtaken), total, 4)
    for call in range(total) if request.config.getoption("--thorough") else few:
        assert race(tmp_path / str(call), call, overtaken, monkeypatch) == alone, call


@pytest.mark.kill
@pytest.mark.parametrize("ahead", range(STEPS + 4))
def test_what_is_adopted_from_a_worker_that_goes_on_is_of_one_moment(tmp_path, monkeypatch, alone, ahead):
    """The predecessor takes one more step whenever a file of its has been copied."""
    node = node_in(tmp_path)
    attempts.home(node).mkdir(parents=True)
    before = computing(attempts.begin(node, 0), "before")
    for _ in range(ahead + 1):
        next(before, None)
    for module, name in ((os, "link"), (shutil, "copy2")):
        call = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *paths, call=call: (call(*paths), next(before, None)))
    attempt = attempts.begin(node, 1)
    monkeypatch.undo()
    if not attempt.done:
        compute(attempt, "after")
    for _ in before:  # and it comes to its end, in its own directory
        pass
    attempts.publish(attempt, node)
    assert numbers(node) == alone
    assert attempts.leftovers(node) == []


def test_a_file_that_its_worker_may_still_write_to_is_not_adopted(tmp_path):
    node = node_in(tmp_path)
    attempts.home(node).mkdir(parents=True)
    before = attempts.begin(node, 0).directory
    kept = ["states/0.npy", "checkpoints/2/d/part", "rows/set", "metrics.jsonl"]
    left = ["states/9.tmp", "checkpoints/4.orbax-checkpoint-tmp/d/part", "rows/.lock", ".result.json.0.tmp"]
    for name in (*kept, *left):
        (before / name).parent.mkdir(parents=True, exist_ok=True)
        (before / name).write_text("old")
    after = attempts.begin(node, 1).directory
    assert sorted(str(path.relative_to(after)) for path in after.rglob("*") if path.is_file()) == sorted(kept)
    for name in ("rows/set", "metrics.jsonl"):  # appended to, or begun anew, by a worker that wakes
        (before / name).write_text("late")
        assert (after / name).read_text() == "old"


def test_what_a_run_left_in_place_is_gone_on_with(tmp_path, alone):
    node = node_in(tmp_path)
    for step in computing(node, "run"):
        if step == STEPS:
            break
    assert node.checkpoints.steps() == [2, 4]
    attempts.home(node).mkdir(parents=True)
    attempt = attempts.begin(node, 0)
    assert attempt.checkpoints.steps() == [2, 4] and not node.directory.exists()
    compute(attempt, "sweep")
    attempts.publish(attempt, node)
    assert numbers(node) == alone
    (node.directory / "DONE").unlink()  # it was damaged, and nobody knows how much else
    with pytest.raises(ConfigError, match="has no DONE; remove it"):
        attempts.begin(node, 1)


def test_a_stalled_worker_does_not_move_aside_what_its_successor_published(tmp_path, monkeypatch, alone):
    """It stalls between finding the files of an unfinished run and moving them out of the way."""
    node = node_in(tmp_path)
    next(computing(node, "run"))
    attempts.home(node).mkdir(parents=True)
    rename = os.rename

    def stall(source: Any, to: Any) -> None:
        monkeypatch.setattr(os, "rename", rename)
        attempt = attempts.begin(node, 1)
        compute(attempt, "successor")
        attempts.publish(attempt, node)
        rename(source, to)

    monkeypatch.setattr(os, "rename", stall)
    attempts.begin(node, 0)
    assert numbers(node) == alone


def test_the_next_worker_removes_what_one_left_that_was_killed_as_it_cleaned_up(tmp_path, monkeypatch, alone):
    node, workers = node_in(tmp_path), [Leases(), Leases()]
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "clear", lambda *_: None)
        work(node, workers[0])
    attempts.home(node).joinpath("0/checkpoints").mkdir(parents=True)
    work(node, workers[1])
    assert attempts.leftovers(node) == [] and numbers(node) == alone
    for worker in workers:
        worker.close()


class Disk:
    """A disk whose power may fail at any change: names are where they were, contents as far as they were synced."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch, at_change: Callable[[], None]):
        self._directory = directory
        self._synced: dict[int, bytes] = {}  # inode -> contents
        for name in ("fsync", *CALLS):
            patch.setattr(os, name, self._watched(getattr(os, name), at_change, name == "fsync"))

    def _watched(self, call: Callable[..., Any], at_change: Callable[[], None], syncs: bool) -> Callable[..., Any]:
        def watched(*what: Any, **how: Any) -> Any:
            done = call(*what, **how)
            if syncs and stat.S_ISREG(os.fstat(what[0]).st_mode):
                self._synced[os.fstat(what[0]).st_ino] = Path(f"/proc/self/fd/{what[0]}").read_bytes()
            at_change()
            return done

        return watched

    def image(self, to: Path, chance: random.Random) -> None:
        """Copy what would be there if the power failed now."""
        for path in self._directory.rglob("*"):
            copy = to / path.relative_to(self._directory)
            if path.is_dir():
                copy.mkdir(parents=True, exist_ok=True)
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            contents, safe = path.read_bytes(), self._synced.get(path.stat().st_ino, b"")
            safe = safe if contents.startswith(safe) else b""  # of another file that had its place
            copy.write_bytes(contents[: chance.choice([len(safe), chance.randint(len(safe), len(contents))])])


@pytest.mark.kill
def test_a_power_cut_at_any_change_loses_time_and_no_numbers(tmp_path, alone, request):
    """One worker is stopped by hand on its way, a second one ends; the power fails at every change that they make."""
    node, chance, images = node_in(tmp_path / "disk"), random.Random(7), tmp_path / "images"
    taken: list[Path] = []
    busy = threading.Lock()

    def cut() -> None:
        if busy.acquire(blocking=False):  # an image changes files itself
            taken.append(images / str(len(taken)))
            disk.image(taken[-1], chance)
            busy.release()

    def stop(step: int) -> None:
        if step == STEPS - 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(tmp_path / "disk", patch, cut)
        for at_step in (stop, lambda step: None):
            leases = Leases(heartbeat=1000)
            with contextlib.suppress(KeyboardInterrupt):
                work(node, leases, at_step)
            leases.close()
    assert numbers(node) == alone and len(taken) > 80
    some = taken if request.config.getoption("--thorough") else chance.sample(taken, 20)
    assert [image for image in some if continued(image) != alone] == []


def continued(workdir: Path) -> dict[str, Any]:
    """Return what a node comes to in an image of a disk, its leases being those of a machine that went down."""
    node = node_in(workdir)
    for lease in workdir.glob("attempts/*/lease-*.json"):
        with contextlib.suppress(ValueError):
            lease.write_text(json.dumps(json.loads(lease.read_text()) | {"machine": "elsewhere", "heartbeat": 0.0}))
    while True:
        leases = Leases(dead_after=0.02)
        try:
            work(node, leases)
            return numbers(node)
        except ConfigError as error:  # which names what to remove
            path = Path(str(error).split("remove ")[1].split(" and run again")[0])
            assert path.is_relative_to(workdir)
            shutil.rmtree(path)
        finally:
            leases.close()
