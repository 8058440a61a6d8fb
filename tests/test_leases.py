"""Leases: one holder at a time, whatever dies, sleeps, or has a wrong clock."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill_jax.config import ConfigError
from distill_jax.io import leases
from distill_jax.io.leases import Leases, held

pytestmark = pytest.mark.unit
HOURS = 3600 * 10**9


@pytest.fixture
def lease(tmp_path):
    """Make lease holders that are closed at the end."""
    made = []

    def make(**settings):
        made.append(Leases(**{"lost": lambda what: None} | settings))  # the process that tests should not leave
        return made[-1]

    yield make
    for holder in made:
        holder.close()


def as_of_another_machine(directory: Path, heartbeat: float = 0.0) -> Path:
    """Rewrite the newest lease of a directory as one that this machine cannot look behind."""
    newest = max(directory.glob("lease-*.json"), key=lambda p: int(p.stem.split("-")[1]))
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"machine": "elsewhere", "heartbeat": heartbeat}))
    return newest


def test_one_holds_it_until_it_is_given_back(lease, tmp_path):
    mine, other = lease(), lease()
    node = tmp_path / "node"
    assert other.holder(node) == ""  # of what does not exist
    assert mine.take(node) and not other.take(node) and not mine.take(node)
    assert other.holder(node) == mine.worker
    mine.release(node)
    assert other.holder(node) == "" and other.take(node) and other.holder(node) == other.worker
    mine.release(node)  # not its own any more
    assert not mine.take(node)


def _contend(folder: str, start, wins) -> None:
    mine = Leases()
    start.wait()
    for i in range(200):
        if mine.take(Path(folder) / str(i)):
            wins.put(i)
    wins.put(None)
    wins.close()
    wins.join_thread()
    start.wait()  # nobody leaves before all have tried, or its leases would count as a dead worker's


def test_of_many_processes_one_gets_each(tmp_path):
    fork = multiprocessing.get_context("spawn")
    start, wins = fork.Barrier(4), fork.Queue()
    crowd = [fork.Process(target=_contend, args=(str(tmp_path), start, wins)) for _ in range(4)]
    for process in crowd:
        process.start()
    found, ended = [], 0
    while ended < 4:
        won = wins.get(timeout=120)
        ended += won is None
        found += [] if won is None else [won]
    for process in crowd:
        process.join(timeout=60)
    assert sorted(found) == list(range(200))


HOLD = """
import sys, time
from pathlib import Path
from distill_jax.io.leases import Leases
mine = Leases()
print(mine.take(Path(sys.argv[1])), flush=True)
time.sleep(600)
"""


def test_a_killed_worker_of_this_machine_is_replaced_at_once(lease, tmp_path):
    node = tmp_path / "node"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(node)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "True\n"
    mine = lease()
    assert not mine.take(node)
    os.kill(process.pid, signal.SIGSTOP)  # slow is not dead
    assert not mine.take(node)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert mine.take(node)


def test_a_number_that_another_process_has_now_is_not_its_owner(lease, tmp_path):
    node, mine, other = tmp_path / "node", lease(), lease()
    assert mine.take(node)
    (path,) = node.glob("lease-*.json")
    owner = json.loads(path.read_text())
    path.write_text(json.dumps(owner | {"started": owner["started"] - 1}))  # the same pid, an earlier process
    assert other.take(node)


@pytest.mark.parametrize("skew", [-50 * HOURS, 0, 50 * HOURS])
def test_clocks_of_other_machines_do_not_matter(lease, tmp_path, skew):
    """A lease lives as long as its file changes, and dies when it stops, however wrong its times are."""
    node, onlooker = tmp_path / "node", lease(dead_after=0.6)
    assert lease(heartbeat=1000).take(node)
    path = as_of_another_machine(node)
    for beat in range(8):  # longer than it would need to die
        os.utime(path, ns=(0, time.time_ns() + skew + beat))
        assert not onlooker.take(node)
        time.sleep(0.15)
    time.sleep(0.7)
    assert onlooker.take(node)


def test_the_heartbeat_keeps_a_lease_alive_beyond_its_term(lease, tmp_path):
    node, onlooker = tmp_path / "node", lease(dead_after=0.5)
    assert lease(heartbeat=0.05).take(node)
    as_of_another_machine(node)
    for _ in range(10):
        assert not onlooker.take(node)
        time.sleep(0.1)


def test_who_beats_slowly_is_given_the_time_of_four_beats(lease, tmp_path):
    node, hasty = tmp_path / "node", lease(dead_after=0.05)
    assert lease(heartbeat=1000).take(node)
    as_of_another_machine(node, heartbeat=0.15)
    assert not hasty.take(node)
    time.sleep(0.3)
    assert not hasty.take(node)
    time.sleep(0.4)
    assert hasty.take(node)


def test_who_slept_too_long_is_told_that_it_lost(lease, tmp_path):
    told: list[str] = []
    node, onlooker = tmp_path / "node", lease(dead_after=0.1)
    sleeper = lease(heartbeat=0.4, lost=told.append)
    assert sleeper.take(node)
    as_of_another_machine(node)
    assert not onlooker.take(node)
    deadline = time.monotonic() + 0.35
    while not onlooker.take(node):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.6)
    assert len(told) == 1 and node.name in told[0] and onlooker.worker in told[0]
    sleeper.release(node)
    assert onlooker.holder(node) == onlooker.worker


def test_who_gives_back_what_another_has_is_told_so(lease, tmp_path):
    lost: list[str] = []
    node, sleeper, successor = tmp_path / "node", lease(heartbeat=1000, lost=lost.append), lease(dead_after=0.01)
    assert sleeper.take(node) and sleeper.token(node) == 0
    as_of_another_machine(node)
    assert not successor.take(node)
    time.sleep(0.05)
    assert successor.take(node) and successor.token(node) == 1
    sleeper.release(node)
    assert len(lost) == 1 and successor.worker in lost[0]
    assert successor.holder(node) == successor.worker and not json.loads((node / "lease-0.json").read_text()).get(
        "released"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"worker": "x"}'])
def test_a_damaged_lease_of_a_dead_worker_does_not_block_for_ever(lease, tmp_path, text):
    node, mine = tmp_path / "node", lease(dead_after=0.2)
    node.mkdir()
    (node / "lease-0.json").write_text(text)
    assert not mine.take(node)
    time.sleep(0.3)
    assert mine.take(node)


MARKER = {"experiment": "e", "sweep": "s", "points": "1", "code": "a"}


def holding(workdir: Path, marker: dict, *, shared: bool = True):
    """Hold a directory in another process until the process is closed; return it."""
    code = (
        "import sys, json, time\nfrom pathlib import Path\nfrom distill_jax.io.leases import held\n"
        "with held(Path(sys.argv[1]), json.loads(sys.argv[2]), shared=sys.argv[3] == 'True'):\n"
        "    print('here', flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(workdir), json.dumps(marker), str(shared)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "here\n"
    return process


@pytest.mark.parametrize("key", ["sweep", "points", "code"])
def test_workers_that_differ_are_refused_while_others_work_and_welcome_after(tmp_path, key):
    process = holding(tmp_path / "w", MARKER)
    try:
        with held(tmp_path / "w", MARKER, shared=True):
            pass
        with (
            pytest.raises(ConfigError, match=f"{key} '.', this one 'other'"),
            held(tmp_path / "w", MARKER | {key: "other"}, shared=True),
        ):
            pass
        with pytest.raises(ConfigError, match="in use"), held(tmp_path / "w", {"experiment": "e"}):
            pass
    finally:
        process.kill()
        process.wait()
    with held(tmp_path / "w", MARKER | {key: "other"}, shared=True):
        assert json.loads((tmp_path / "w/experiment.json").read_text())[key] == "other"
    with pytest.raises(ConfigError, match="belongs to experiment 'e'"), held(tmp_path / "w", {"experiment": "f"}):
        pass


def test_a_run_alone_keeps_workers_out(tmp_path):
    process = holding(tmp_path / "w", {"experiment": "e"}, shared=False)
    try:
        with pytest.raises(ConfigError, match="in use"), held(tmp_path / "w", MARKER, shared=True):
            pass
    finally:
        process.kill()
        process.wait()


def test_files_of_somebody_else_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="holds other files"), held(tmp_path, MARKER, shared=True):
        pass
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"), held(tmp_path, MARKER, shared=True):
        pass


def test_a_lease_tells_nothing_of_times(tmp_path, lease):
    """No field that a wrong clock could write, so that none can be compared."""
    assert lease().take(tmp_path / "node")
    (path,) = (tmp_path / "node").glob("lease-*.json")
    assert set(json.loads(path.read_text())) == {"worker", "heartbeat", "machine", "pid", "started"}
    assert leases._started(os.getpid()) is not None and leases._started(2**22 + 1) is None


def test_an_outage_in_which_nobody_could_renew_is_not_held_against_anyone(lease, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(leases.time, "monotonic", lambda: now[0])
    node, onlooker = tmp_path / "node", lease(dead_after=60)
    lease(heartbeat=1000).take(node)
    as_of_another_machine(node)
    assert onlooker.alive(node)

    def fails(path):
        raise OSError("an outage")

    with monkeypatch.context() as patch:
        patch.setattr(leases.storage, "version", fails)
        now[0] = 500.0
        assert onlooker.alive(node)
    now[0] = 550.0
    assert onlooker.alive(node)  # it has been readable for 50 s
    now[0] = 561.0
    assert not onlooker.alive(node)
