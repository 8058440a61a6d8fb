"""Whatever is pressed, closed, full or killed, the program ends with a line to read and a code to act on."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from distill_jax.config import ConfigError, Interrupted
from distill_jax.data.data_config import DataConfig
from distill_jax.exit_codes import ExitCode, ended
from distill_jax.experiment import workers
from distill_jax.io.metrics import Progress
from distill_jax.io.node import Node
from distill_jax.main import main
from distill_jax.stages.context import Context
from distill_jax.stages.prepare import Prepare

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
SWEEP = "--sweep=tests/faults/tiny_sweep.py"


# Streams


def test_what_a_terminal_cannot_show_is_replaced(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert main(["distill-jax", "help"]) == ExitCode.DONE
    assert b"[--config.key=value ?]" in shown.getvalue()


def test_a_pipe_that_nobody_reads_is_no_error(monkeypatch, capsys):
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["distill-jax", "help"]) == ExitCode.BROKEN_PIPE
    assert capsys.readouterr().err == ""


def test_a_full_disk_behind_standard_output_is_told(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["distill-jax", "help"]) == ExitCode.REFUSED
    assert capsys.readouterr().err == "distill-jax: standard output: No space left on device\n"


def test_standard_streams_may_be_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["distill-jax", "help"]) == ExitCode.DONE
    assert main(["distill-jax", "pla"]) == ExitCode.REFUSED


def test_a_name_that_is_no_text_is_refused(capsys):
    command = ["distill-jax", "run", "--config=configs/arithmetic.py:smoke", "--workdir=runs/\udce4"]
    assert main(command) == ExitCode.REFUSED
    assert "--workdir='runs/\\udce4': this is no UTF-8" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_closed_pipes_leave_nothing_for_the_interpreter_to_complain_of():
    command = [sys.executable, "-m", "distill_jax", "help"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == ExitCode.BROKEN_PIPE


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_data_are_shown_on_an_ascii_terminal(tmp_path):
    """The preparation, in its own process, prints there too."""
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "distill_jax", "data", "--config=configs/arithmetic.py:smoke"]

    def run(workdir: str) -> subprocess.CompletedProcess[bytes]:
        how = {"cwd": ROOT, "env": environment, "capture_output": True, "timeout": 300}
        return subprocess.run([*command, f"--workdir={workdir}"], **how)

    done = run(f"{tmp_path}/data")
    assert done.returncode == ExitCode.DONE, done.stderr
    assert done.stdout.isascii() and b"documents" in done.stdout and b"Traceback" not in done.stderr
    done = run(f"{tmp_path}/ä")
    assert done.returncode == ExitCode.REFUSED and b"set PYTHONUTF8=1" in done.stderr, done.stderr


# Ctrl-C

BEGIN = """
import os, signal, sys, time
from distill_jax import console
press = lambda: os.kill(os.getpid(), signal.SIGINT)
"""
PRESSED = {
    "at once": ("console.end_at_interrupts()\npress()\ntime.sleep(9)", 1),
    "in an import that takes its own exceptions": (
        "console.end_at_interrupts()\ntry:\n    press()\n    time.sleep(9)\nexcept BaseException:\n    time.sleep(9)",
        1,
    ),
    "twice": (
        "console.raise_at_interrupts()\ntry:\n    press()\n    time.sleep(9)\nexcept KeyboardInterrupt:\n    press()\n"
        "    time.sleep(9)",
        0,
    ),
    "in a destructor": (
        "console.raise_at_interrupts()\nclass A:\n    def __del__(self):\n        press()\nA()\n"
        "sys.exit(130 if console.interrupted() else 1)",
        0,
    ),
    "at the end": (
        "import atexit\natexit.register(lambda: (press(), time.sleep(9)))\nconsole.raise_at_interrupts()\n"
        "sys.exit(console.leave(3) + 127)",
        0,
    ),
}


@pytest.mark.parametrize("moment", PRESSED)
def test_no_interrupt_is_lost_or_shown_as_a_traceback(moment):
    code, lines = PRESSED[moment]
    done = subprocess.run([sys.executable, "-c", BEGIN + code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    expected = 3 if moment == "at the end" else ExitCode.INTERRUPTED
    assert done.returncode == expected, done.stderr
    assert len(done.stderr.splitlines()) == lines and "Traceback" not in done.stderr


@pytest.mark.kill
def test_two_interrupts_in_short_order_at_any_moment(tmp_path, request):
    chance, thorough = random.Random(11), request.config.getoption("--thorough")
    command = [sys.executable, "-m", "distill_jax", "run", "--config=configs/arithmetic.py:smoke"]
    for i in range(30 if thorough else 2):
        process = subprocess.Popen(
            [*command, f"--workdir={tmp_path}/{i}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(chance.uniform(0.3, 12 if thorough else 4))
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        # Before Python has set itself up the signal's own action ends it, which a shell shows as the same code.
        assert process.returncode in (ExitCode.INTERRUPTED, -signal.SIGINT), err
        assert "Traceback" not in err and "Exception" not in err and len(err.splitlines()) <= 1, err


# Workers


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Let the workers that are started be a shell script; its $n is the number of those started before it."""

    def become(script: str) -> None:
        path = tmp_path / "worker"
        path.write_text(f"#!/bin/sh\nn=0; while ! mkdir {tmp_path}/$n 2>/dev/null; do n=$((n + 1)); done\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return become


DIED = {
    "both killed": ("kill -9 $$", ExitCode.WORKERS_DIED, "was killed by SIGKILL (out of memory?)"),
    "both crashed": ("kill -11 $$", ExitCode.WORKERS_DIED, "was killed by SIGSEGV\n"),
    "one killed, one refused": ("test $n = 0 && kill -9 $$; exit 2", ExitCode.REFUSED, "ended with exit code 2"),
    "one killed, one saved": ("test $n = 0 && kill -9 $$; exit 42", ExitCode.SAVED, "was killed by SIGKILL"),
    "terminated before it heeds it": ("test $n = 0 && kill -15 $$; exit 42", ExitCode.SAVED, ""),
    "both taken over": ("exit 75", ExitCode.LEASE_LOST, "ended with exit code 75"),
    "one killed, one taken over": ("test $n = 0 && kill -9 $$; exit 75", ExitCode.WORKERS_DIED, "SIGKILL"),
    "a bug": ("test $n = 0 && kill -9 $$; exit 1", ExitCode.BUG, "ended with exit code 1"),
    "done": ("exit 0", ExitCode.WORKERS_DIED, ""),  # which is asked only if something is missing all the same
}


@pytest.mark.parametrize("case", DIED)
def test_who_starts_workers_says_how_they_died(worker, capfd, case):
    script, code, says = DIED[case]
    worker(script)
    assert workers.run(["distill-jax", "sweep"], 2) == code
    assert says in capfd.readouterr().err


def test_what_workers_print_is_passed_on_whatever_its_bytes(worker, capfd):
    worker(r"printf 'caf\351 \303\251\n'")
    workers.run(["distill-jax", "sweep"], 2)
    assert sorted(capfd.readouterr().out.splitlines()) == ["0| caf\ufffd é", "1| caf\ufffd é"]


@pytest.mark.parametrize(
    ("number", "times", "script"),
    [
        (signal.SIGINT, 1, "exec sleep 60"),
        (signal.SIGINT, 2, "trap '' INT; exec sleep 60"),  # busy in native code
        (signal.SIGTERM, 1, "exec sleep 60"),
    ],
)
def test_signals_go_to_every_worker(worker, tmp_path, capfd, number, times, script):
    worker(script)

    def press() -> None:
        while not (tmp_path / "1").exists():
            time.sleep(0.05)
        for i in range(times):
            time.sleep(i)  # two that come together count as one
            os.kill(os.getpid(), number)

    began = time.monotonic()
    finger = threading.Thread(target=press)
    finger.start()
    code = workers.run(["distill-jax", "sweep"], 2)
    finger.join()
    assert code == (ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.SAVED)
    assert time.monotonic() - began < 50 and capfd.readouterr().err == ""


def test_a_sweep_whose_workers_all_died_says_how_to_go_on(worker, tmp_path, capfd):
    worker("kill -9 $$")
    assert main(["distill-jax", "sweep", SWEEP, "--workers=2", f"--workdir={tmp_path}/w"]) == ExitCode.WORKERS_DIED
    told = capfd.readouterr().err.splitlines()
    assert sorted(told[:2]) == [f"distill-jax: worker {i} was killed by SIGKILL (out of memory?)" for i in (0, 1)]
    assert told[2:] == ["distill-jax: no worker is left; the same command continues from their last checkpoints"]


def test_how_a_process_ended_is_said_by_name():
    assert ended(0) == "ended with exit code 0" and ended(-6) == "was killed by SIGABRT"
    assert ended(-63) == "was killed by signal 63"  # which has no name


# Preparation


@dataclasses.dataclass(frozen=True)
class Settings(DataConfig):
    """Settings of data that are made by a module that does not exist."""

    PREPARE: ClassVar[str] = "no.such.module"


PREPARED = {
    "killed": ("kill -9 $$", ConfigError, "was killed by SIGKILL (out of memory?)"),
    "terminated": ("kill -15 $$", Interrupted, "stopped while preparing"),
    "refused": ("echo 'python -m x: rows: raise it' >&2; yes noise | head >&2; exit 2", ConfigError, "rows: raise it"),
    "silent": ("exit 1", ConfigError, "ended with exit code 1"),
    "full": ("echo 'python -m x: [Errno 28] No space left on device' >&2; exit 2", OSError, "No space left"),
    "raised": (
        "printf 'Traceback (most recent):\\n  File\\n    x\\nKeyError: 3\\n' >&2; yes noise | head >&2; exit 1",
        ConfigError,
        "failed: KeyError: 3",
    ),
}


@pytest.mark.parametrize("case", PREPARED)
def test_a_preparation_that_ends_badly_says_why(worker, tmp_path, case):
    """Whatever other lines it printed, and however many."""
    script, kind, says = PREPARED[case]
    worker(f"yes 'I tensorflow/core/util/port.cc: oneDNN custom operations are on.' | head -5000 >&2\n{script}")
    node = Node("data", "prepare", Prepare(Settings()), {}, "0" * 12, tmp_path / "w/nodes/data-0")
    ctx = Context(None, {"data": node}, node.directory / "rows", Progress(1, 0.0, out=io.StringIO()))
    with pytest.raises(kind, match=re.escape(says)) as caught:
        node.settings.run(ctx, [node])
    assert "oneDNN" not in str(caught.value) and "noise" not in str(caught.value)
