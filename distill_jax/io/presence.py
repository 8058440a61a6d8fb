"""Who works in a directory: every worker keeps a record of itself in `workers/` there.

It is for the eye (`distill-jax status`) and for accounts of time; no decision rests on it, as leases and locks are for
that. A record that cannot be written is left out, and the work goes on. Records stay, as the time that a worker spent
beside its nodes is in no node's ledger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from distill_jax.config import Interrupted
from distill_jax.io.files import read_json, write_json
from distill_jax.io.leases import is_running, process_identity
from distill_jax.io.storage import make_directory
from distill_jax.io.work_plan import WORKERS, PlannedNode, write_plan
from distill_jax.types import JsonObject

HEARTBEAT = 5.0  # seconds between two records
SILENT = 60.0  # seconds without one after which the worker of another machine is said to be silent
DONE, STOPPED, FAILED = "done", "stopped", "failed"


@dataclasses.dataclass(frozen=True)
class WorkerRecord:
    """What a worker says of itself. Times are in seconds since 1970, by the worker's own clock.

    Attributes:
      plan: what its command computes (`work_plan`).
      process: what its own machine knows it by (`leases.process_identity`).
      nodes: directories below the work directory that it computes now; since: when it began to.
      outside: seconds that it did not compute a node.
      ended: how its work ended: DONE, STOPPED or FAILED; "" while it works, and for ever if it was killed.
      error: of what has failed, a line.
    """

    worker: str
    host: str
    process: JsonObject
    began: float
    updated: float
    plan: str = ""
    nodes: Sequence[str] = ()
    since: float = 0.0
    outside: float = 0.0
    ended: str = ""
    error: str = ""

    def silence(self, now: float) -> str:
        """Return why it does not work any more although it never said that it ended; "" if it may well work."""
        if self.ended:
            return ""
        if self.process.get("machine") == process_identity()["machine"]:
            return "" if is_running(self.process) else "its process is gone"
        quiet = now - self.updated
        return f"silent for {quiet:.0f} s" if quiet > SILENT else ""


def read_workers(workdir: Path) -> list[WorkerRecord]:
    """Return the records of all workers that there ever were in a directory, the oldest first."""
    records = []
    for path in sorted((workdir / WORKERS).glob("*.json")):
        if path.name.startswith("plan-"):
            continue
        with contextlib.suppress(OSError, ValueError, TypeError):  # one that is being replaced, or another version's
            records.append(WorkerRecord(**read_json(path)))
    return sorted(records, key=lambda record: record.began)


class Presence:
    """Keep this process's record in a directory as long as the context lasts.

    Args:
      plan: what it is to compute, if that is to be written too.
      writes: whether anything is written: of a run's processes one does.
    """

    def __init__(
        self, workdir: Path, plan: Sequence[PlannedNode] = (), *, writes: bool = True, heartbeat: float = HEARTBEAT
    ) -> None:
        host = os.uname().nodename
        worker = f"{host}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._path = workdir / WORKERS / f"{worker}.json"
        self.workdir, self._writes, self._heartbeat = workdir, writes, heartbeat
        name = write_plan(workdir, plan) if plan and writes else ""
        self._record = WorkerRecord(worker, host, process_identity(), time.time(), time.time(), name)
        self._began, self._inside, self._node_began = time.monotonic(), 0.0, 0.0
        self._save: Callable[[], None] | None = None
        self._guard, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._write()
        if self._writes:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._closed.set()
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        ended = DONE if error is None else STOPPED if stopped else FAILED
        line = " ".join(str(error).split()) if ended == FAILED else ""
        self._update(ended=ended, error=line)

    @contextlib.contextmanager
    def computing(self, directories: Sequence[Path], save: Callable[[], None]) -> Iterator[None]:
        """Say that this worker computes nodes, until the block ends.

        Args:
          save: is called now and then, to write how far they are; never once the block has ended.
        """
        names = [str(path.relative_to(self.workdir)) for path in directories]
        self._node_began = time.monotonic()
        self._save = save
        self._update(nodes=names, since=time.time())
        try:
            yield
        finally:
            with self._guard:
                self._save = None
            self._inside += time.monotonic() - self._node_began
        self._update(nodes=(), since=0.0)  # not after an error, whose nodes stay in the record

    def _update(self, **changes: object) -> None:
        self._record = dataclasses.replace(self._record, **changes)  # type: ignore[arg-type]
        self._write()

    def _write(self) -> None:
        with self._guard:
            now = time.monotonic()
            inside = self._inside + (now - self._node_began if self._save else 0.0)
            record = dataclasses.replace(self._record, updated=time.time(), outside=now - self._began - inside)
            if not self._writes:
                return
            with contextlib.suppress(OSError):
                make_directory(self._path.parent)
                write_json(self._path, dataclasses.asdict(record))
            if self._save:
                with contextlib.suppress(OSError):
                    self._save()

    def _beat(self) -> None:
        while not self._closed.wait(self._heartbeat):
            self._write()
