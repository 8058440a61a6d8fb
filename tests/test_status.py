"""`distill-jax status`: of directories that are computed, were killed, failed, are old, empty, or none."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time

import pytest

from distill_jax.config import ConfigError, Interrupted
from distill_jax.experiment.workdir_status import lines, read_status
from distill_jax.io import leases, presence, storage
from distill_jax.io.files import write_json, write_sealed
from distill_jax.io.presence import Presence, read_workers
from distill_jax.io.work_plan import PlannedNode
from distill_jax.main import main
from distill_jax.perf.clock import Clock
from distill_jax.perf.timings_file import write_timings
from tests import bucket_server
from tests.test_goodput import finished

pytestmark = pytest.mark.unit

PLAN = [
    PlannedNode("data", "data-0", "prepare", (), 0.0),
    PlannedNode("reference", "reference-1", "pretrain", ("data-0",), 4e9),
    PlannedNode("student", "student-2", "distill", ("data-0", "reference-1"), 6e9),
    PlannedNode("other", "other-3", "pretrain", ("data-0",), 2e9),
]


@pytest.fixture
def workdir(tmp_path):
    """A run's directory: data are made, the reference took 2 s."""
    write_sealed(tmp_path / "experiment.json", {"experiment": "smoke"})
    finished(tmp_path, "data-0", {"step": 1.0})
    return tmp_path


def state_of_files(directory):
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*") if path.is_file()
    }


def states(workdir):
    return {node.name: node.state for node in read_status(workdir).nodes}


def test_what_is_computed_right_now(workdir):
    """At step 30 of 100, after 20 steps in 2 s."""
    node, now = workdir / "nodes/reference-1", [0.0]
    node.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill_jax.perf.clock.time", type("", (), {"monotonic": staticmethod(lambda: now[0])}))
        clock = Clock()
        clock.step_to("", 9, 100)
        clock.step_to("", 10, 100)  # the first step compiles, and is no measure
        with clock.spent_on("step"):
            now[0] += 2.0
        clock.step_to("", 30, 100)
        write = lambda: write_timings([node], clock)  # noqa: E731
        with Presence(workdir, PLAN) as worker, worker.computing([node], write):
            write()
            before = state_of_files(workdir)
            found = read_status(workdir)
            said = "\n".join(lines(found, time.time()))
            worker._closed.set()  # no heartbeat between the two looks
            assert state_of_files(workdir).keys() == before.keys()
    assert states_of(found) == {"data": "done", "reference": "running", "student": "waiting", "other": "ready"}
    running, waiting = found.nodes[1], found.nodes[2]
    assert (running.step, running.steps, running.rate, running.left) == (30, 100, 10, 7)
    assert running.goodput == 1 and running.by in said and "step 30/100  10 steps/s  0:07 left" in said
    assert waiting.note == "reference" and "waiting   student    for reference" in said
    assert "smoke in" in said and "1 done" in said and "working: reference" in said


def states_of(found):
    return {node.name: node.state for node in found.nodes}


def test_time_left_is_planned_flops_at_the_speed_of_what_is_done(workdir):
    finished(workdir, "reference-1", {"step": 1.5, "idle": 0.5})
    with Presence(workdir, PLAN), Presence(workdir, PLAN):
        found = read_status(workdir)
    assert states_of(found) == {"data": "done", "reference": "done", "student": "ready", "other": "ready"}
    assert found.left == pytest.approx((6e9 + 2e9) / (4e9 / 2.0) / 2)  # two workers


def test_a_failure_has_its_line_and_a_stop_is_none(workdir):
    node = workdir / "nodes/reference-1"
    with pytest.raises(ConfigError), Presence(workdir, PLAN) as worker, worker.computing([node], lambda: None):
        raise ConfigError("stages.reference: diverged;\n lower learning_rate")
    found = read_status(workdir)
    assert found.nodes[1].state == "failed" and found.nodes[1].note == "stages.reference: diverged; lower learning_rate"
    assert "diverged; lower" in "\n".join(lines(found, time.time()))
    with pytest.raises(Interrupted), Presence(workdir, PLAN) as worker, worker.computing([node], lambda: None):
        raise Interrupted("stopped at step 3")
    assert states(workdir)["reference"] == "stopped"
    finished(workdir, "reference-1", {"step": 1.0})
    with Presence(workdir, PLAN):
        pass
    assert states(workdir) == {"data": "done", "reference": "done", "student": "ready", "other": "ready"}


