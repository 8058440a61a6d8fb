"""What a pod refuses or gives up: meshes and storage that cannot be, a start that is stopped, a save that fails."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
import types

import jax
import pytest
from test_cli import SMOKE, assert_refused, call
from test_joining import closed_port

from distill_jax import console
from distill_jax.config import ConfigError
from distill_jax.experiment import graph
from distill_jax.io import leases
from distill_jax.sharding import distributed
from distill_jax.stages.context import RunSettings
from distill_jax.train import saved_states
from distill_jax.train.saved_states import SavedStates

pytestmark = pytest.mark.unit


def nodes(directory, done: bool) -> dict:
    return {graph.DATA: types.SimpleNamespace(done=done, directory=directory / "nodes" / "data-1")}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"slices": 3}, "2 devices do not divide into slices = 3"),
        ({"fsdp": 4}, "2 devices do not divide into fsdp = 4 × tensor = 1"),
        ({"slices": 2, "tensor": 2}, "1 devices do not divide into fsdp = 1 × tensor = 2|slices of 1 devices"),
    ],
)
def test_devices_that_do_not_divide_are_refused_unless_all_is_done(settings, words, tmp_path):
    assert len(jax.devices()) == 2
    with pytest.raises(ConfigError, match=rf"{words}.*; change config\.run\.fsdp, config\.run\.tensor or config\.run"):
        graph.check_mesh(nodes(tmp_path, done=False), None, RunSettings(**settings))
    graph.check_mesh(nodes(tmp_path, done=True), None, RunSettings(**settings))
    graph.check_mesh(nodes(tmp_path, done=False), None, RunSettings())


def test_a_run_with_such_a_mesh_ends_before_its_data(tmp_path, capsys):
    code = call("run", SMOKE, f"--workdir={tmp_path}/run", "--config.run.slices=3")
    assert_refused(code, *capsys.readouterr(), "slices = 3", "config.run.slices")
    assert not (tmp_path / "run").exists()


def test_several_processes_on_s3_are_refused_with_the_mesh(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    place = types.SimpleNamespace(parent=types.SimpleNamespace(parent="s3://bucket/run"))
    node = types.SimpleNamespace(done=False, directory=place)
    with pytest.raises(ConfigError, match=r"--workdir=s3://bucket/run: 2 processes cannot write training states"):
        graph.check_mesh({graph.DATA: node}, None, RunSettings())


@pytest.mark.parametrize("process", [0, 1])
def test_sigterm_while_the_others_are_awaited_ends_with_a_line_and_42(process, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "_stop", False)
    monkeypatch.setattr(distributed, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(console, "raise_at_interrupts", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    waiting = threading.Event()
    original = distributed._leave_if_stopped
    monkeypatch.setattr(distributed, "_leave_if_stopped", lambda process: (original(process), waiting.set()))
    timer = threading.Thread(target=lambda: waiting.wait(60) and os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    flags = [f"--coordinator=127.0.0.1:{closed_port()}", "--processes=2", f"--process={process}", "--patience=60"]
    try:
        assert call("run", SMOKE, f"--workdir={tmp_path}/run", *flags) == 42
    finally:
        timer.join()
        signal.signal(signal.SIGTERM, before)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"process {process} was stopped while it waited for the others" in line
    assert not (tmp_path / "run").exists()


class Store:
    """Checkpoints on a storage that all processes share, whose saves one process's disk refuses at some steps."""

    def __init__(self, shared: list[int], refused: set[int]) -> None:
        self.shared, self.refused = shared, refused

    def save(self, step, piece, journal, *, background):
        if step in self.refused:
            raise OSError(28, "No space left on device", f"/x/{step}")
        if step not in self.shared:
            self.shared.append(step)

    def wait(self) -> None:
        """Nothing is under way."""

    def steps(self) -> list[int]:
        return list(self.shared)

    def remove(self, step) -> None:
        if step in self.shared:
            self.shared.remove(step)


def test_a_save_that_fails_on_one_of_several_processes_is_given_up_by_all(monkeypatch):
    """Two processes, as threads: they ask each other equally often, or the barrier breaks."""
    meeting, answers, own = threading.Barrier(2, timeout=20), {}, threading.local()

    def on_any(value: bool) -> bool:
        answers[own.process] = value
        meeting.wait()
        result = any(answers.values())
        meeting.wait()
        return result

    monkeypatch.setattr(saved_states, "on_any", on_any)
    monkeypatch.setattr(saved_states, "is_primary", lambda: own.process == 0)
    shared: list[int] = []
    layout = types.SimpleNamespace(take=lambda state, index: state, saves_in_background=True)

    def run(process: int) -> list[str]:
        own.process, lines = process, []
        store = Store(shared, {6} if process == 1 else set())
        saved = SavedStates(layout, [types.SimpleNamespace(name="a", checkpoints=store)], lines.append)
        for step in (3, 6, 9):
            saved.save(step, None, {})
            meeting.wait()
            lines.append(f"{step}: {shared}")
            meeting.wait()
        saved.wait()
        return lines

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, (0, 1))
    said = "warning: step 6 of a could not be saved ({}); step 3 stays, and the next save tries again"
    assert second == ["3: [3]", said.format("No space left on device: /x/6"), "6: [3]", "9: [3, 9]"]
    assert first == ["3: [3]", said.format("another process could not write its part"), "6: [3]", "9: [3, 9]"]


def test_the_record_of_a_holder_goes_although_its_lease_cannot_be_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(leases.storage, "is_local", lambda path: False)
    monkeypatch.setattr(leases.Leases, "close", lambda self: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    removed = []
    monkeypatch.setattr(leases.storage, "remove_tree", removed.append)
    monkeypatch.setattr(leases, "_register", lambda *_, **__: None)
    with leases.held(tmp_path, {"experiment": "e"}):
        assert removed == []
    assert [path.parent for path in removed] == [tmp_path / leases.HOLDERS]
