"""A real Ray cluster on this machine, whose nodes talk over the loopback only and start workers from this checkout."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs import ROOT, environment

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "memory": 2**30, "node_ip_address": "127.0.0.1"}


@contextlib.contextmanager
def cluster(compiled: Path) -> Iterator[Any]:
    """Start a cluster of one node with a core; `add_node(**NODE)` adds others.

    Args:
      compiled: directory of what its workers compile.
    """
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment(compiled), **loopback, "PYTHONPATH": str(ROOT)}.items():
            patch.setenv(name, value)
        cluster_utils = pytest.importorskip("ray.cluster_utils")  # which reads them as it is imported
        nodes = cluster_utils.Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        logs = nodes.head_node.get_session_dir_path()
        yield nodes
        nodes.shutdown()
        shutil.rmtree(logs, ignore_errors=True)


def raylet(node: Any) -> int:
    """Return the process of a node below which all are that it runs."""
    return int(node.all_processes["raylet"][0].process.pid)


def children() -> dict[int, list[int]]:
    """Return the processes of this machine by their parents."""
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        found.setdefault(parent, []).append(int(stat.parent.name))
    return found


def kill(pids: Iterable[int]) -> None:
    """Kill processes, some of which may end as they lose the others."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def meanwhile(kill_one: Callable[..., None], *arguments: object) -> Iterator[list[int]]:
    """Run kill_one(*arguments, killed, ended) beside the block; yield `killed`, to which it adds what it killed.

    It gives up once `ended` is set, which it is at the end of the block.
    """
    killed: list[int] = []
    ended = threading.Event()
    killer = threading.Thread(target=kill_one, args=(*arguments, killed, ended))
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()


def words(pid: int) -> list[str]:
    """Return the command line of a process; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def family(pid: int, of: dict[int, list[int]]) -> list[int]:
    """Return a process and all below it."""
    return [pid, *(one for child in of.get(pid, ()) for one in family(child, of))]
