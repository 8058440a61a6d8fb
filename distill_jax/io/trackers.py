"""Experiment trackers beside `metrics.jsonl`: each node is a run of Weights & Biases or MLflow, as far as they answer.

They are for the eye, and never stop or delay a run: all that they do is done by a thread of its own. What fails is said
in a line, and the run goes on without it. A run that continues goes on in the same tracker runs, in which rows after
its checkpoint then stand twice, with the same numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from distill_jax.config import check, identity
from distill_jax.io.files import read_json
from distill_jax.io.node_files import CONFIG, LEDGER
from distill_jax.io.storage import absolute
from distill_jax.types import JsonObject

TRACKERS = {
    "wandb": "wandb",
    "mlflow": "mlflow",
}  # name -> the package that must be there, and the extra that brings it
DIRECTORY = "trackers"  # below the work directory: what they keep there where no server is named
FINISH_SECONDS = 60.0  # that a tracker is waited for at the end of a node


@dataclasses.dataclass(frozen=True)
class TrackedNode:
    """A node, as trackers show it.

    Attributes:
      name: by which its metrics are written.
      run: the name of its directory; identity: of its tracker run, the same whenever it continues.
      workdir: by which runs are grouped.
      directory: where its files lie.
    """

    name: str
    run: str
    workdir: Path
    directory: Path

    @property
    def identity(self) -> str:
        """Of its tracker run."""
        return identity([str(absolute(self.workdir)), self.run])

    def config(self) -> JsonObject:
        """Return its settings and inputs."""
        return _read(self.directory / CONFIG)

    def ledger(self) -> JsonObject:
        """Return what it cost, once it is finished."""
        return _read(self.directory / LEDGER)


class Tracker(Protocol):
    """One tracker run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by name."""

    def finish(self, summary: Mapping[str, float], *, failed: bool) -> None:
        """Write what the node cost, and end; a node that failed may continue."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that there are not.

    Raises:
      ConfigError: naming the extra that brings them.
    """
    for name in names:
        mend = f"pip install 'distill-jax[{TRACKERS[name]}]', or leave it out"
        there = importlib.util.find_spec(TRACKERS[name]) is not None
        check(there, f"config.run.trackers = {tuple(names)}: {name} is not installed; {mend}")


class Trackers:
    """Trackers of the nodes that are computed now.

    Args:
      say: prints a line.
    """

    def __init__(self, names: Sequence[str], nodes: Sequence[TrackedNode], say: Callable[[str], None]) -> None:
        self._nodes = nodes
        self._threads = [_TrackerThread(name, nodes, say) for name in names]

    def log(self, node: str, kind: str, step: int, member: str, values: Mapping[str, float | None]) -> None:
        """Write a row of the metrics of a node, or of a part of one."""
        name, _, part = node.partition(" ")
        prefix = f"{part}/" if part else ""
        suffix = f"/{member}" if member else ""
        shown = {f"{prefix}{kind}/{key}{suffix}": x for key, x in values.items() if x is not None}
        for thread in self._threads if shown else ():
            thread.put(name, lambda run: run.log(step, shown))

    def finish(self, *, failed: bool) -> None:
        """End all runs, and wait for it a while."""
        costs = {node.name: {} if failed else dict(_flat(node.ledger(), "ledger/")) for node in self._nodes}
        for thread in self._threads:
            for name, cost in costs.items():
                thread.put(name, functools.partial(_finish, cost, failed))
            thread.close()


@contextlib.contextmanager
def tracking(names: Sequence[str], nodes: Sequence[TrackedNode], say: Callable[[str], None]) -> Iterator[Trackers]:
    """Yield the trackers of nodes that are computed within the block."""
    trackers = Trackers(names, nodes, say)
    try:
        yield trackers
    except BaseException:
        trackers.finish(failed=True)
        raise
    trackers.finish(failed=False)


def _finish(summary: Mapping[str, float], failed: bool, run: Tracker) -> None:
    run.finish(summary, failed=failed)


class _TrackerThread:
    """Do what a tracker is to do, one thing after the other; after the first that fails, nothing."""

    def __init__(self, name: str, nodes: Sequence[TrackedNode], say: Callable[[str], None]) -> None:
        self._name, self._nodes, self._say = name, nodes, say
        self._tasks: queue.SimpleQueue[tuple[str, Callable[[Tracker], None]] | None] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, node: str, task: Callable[[Tracker], None]) -> None:
        """Do something with a node's run later."""
        if not self._failed:
            self._tasks.put((node, task))

    def close(self) -> None:
        """Wait until all is done, or for a while."""
        self._tasks.put(None)
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive() and not self._failed:
            self._failed = True
            self._warn(f"no answer for {FINISH_SECONDS:.0f} s")

    def _work(self) -> None:
        try:
            module = importlib.import_module(f"{__package__}.{self._name}_run")
            runs: dict[str, Tracker] = {node.name: module.open_run(node) for node in self._nodes}
            while asked := self._tasks.get():
                node, task = asked
                task(runs[node])
        except Exception as error:  # of a kind of its own for each of them
            self._failed = True
            self._warn(" ".join(str(error).split())[:200] or type(error).__name__)

    def _warn(self, why: str) -> None:
        self._say(f"warning: {self._name}: {why}; the run goes on without it")


def _flat(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield (name, number) of the numbers of a tree."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)


def _read(path: Path) -> JsonObject:
    with contextlib.suppress(OSError, ValueError):
        return dict(read_json(path))
    return {}
