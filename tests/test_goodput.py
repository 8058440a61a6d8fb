"""Where wall time went: every moment has one cause, killed processes are not forgotten, and the page shows it."""

from __future__ import annotations

import collections
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.config import Interrupted
from distill_jax.io import presence
from distill_jax.io.node import Node
from distill_jax.io.node_files import TIMINGS
from distill_jax.io.presence import Presence, read_workers
from distill_jax.perf import clock as clocks
from distill_jax.perf import ledger
from distill_jax.perf.clock import CAUSES, Clock, Lap, Spans, Timings
from distill_jax.perf.timings_file import read_timings, write_timings
from distill_jax.reports import goodput_summary
from distill_jax.train import loop
from tests.test_driver import nodes, stop_at, train


class Time:
    """A clock that only the test moves."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(clocks, "time", SimpleNamespace(monotonic=lambda: self.now))

    def passes(self, seconds):
        self.now += seconds


# One process


@pytest.mark.property
@pytest.mark.parametrize("seed", range(20))
def test_every_moment_has_one_cause(monkeypatch, seed):
    """Blocks within blocks, some charged anew: against a list of which block was the innermost when."""
    chance, at = random.Random(seed), Time(monkeypatch)
    clock, expected = Clock(), collections.Counter()

    def pass_time(cause):
        seconds = chance.randrange(1, 100)
        at.passes(seconds)
        expected[cause] += seconds

    def block(cause, depth):
        pass_time(cause)
        for _ in range(chance.randrange(4) if depth < 4 else 0):
            inner = chance.choice(CAUSES)
            with clock.spent_on(inner):
                block(inner, depth + 1)
            pass_time(cause)

    laps = []
    for _ in range(3):
        block("idle", 0)
        laps.append(clock.lap())
    assert clock.split() == {cause: expected[cause] for cause in CAUSES}
    assert sum(clock.split().values()) == at.now - 1000
    assert sum(sum(lap.seconds.values()) for lap in laps) == at.now - 1000


@pytest.mark.property
@pytest.mark.parametrize("seed", range(20))
def test_spans_within_spans_count_once(seed):
    """Against ticks that are covered, counted one by one."""
    chance, ticks, spans = random.Random(seed), 0, Spans()
    covered: set[int] = set()

    def run(depth):
        nonlocal ticks
        begin = ticks
        for _ in range(chance.randrange(4) if depth < 4 else 0):
            ticks += chance.randrange(3)
            run(depth + 1)
        ticks += chance.randrange(1, 4)
        spans.add(float(begin), float(ticks))
        covered.update(range(begin, ticks))

    for _ in range(4):
        ticks += chance.randrange(5)
        run(0)
    assert spans.total == len(covered)


@pytest.mark.unit
def test_what_jax_compiles_is_compiling_wherever_it_happens():
    before = time.monotonic()
    clock, began = Clock(), time.monotonic()

    def traced(x):
        time.sleep(0.3)
        return jnp.sin(x)

    with clock.spent_on("evaluate"):
        jax.jit(lambda x: jax.jit(traced)(x) + 1)(jnp.ones(3))
    least = time.monotonic() - began
    seconds, wall = clock.split(), time.monotonic() - before
    assert seconds["compile"] >= 0.3  # the inner trace is within the outer one, and counts once
    assert least <= sum(seconds.values()) <= wall and seconds["compile"] < wall


@pytest.mark.unit
@pytest.mark.parametrize("ready", [False, True])
def test_data_are_waited_for_only_if_the_devices_are(monkeypatch, ready):
    at = Time(monkeypatch)
    monkeypatch.setattr(loop, "_is_ready", lambda metrics: ready)
    clock = Clock()
    settings = SimpleNamespace(steps=3, checkpoint_every=100, log_every=100)
    state = SimpleNamespace(step=np.int32(0), status=np.zeros(1, int))

    def step(state, batch):
        at.passes(10)
        return state, {"loss": np.zeros(1), "active": np.ones(1, bool)}

    def feed(_):
        at.passes(100)

    hooks = loop.Hooks(step, feed, lambda *_: None, lambda *_: None, lambda *_: None)
    loop.loop(state, settings, hooks, clock)
    # The first batch is waited for anyhow: nothing runs yet.
    assert {k: v for k, v in clock.split().items() if v} == (
        {"data": 300, "step": 30} if ready else {"data": 100, "step": 230}
    )


# Several processes


@pytest.mark.property
@pytest.mark.parametrize("seed", range(30))
def test_time_lost_to_kills_is_what_was_done_twice(monkeypatch, seed):
    """A run that is killed at random moments, against a diary of what of it came to last."""
    chance, at = random.Random(seed), Time(monkeypatch)
    count = chance.randrange(1, 4)  # nodes of the population
    kept = [Timings(dict.fromkeys(CAUSES, 0.0))] * count
    saved, steps, diary = 0, 12, []  # of (step, cause, seconds) that still counts
    lost = 0
    while True:
        clock = Clock(earlier=kept)
        clock.continued_from("", saved)
        lost += sum(seconds for step, _, seconds in diary if step >= saved)
        diary = [entry for entry in diary if entry[0] < saved]
        killed_after = chance.randrange(1, 40)
        step, ended = saved, False
        for _ in range(killed_after):
            if step == steps:
                ended = True
                break
            for cause in ("data", "step"):
                seconds = chance.randrange(1, 9)
                with clock.spent_on(cause):
                    at.passes(seconds)
                diary.append((step, cause, seconds))
            step += 1
            if step % 3 == 0:
                with clock.spent_on("save"):
                    at.passes(2)
                    diary.append((step - 1, "save", 2))
                    clock.mark("", step)
                saved = step if chance.random() < 0.8 else saved  # not every save is whole
        kept = clock.timings()
        if ended:
            break
    expected = collections.Counter({"restart": lost})
    for _, cause, seconds in diary:
        expected[cause] += seconds
    found = clock.split()
    assert found == pytest.approx({cause: expected[cause] for cause in CAUSES})
    assert sum(found.values()) == pytest.approx(at.now - 1000)
    for cause in CAUSES:
        assert sum(one.seconds[cause] for one in kept) == pytest.approx(found[cause])
        assert sum(Timings.from_json(one.as_json()).kept()[cause] for one in kept) >= 0


@pytest.mark.unit
def test_a_training_within_a_node_that_is_done_is_not_lost(monkeypatch):
    """Of two trainings one after the other, the second one is killed before its first checkpoint."""
    at, first = Time(monkeypatch), Clock()
    first.continued_from("judges", 0)
    with first.spent_on("step"):
        at.passes(50)
    first.mark("judges", 5)
    first.continued_from("round-0", 0)
    with first.spent_on("step"):
        at.passes(7)
    second = Clock(earlier=first.timings())
    second.continued_from("round-0", 0)
    assert (second.split()["step"], second.split()["restart"]) == (50, 7)


@pytest.mark.unit
@pytest.mark.parametrize("found", [7, 6])
def test_the_driver_goes_on_on_the_clock_of_the_run_that_was_stopped(tmp_path, monkeypatch, found):
    """Stopped at step 7 where it saved; then it goes on from there, or from step 6 if that save is lost."""
    owners = nodes(tmp_path, ("a", "a", "a"))
    directory = owners[0].directory
    first = Clock(save=lambda clock: write_timings([directory], clock))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 7)
        train(owners, clock=first)
    if found == 6:
        owners[0].checkpoints.remove(7)
    left = read_timings(directory)
    assert [(mark.training, mark.step) for mark in left.marks] == [("", 3), ("", 6), ("", 7)]
    _, six, seven = left.marks
    with monkeypatch.context() as patch:  # so that what it takes itself is nothing
        Time(patch)
        second = Clock(earlier=[left])
        assert train(owners, clock=second).steps == [8] * 3
        total = second.split()
    kept = six if found == 6 else seven
    lost = sum(left.seconds.values()) - sum(kept.seconds.values())
    assert total == pytest.approx({**kept.seconds, "restart": lost})
    step_and_save = sum(seven.seconds.values()) - sum(six.seconds.values())
    assert (lost > step_and_save) == (found == 6)


KILLED = """
import sys, time
from pathlib import Path
from distill_jax.io.presence import Presence
from distill_jax.perf.clock import Clock
from distill_jax.perf.timings_file import write_timings
workdir = Path(sys.argv[1])
node = workdir / "nodes/x-0123456789ab"
node.mkdir(parents=True)
clock = Clock(save=lambda clock: write_timings([node], clock))
with Presence(workdir, heartbeat=0.05) as presence, presence.computing([node], lambda: write_timings([node], clock)):
    with clock.spent_on("step"):
        time.sleep(0.2)
    clock.mark("", 5)
    with clock.spent_on("step"):
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.kill
def test_a_killed_process_leaves_its_time_and_that_it_is_gone(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    (worker,) = read_workers(tmp_path)
    assert worker.nodes == ["nodes/x-0123456789ab"] and not worker.silence(time.time())
    while read_timings(tmp_path / "nodes/x-0123456789ab").kept()["restart"] < 0.3:
        time.sleep(0.05)  # it is written now and then
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (worker,) = read_workers(tmp_path)
    assert not worker.ended and worker.silence(time.time()) == "its process is gone"
    left = read_timings(tmp_path / "nodes/x-0123456789ab")
    assert left.processes == 1 and left.kept()["step"] >= 0.2 and left.kept()["restart"] >= 0.3
    assert sum(left.kept().values()) == pytest.approx(sum(left.seconds.values()))


# In ledgers, and together


def test_achieved_is_against_what_the_plan_says_of_the_steps():
    lap = Lap(dict.fromkeys(CAUSES, 1.0) | {"step": 4.0}, processes=2)
    spent = {"student": 6e12, "teacher": 2e12, "evaluation": 1e15}
    found = ledger.ledger(spent, {}, lap, devices=3)["goodput"]
    assert (found["achieved"], found["predicted"], found["processes"]) == (2e12, None, 2)
    assert ledger.ledger(spent, {}, lap._replace(predicted=3e12))["goodput"]["predicted"] == 3e12
    assert ledger.ledger({"evaluation": 1.0}, {}, lap)["goodput"]["achieved"] is None
    assert sum(found["seconds"].values()) == pytest.approx(sum(lap.seconds.values()))


def finished(directory, name, seconds, flops=0.0):
    """Finish a node that took so long; of an earlier version if seconds are None."""
    node = Node(name, "verb", None, {}, name, directory / "nodes" / name)
    node.directory.mkdir(parents=True)
    spent = ledger.ledger({"student": flops}, {}, Lap(dict.fromkeys(CAUSES, 0.0) | (seconds or {})))
    if seconds is None:
        del spent["goodput"]
    (node.directory / TIMINGS).write_text("{}")
    node.finish({}, spent)
    assert not (node.directory / TIMINGS).exists()
    return node


def test_two_workers_waiting_for_each_other_are_idle(tmp_path, monkeypatch):
    """One computes for 20 s while the other waits for its lease: all that both were there adds up."""
    now = [100.0]
    monkeypatch.setattr(presence, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0]))
    made = [finished(tmp_path, "a", {"step": 3.0, "compile": 1.0}, 6e9), finished(tmp_path, "b", {"step": 1.0}, 1e9)]
    with Presence(tmp_path) as one, Presence(tmp_path) as other:
        with one.computing([made[0].directory], lambda: None):
            now[0] += 20
        now[0] += 3
        assert not other._record.nodes
    workers = read_workers(tmp_path)
    assert [worker.ended for worker in workers] == ["done", "done"]
    outside = sum(worker.outside for worker in workers)
    assert outside == 3 + 23
    found = goodput_summary.summarise(made, tmp_path)
    assert found["workers"] == 2 and found["total"]["seconds"]["idle"] == pytest.approx(outside)
    assert sum(found["total"]["seconds"].values()) == pytest.approx(5.0 + outside)
    assert found["total"]["achieved"] == pytest.approx(7e9 / 4)


def test_the_page_draws_a_bar_a_node_and_says_what_was_not_recorded(tmp_path):
    made = [finished(tmp_path, "a", {"step": 3.0, "restart": 1.0}, 6e9), finished(tmp_path, "old", None)]
    view = goodput_summary.view(goodput_summary.summarise(made, tmp_path))
    assert view.answer == "75\u202f% of 4 s went into productive steps."
    assert [(bar.name, dict(bar.shares)) for bar in view.bars] == [
        (n, {"step": 75, "restart": 25}) for n in ("all", "a")
    ]
    assert all(len(row) == len(view.heads) for row in view.rows)
    assert view.rows[1][-3:] == ["2.00e+09", "unknown", "–"]
    assert [note.split(" ")[0] for note in view.notes] == ["Not", "Predicted"]
    only_old = goodput_summary.summarise(made[1:], tmp_path)
    assert only_old["total"] is None and goodput_summary.view(only_old) is None
