"""Two processes of one run: told to stop, killed, and started again, they end in one undisturbed process's numbers."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.programs import environment, with_data

pytestmark = pytest.mark.kill

ROOT = Path(__file__).parent.parent
CONFIG = """
from distill_jax.experiment.experiment import Experiment
from distill_jax.stages import Pretrain, Relearn
from configs import arithmetic

def get_config(arg=""):
    c = arithmetic.get_config("smoke")
    c.run.progress_seconds = 0.0
    c.data.multiplication_max = 3
    return c

def get_experiment(c):
    common = dict(batch=4, warmup=0, log_every=1)
    attack = dict(steps=60, seeds=1, learning_rates=(1e-2, 1e-3), evaluate_steps=(0, 60), checkpoint_every=20)
    return Experiment(stages={
        "reference": Pretrain(steps=200, checkpoint_every=50, **common),
        "attack": Relearn(start="reference", **attack, **common),
    })
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A config, and where its runs are."""
    home = tmp_path_factory.mktemp("hosts")
    (home / "config.py").write_text(CONFIG)
    return home


@pytest.fixture(scope="module")
def undisturbed(home, tmp_path_factory):
    """The work directory of a run that nobody disturbs."""
    workdir = with_data(tmp_path_factory, home / "alone")
    (process,) = start(workdir, 1)
    assert process.wait(timeout=600) == 0, log(workdir, 0)
    return workdir


def without(undisturbed: Path, to: Path, *stages: str) -> Path:
    """Return a copy of a finished run that has these stages to compute again."""
    gone = re.compile(rf"({'|'.join(stages)})-[0-9a-f]{{12}}|report")
    return shutil.copytree(undisturbed, to, ignore=lambda _, names: [name for name in names if gone.fullmatch(name)])


def start(workdir: Path, processes: int, *more: str, only: Sequence[int] | None = None) -> list[subprocess.Popen]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "distill_jax", "run", f"--config={workdir.parent}/config.py"]
    command += [f"--workdir={workdir}", "--heartbeat=10", *more]
    env = environment(workdir.parent / "compiled", devices=2 // processes) | {"PYTHONPATH": str(ROOT)}
    started = []
    for i in range(processes) if only is None else only:
        flags = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={i}"]
        with open(f"{workdir}.{i}.log", "w") as out:
            started.append(subprocess.Popen(command + flags, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT))
    return started


def log(workdir: Path, process: int) -> str:
    return Path(f"{workdir}.{process}.log").read_text()


def wait_for(workdir: Path, processes: list[subprocess.Popen], stage: str, step: int) -> None:
    until = time.monotonic() + 300
    while time.monotonic() < until:
        lines = [line for line in log(workdir, 0).splitlines() if f"] {stage}  step " in line]
        if lines and int(lines[-1].split("step ")[1].split("/")[0]) >= step:
            return
        assert all(p.poll() is None for p in processes), log(workdir, 0)[-2000:]
        time.sleep(0.02)
    raise AssertionError(f"{stage} never came to step {step}:\n{log(workdir, 0)[-2000:]}")


def rows(workdir: Path) -> dict[str, list[dict]]:
    found = {}
    for path in workdir.glob("nodes/*/metrics.jsonl"):
        assert (path.parent / "DONE").exists()
        found[path.parent.name] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


def assert_same_rows(ours, theirs):
    """Two hosts add in another order than one: the last digits of fp32."""
    assert ours.keys() == theirs.keys() and len(ours) == 2
    for name in ours:
        assert len(ours[name]) == len(theirs[name])
        for a, b in zip(ours[name], theirs[name], strict=True):
            assert [k for k in a if a[k] != b[k] and a[k] != pytest.approx(b[k], rel=1e-4, abs=1e-6)] == []


@pytest.mark.parametrize(("stage", "signalled"), [("attack", 1)])
def test_sigterm_to_one_process_saves_and_stops_all(home, undisturbed, stage, signalled):
    workdir = without(undisturbed, home / f"term-{stage}", stage)
    both = start(workdir, 2)
    wait_for(workdir, both, stage, 23)
    both[signalled].send_signal(signal.SIGTERM)
    assert [p.wait(timeout=120) for p in both] == [42, 42], log(workdir, 0)[-2000:] + log(workdir, 1)[-2000:]
    assert "the same command continues" in log(workdir, 0)
    assert [p.wait(timeout=600) for p in start(workdir, 2)] == [0, 0], log(workdir, 0)[-2000:]
    # Not from the last checkpoint before: from where it was stopped.
    (line,) = [line for line in log(workdir, 0).splitlines() if "continuing from step" in line]
    assert int(line.split("from step ")[1].split()[0]) >= 23
    assert_same_rows(rows(workdir), rows(undisturbed))


LOST = "another process of this run was lost; the same command continues from the last checkpoint"


def test_a_process_that_is_killed_ends_all_and_the_same_command_continues(home, undisturbed):
    workdir = without(undisturbed, home / "killed", "reference")
    both = start(workdir, 2)
    wait_for(workdir, both, "reference", 101)  # that of step 100 waits for the save of 50
    both[1].kill()
    assert both[0].wait(timeout=120) == 42 and log(workdir, 0).splitlines()[-1].endswith(LOST)
    assert [p.wait(timeout=600) for p in start(workdir, 1)] == [0], log(workdir, 0)[-2000:]  # and on fewer hosts
    assert re.search("continuing from step (50|100|150) ", log(workdir, 0))
    assert_same_rows(rows(workdir), rows(undisturbed))


def test_a_host_that_vanishes_ends_all_and_one_that_never_comes_back_is_not_waited_for(home, undisturbed):
    """The first process, which coordinates the others, is silent: no connection breaks, and nobody answers."""
    workdir = without(undisturbed, home / "vanished", "reference")
    both = start(workdir, 2)
    wait_for(workdir, both, "reference", 3)
    both[0].send_signal(signal.SIGSTOP)
    try:
        assert both[1].wait(timeout=120) == 42 and log(workdir, 1).splitlines()[-1].endswith(LOST)
    finally:
        both[0].kill()
    both = start(workdir, 2, "--patience=2", only=(0,)) + start(workdir, 2, "--patience=2", only=(1,))
    assert [p.wait(timeout=60) for p in both] == [42, 42]
    assert "of 2 processes these have not reported: 1; the same command continues" in log(workdir, 0)
    assert "waited 2 s for process 0 at 127.0.0.1:" in log(workdir, 1)


@pytest.mark.thorough
def test_sigterm_to_a_single_process(home, undisturbed):
    workdir = without(undisturbed, home / "single", "reference")
    (process,) = start(workdir, 1)
    wait_for(workdir, [process], "reference", 7)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 42
    assert [p.wait(timeout=600) for p in start(workdir, 1)] == [0]
    assert rows(workdir) == rows(undisturbed)  # one process gives the same bits
