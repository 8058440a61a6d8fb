"""The processes of one run: bring them together, agree when to stop, and say who writes."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from distill_jax import console
from distill_jax.config import ConfigError, Interrupted, check
from distill_jax.sharding import lost_process
from distill_jax.types import JsonObject

WAIT_SECONDS = 60.0  # between two lines on who is missing
POLL_SECONDS = 1.0  # between two looks whether this process was told to stop
PATIENCE_SECONDS = 1800.0  # until whoever is here leaves again

_stop = False
_num_questions = itertools.count()


def is_primary() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process of the run is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agreed(value: int) -> int:
    """Return process 0's value on every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if jax.process_count() > 1 else value


def announced(message: JsonObject) -> JsonObject:
    """Return process 0's message on every process; what the others give counts for nothing."""
    if jax.process_count() == 1:
        return message
    own = np.frombuffer(json.dumps(message).encode(), np.uint8) if is_primary() else np.zeros(0, np.uint8)
    text = np.zeros(agreed(len(own)), np.uint8)
    text[: len(own)] = own
    return dict(json.loads(bytes(multihost_utils.broadcast_one_to_all(text))))


def on_any(value: bool) -> bool:
    """Whether something holds on any process; all must ask."""
    return bool(np.any(multihost_utils.process_allgather(np.bool_(value)))) if jax.process_count() > 1 else value


def heed_signals() -> None:
    """Handle SIGTERM as a request to save and leave, and let no Ctrl-C be lost.

    With several processes JAX hears SIGTERM itself, for all of them.
    """

    def note(*_: object) -> None:
        global _stop
        _stop = True

    signal.signal(signal.SIGTERM, note)
    console.raise_at_interrupts()


def preempted() -> bool:
    """Whether to save now and leave; all processes get the same answer to their n-th question.

    Raises:
      KeyboardInterrupt: after a Ctrl-C whose exception was lost, as in a callback from native code.
    """
    if console.interrupted():
        raise KeyboardInterrupt
    if jax.process_count() == 1:
        return _stop
    return multihost_utils.reached_preemption_sync_point(next(_num_questions))


def join(
    coordinator: str, processes: int, process: int, heartbeat: int = 100, patience: float = PATIENCE_SECONDS
) -> None:
    """Join this process with the others of its run, before anything touches a device.

    Args:
      coordinator: HOST:PORT where process 0 listens; one port serves the roll call and then JAX.
      heartbeat: seconds of silence after which a process counts as dead, and the others leave.
      patience: seconds to wait for the others.

    Raises:
      ConfigError: naming the flag whose value cannot be.
      Interrupted: if the others do not come.
    """
    host, _, port = coordinator.rpartition(":")
    check(bool(host) and port.isdigit(), f"--coordinator={coordinator}: give HOST:PORT, such as 10.0.0.2:8476")
    check(processes >= 1, f"--processes={processes}: must be at least 1")
    check(0 <= process < processes, f"--process={process}: must be from 0 to --processes - 1 = {processes - 1}")
    if processes == 1:
        return
    roll_call(host, int(port), processes, process, patience=patience)
    jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=heartbeat)
    lost_process.leave_when_one_is_lost(heartbeat)


def join_detected(port: int, heartbeat: int = 100, patience: float = PATIENCE_SECONDS) -> None:
    """Join the cluster that JAX detects by itself: a TPU pod, Slurm, Open MPI, a Kubernetes job.

    Raises:
      ConfigError: if there is none.
    """
    try:
        from jax._src.clusters import ClusterEnv

        cluster = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 300)
    except ImportError:  # JAX keeps it to itself; without it the roll call is left out
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)
        lost_process.leave_when_one_is_lost(heartbeat)
        return
    coordinator, processes, process, _ = cluster
    if coordinator is None or processes is None or process is None:
        fix_hint = "start the processes yourself with --coordinator, --processes and --process"
        raise ConfigError(f"--distributed: no cluster was detected here; {fix_hint}")
    join(f"{coordinator.rpartition(':')[0]}:{port}", int(processes), int(process), heartbeat, patience)


def warn(text: str) -> None:
    """Print a line on standard error at once."""
    print(f"distill-jax: {text}", file=sys.stderr, flush=True)


def roll_call(
    host: str,
    port: int,
    processes: int,
    process: int,
    log: Callable[[str], None] = warn,
    patience: float = PATIENCE_SECONDS,
) -> None:
    """Wait until all processes have reported to process 0; each minute log who is missing.

    JAX's own start-up ends in an abort that names nobody, so the processes meet on its port first.

    Raises:
      Interrupted: if some do not come within `patience` seconds.
    """
    if processes > 1:
        until = time.monotonic() + patience
        _call(port, processes, log, until) if process == 0 else _answer(host, port, process, log, until)


def _call(port: int, processes: int, log: Callable[[str], None], until: float) -> None:
    present: dict[int, socket.socket] = {}
    last_log = began = time.monotonic()
    try:
        server = socket.create_server(("", port), backlog=processes)
    except OSError as error:
        raise ConfigError(f"process 0 cannot listen on port {port}: {error.strerror}; give another port") from error
    with server:
        while len(present) < processes - 1:
            _leave_if_stopped(process=0)
            server.settimeout(max(0.01, min(POLL_SECONDS, WAIT_SECONDS, until - time.monotonic())))
            try:
                connection, _ = server.accept()
                connection.settimeout(5)
                present[int(connection.recv(16))] = connection
            except TimeoutError:
                missing = sorted(set(range(1, processes)) - set(present))
                names = ", ".join(map(str, missing))
                now = time.monotonic()
                absent = f"of {processes} processes these have not reported: {names}"
                if now >= until:
                    raise Interrupted(f"waited {now - began:.0f} s and gave up; {absent}") from None
                if now - last_log >= WAIT_SECONDS:
                    last_log = now
                    log(f"waited {now - began:.0f} s; {absent}")
            except (OSError, ValueError):  # a stranger, or one that left again
                continue
    for connection in present.values():
        with connection:
            connection.sendall(b"go")


def _answer(host: str, port: int, process: int, log: Callable[[str], None], until: float) -> None:
    last_log = began = time.monotonic()
    while True:
        _leave_if_stopped(process)
        try:
            with socket.create_connection((host, port), timeout=5) as connection:
                connection.sendall(str(process).encode())
                if _called(connection, process, until):
                    return
        except OSError:
            pass
        if time.monotonic() >= until:
            waited = time.monotonic() - began
            raise Interrupted(f"process {process} waited {waited:.0f} s for process 0 at {host}:{port} and gave up")
        if time.monotonic() - last_log > WAIT_SECONDS:
            last_log = time.monotonic()
            log(f"process {process} waited {last_log - began:.0f} s; process 0 does not answer at {host}:{port}")
        time.sleep(0.2)


def _called(connection: socket.socket, process: int, until: float) -> bool:
    """Wait for process 0's word that all are here; False if it went away, or the time is over."""
    connection.settimeout(POLL_SECONDS)
    while time.monotonic() < until:
        _leave_if_stopped(process)
        with contextlib.suppress(TimeoutError):
            return connection.recv(2) == b"go"
    return False


def _leave_if_stopped(process: int) -> None:
    if _stop:
        raise Interrupted(f"process {process} was stopped while it waited for the others")
