"""Several workers of one sweep on one machine: start them, pass signals and lines on, and wait."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

COUNT = "DISTILL_JAX_WORKERS"  # tells a worker how many share its machine


def run(argv: Sequence[str], count: int) -> list[int]:
    """Run a command as so many processes, each on its own part of the cores, and return their exit codes.

    SIGTERM and Ctrl-C go to every worker. One that dies does not stop the others, which take over its work.

    Args:
      argv: the command line of this process, which has --workers.
    """
    rest = [*argv[1:], "--workers=1"]  # the last one counts
    cores = sorted(os.sched_getaffinity(0))
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        flags += " --xla_force_host_platform_device_count=1"  # each worker is a part of the machine already
    environment = {**os.environ, "XLA_FLAGS": flags.strip(), COUNT: str(count)}
    started: list[subprocess.Popen[str]] = []
    readers = []

    def stop(number: int, _: Any) -> None:
        for process in started:
            with contextlib.suppress(OSError):
                process.send_signal(signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for i in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m", "distill_jax", *rest],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # a terminal's Ctrl-C comes once, through `stop`
            )
            with contextlib.suppress(OSError):  # as soon as it runs, and before it makes threads
                os.sched_setaffinity(process.pid, cores[i::count] or cores)
            started.append(process)
            assert process.stdout
            readers.append(threading.Thread(target=_pass_on, args=(process.stdout, f"{i}| "), daemon=True))
            readers[-1].start()
        codes = [process.wait() for process in started]
        for reader in readers:
            reader.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in started:
            if process.poll() is None:
                process.kill()
    return codes


def _pass_on(lines: IO[str], mark: str) -> None:
    for line in lines:
        with contextlib.suppress(OSError):  # nobody reads any more: the worker must not wait for that
            print(mark + line, end="", flush=True)