def test_a_killed_worker_is_said_to_be_gone(workdir, monkeypatch):
    """Of this machine at once, of another one when it has been silent for a minute."""
    with Presence(workdir, PLAN) as worker, worker.computing([workdir / "attempts/reference-1/3"], lambda: None):
        worker._closed.set()
        (record,) = read_workers(workdir)
    record = dataclasses.asdict(record)
    (path,) = [path for path in (workdir / "workers").iterdir() if not path.name.startswith("plan")]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    write_json(path, {**record, "process": {**record["process"], "pid": dead.pid}})
    found = read_status(workdir)
    assert found.nodes[1].state == "stopped" and "its process is gone" in found.nodes[1].note
    assert [worker["state"] for worker in found.workers] == ["its process is gone"]
    there = {**record, "process": {**record["process"], "machine": "another"}}
    write_json(path, there)
    assert states(workdir)["reference"] == "running"
    write_json(path, {**there, "updated": time.time() - presence.SILENT - 5})
    assert read_status(workdir).nodes[1].note.startswith("silent for 65 s")


def test_a_directory_of_an_earlier_version(workdir):
    (workdir / "nodes/reference-1").mkdir()
    found = read_status(workdir)
    assert states_of(found) == {"data": "done", "reference": "ready"} and found.left is None
    assert "begun by an earlier version" in found.notes[0]


def test_directories_that_are_none(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["", "status", f"--workdir={tmp_path}/empty"]) == 0
    assert "nothing was run here yet" in capsys.readouterr().out and not list((tmp_path / "empty").iterdir())
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("")
    assert main(["", "status", f"--workdir={tmp_path}/other"]) == 2
    assert "is no work directory" in capsys.readouterr().err
    assert main(["", "status", f"--workdir={tmp_path}/other/thesis.tex"]) == 2
    assert "thesis.tex: is a file; name the directory" in capsys.readouterr().err
    assert main(["", "status", f"--workdir={tmp_path}/nowhere"]) == 2
    assert "there is no such directory" in capsys.readouterr().err
    assert main(["", "status"]) == 2 and "--workdir=DIR is missing" in capsys.readouterr().err


def test_json_and_a_watch_that_ends_with_the_work(workdir, capsys, monkeypatch):
    with Presence(workdir, PLAN[:1]):
        pass
    line = ["", "status", f"--workdir={workdir}", "--config=arithmetic:smoke"]
    assert main([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["experiment"] == "smoke" and found["nodes"][0]["state"] == "done" and found["left"] == 0
    assert main([*line, "--watch"]) == 0 and capsys.readouterr().out.count("1 done") == 1
    with Presence(workdir, PLAN[:2]):
        pass
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            finished(workdir, "reference-1", {"step": 1.0})

    monkeypatch.setattr("distill_jax.commands.status.time.sleep", sleep)
    assert main([*line, "--watch=0.5"]) == 0 and slept == [0.5, 0.5]


def test_it_brings_no_jax(workdir):
    """Nor what would make it wait."""
    program = (
        "import sys; from distill_jax.main import main; code = main(sys.argv);"
        "print([name for name in ('jax', 'numpy', 'orbax', 'tensorboardX') if name in sys.modules]); sys.exit(code)"
    )
    line = [sys.executable, "-c", program, "status", f"--workdir={workdir}"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and "1 done" in done.stdout


def test_a_directory_with_nothing_but_records_may_be_claimed(tmp_path):
    """As they do not say whose it is."""
    with Presence(tmp_path, PLAN):
        pass
    with leases.held(tmp_path, {"experiment": "smoke"}):
        pass


def test_a_bucket_says_the_same_as_a_directory(workdir):
    """Of one that is computed right now."""
    with bucket_server.serving():
        there = storage.location("gs://bucket/run")
        for path in storage.files(workdir):
            storage.copy(path, there / str(path.relative_to(workdir)))
        said = []
        for where in (workdir, there):
            node = where / "nodes/reference-1"
            storage.make_directory(node)
            with (
                Presence(where, PLAN) as worker,
                worker.computing([node], lambda node=node: write_timings([node], Clock())),
            ):
                found = dataclasses.asdict(read_status(where))
            assert found.pop("workdir") == str(where) and found["nodes"][1]["goodput"] == 0
            for one in [*found["nodes"], *found["workers"]]:
                one.pop("since", None), one.pop("began", None)
            said.append(found)
        assert said[0] == said[1]
        assert not (storage.location("gs://bucket/nothing").exists())
        assert read_status(storage.location("gs://bucket/nothing")).notes == ["nothing was run here yet"]
