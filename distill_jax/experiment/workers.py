"""Several workers of one sweep on one machine: start them, pass signals and lines on, and wait."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from types import FrameType

from distill_jax import console
from distill_jax.exit_codes import ExitCode, ended

COUNT = "DISTILL_JAX_WORKERS"  # tells a worker how many share its machine
UTF8 = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:replace"}  # of pipes between processes, whatever the locale


def run(argv: Sequence[str], count: int) -> int:
    """Run a command as so many processes, each on its own part of the cores, and return one exit code for all.

    SIGTERM and Ctrl-C go to every worker; a second Ctrl-C kills them. One that dies does not stop the others, which
    take over its work.

    Args:
      argv: the command line of this process, which has --workers.
    """
    command = [sys.executable, "-m", "distill_jax", *argv[1:], "--workers=1"]  # the last one counts
    cores = sorted(os.sched_getaffinity(0))
    environment = _environment(count)
    started: list[subprocess.Popen[str]] = []
    readers = []
    with _passing_on_signals(started) as came:
        try:
            for i in range(count):
                if came:
                    break
                with _held_back(signal.SIGINT):  # until the worker heeds it, and until it is one of those it goes to
                    started.append(_start(command, environment))
                if signal.SIGTERM in came:  # while it was started
                    started[-1].terminate()
                with contextlib.suppress(OSError):  # as soon as it runs, and before it makes threads
                    os.sched_setaffinity(started[-1].pid, cores[i::count] or cores)
                readers.append(threading.Thread(target=_follow, args=(started[-1], i, came), daemon=True))
                readers[-1].start()
            codes = [process.wait() for process in started]
            for reader in readers:
                reader.join()
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
    if signal.SIGINT in came:
        return ExitCode.INTERRUPTED
    return ExitCode.SAVED if came else combined(codes)


def _environment(count: int) -> dict[str, str]:
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        flags += " --xla_force_host_platform_device_count=1"  # each worker is a part of the machine already
    return {**os.environ, "XLA_FLAGS": flags.strip(), COUNT: str(count), **UTF8}


def _start(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # a terminal's Ctrl-C comes once, through `_passing_on_signals`
    )


@contextlib.contextmanager
def _held_back(number: int) -> Iterator[None]:
    """Block a signal for this thread and for what it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _passing_on_signals(processes: Collection[subprocess.Popen[str]]) -> Iterator[list[int]]:
    """Pass SIGTERM and Ctrl-C on to processes, the second Ctrl-C as SIGKILL; yield the list of those that came."""
    came: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        came.append(number)
        for process in processes:
            with contextlib.suppress(OSError):
                process.send_signal(signal.SIGKILL if came.count(signal.SIGINT) > 1 else number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def combined(codes: Sequence[int]) -> int:
    """Return the exit code of workers that left something undone, by what there is to do about it."""
    for code in (ExitCode.INTERRUPTED, ExitCode.SAVED, ExitCode.REFUSED, ExitCode.BUG):
        if code in codes:
            return code
    if -signal.SIGTERM in codes:  # which may come before a worker heeds it
        return ExitCode.SAVED
    return ExitCode.LEASE_LOST if set(codes) == {ExitCode.LEASE_LOST} else ExitCode.WORKERS_DIED


def _follow(process: subprocess.Popen[str], number: int, came: Sequence[int]) -> None:
    """Pass on what a worker prints, and say how it ended unless a signal came that asked for it."""
    assert process.stdout
    for line in process.stdout:
        with contextlib.suppress(OSError):  # nobody reads any more: the worker must not wait for that
            print(f"{number}| {line}", end="", flush=True)
    code = process.wait()
    if not came and code not in (ExitCode.DONE, ExitCode.SAVED, -signal.SIGTERM):
        console.complain(f"worker {number} {ended(code)}")
