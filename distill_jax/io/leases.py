"""Leases: workers on one file system agree who computes what, without a server.

A directory is leased by a file `lease-<n>.json` that is linked into place, which only one worker can do for each n; the
highest n is in force. It is never taken away: a dead worker's lease n is followed by lease n + 1, and what the dead may
still write does not matter (`attempts`). While it works, its owner touches the file. Nobody compares a time of the file
with a clock, which may go wrong by hours between machines: a lease is dead when its file, which could be read, has not
*changed* for `dead_after` seconds of the onlooker's own clock, or at once when its process is known to be gone from
this machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from distill_jax.config import ConfigError, check
from distill_jax.exit_codes import ExitCode
from distill_jax.io import storage
from distill_jax.io.files import read_json, read_sealed, write_json, write_sealed
from distill_jax.io.storage import Version
from distill_jax.types import JsonObject

HOLDERS = ".holders"  # below a work directory in a bucket: a lease of each process
POLL_SECONDS = 1.0
OWN_TEXT = "own_text"  # where a model's own text is written before its run begins


class Leases:
    """The leases that one worker holds.

    Args:
      heartbeat: seconds between two touches.
      dead_after: seconds without one after which the worker of another machine counts as dead. Network file systems
        show a change up to a minute late.
      lost: called if another worker took over what this one holds; ends the process when left out.
      about: what else its leases say of it.
    """

    def __init__(
        self,
        heartbeat: float = 10.0,
        dead_after: float = 180.0,
        lost: Callable[[str], None] | None = None,
        about: Mapping[str, object] | None = None,
    ) -> None:
        self._about = dict(about or {})
        self.worker = f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._heartbeat, self._dead_after, self._lost = heartbeat, dead_after, lost or _leave
        self._held: dict[Path, Path] = {}  # directory -> lease
        self._changes: dict[Path, tuple[Version, float]] = {}  # lease -> (its version, since when on our clock)
        self._guard, self._closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def take(self, directory: Path) -> bool:
        """Lease a directory, which is made if it does not exist; False if a living worker has it."""
        storage.make_directory(directory)
        number = _newest(directory)
        if number >= 0 and self._alive(_lease(directory, number)):
            return False
        record = json.dumps({"worker": self.worker, "heartbeat": self._heartbeat, **_self(), **self._about})
        if not storage.create_exclusive(_lease(directory, number + 1), record.encode()):
            return False
        with self._guard:
            self._held[directory] = _lease(directory, number + 1)
        return True

    def token(self, directory: Path) -> int:
        """Return the number of the lease held on a directory; whoever holds it later has a higher one."""
        return _number(self._held[directory])

    def confirm(self) -> None:
        """Touch what is held, and leave if another worker took it over meanwhile."""
        with self._guard:
            for directory, lease in list(self._held.items()):
                with contextlib.suppress(OSError):  # a file system that stumbles may be right again next time
                    if not self._taken_over(directory):
                        storage.touch(lease)

    def release(self, directory: Path) -> None:
        """Give a lease back, or leave if another worker took it over; nothing happens if it is not held."""
        with self._guard:
            if directory in self._held and not self._taken_over(directory):
                write_json(self._held.pop(directory), {"worker": self.worker, "released": True})

    def close(self) -> None:
        """Give everything back."""
        self._closed.set()
        for directory in list(self._held):
            self.release(directory)

    def holder(self, directory: Path) -> str:
        """Return the name of the worker whose lease is in force, or ""."""
        record = self.record(directory)
        return "" if record.get("released") else str(record.get("worker", ""))

    def record(self, directory: Path) -> JsonObject:
        """Return what the lease in force says; {} if there is none."""
        number = _newest(directory)
        return _read(_lease(directory, number)) if number >= 0 else {}

    def alive(self, directory: Path) -> bool:
        """Return whether a lease is in force whose worker does not count as dead yet."""
        number = _newest(directory)
        return number >= 0 and self._alive(_lease(directory, number))

    def _taken_over(self, directory: Path) -> bool:
        if _newest(directory) == _number(self._held[directory]):
            return False
        del self._held[directory]
        self._lost(f"{directory.name} was taken over by {self.holder(directory)}")
        return True

    def _alive(self, lease: Path) -> bool:
        record = _read(lease)
        if record.get("released"):
            return False
        if record.get("machine") == _self()["machine"]:
            return _started(int(record["pid"])) == record["started"]
        try:
            changed = storage.version(lease)
        except OSError:  # look again later; meanwhile its worker may not have got through either
            if lease in self._changes:
                self._changes[lease] = self._changes[lease][0], time.monotonic()
            return True
        now = time.monotonic()
        before, since = self._changes.setdefault(lease, (changed, now))
        if before != changed:
            self._changes[lease] = changed, now
            return True
        return now - since < max(self._dead_after, 4 * float(record.get("heartbeat", 0)))

    def _beat(self) -> None:
        while not self._closed.wait(self._heartbeat):
            self.confirm()


def _leave(reason: str) -> None:
    print(f"distill-jax: this worker was silent too long: {reason}; it leaves", file=sys.stderr, flush=True)
    os._exit(ExitCode.LEASE_LOST)


def _lease(directory: Path, number: int) -> Path:
    return directory / f"lease-{number}.json"


def _number(lease: Path) -> int:
    return int(lease.stem.removeprefix("lease-"))


def _newest(directory: Path) -> int:
    matches = [re.fullmatch(r"lease-(\d+)\.json", name) for name in storage.names(directory)]
    return max((int(match[1]) for match in matches if match), default=-1)


def _read(lease: Path) -> JsonObject:
    try:
        return dict(read_json(lease))
    except (OSError, ValueError):
        return {}


def _self() -> JsonObject:
    """Return what says on its own machine whether a process still lives: a pid alone may be used again."""
    # Containers of one machine have process numbers of their own.
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {
        "machine": f"{boot}/{os.readlink('/proc/self/ns/pid')}",
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _started(pid: int) -> int | None:
    """Return when a process of this machine started, in ticks since it booted; None if there is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if status[0] == "Z" else int(status[19])


def process_identity() -> JsonObject:
    """Return what this machine knows this process by, for `is_running`."""
    return _self()


def is_running(process: JsonObject) -> bool:
    """Whether a process of this machine, by its identity, still runs."""
    return _started(int(process["pid"])) == process["started"]


@contextlib.contextmanager
def held(workdir: Path, marker: Mapping[str, object], *, shared: bool = False) -> Iterator[None]:
    """Hold a work directory: for one process alone, or with others of the same marker.

    A file system has locks for that, which go with their process. In a bucket every process has a lease of its own
    name, whose record says what it runs: it is made first, and then those of others are looked at.

    Args:
      marker: what is run here. Its "experiment" can never change; the rest may once nobody works here.

    Raises:
      ConfigError: if the directory belongs to another experiment, is in use by others, or cannot be written.
    """
    where = f"--workdir={workdir}"
    if not storage.is_local(workdir):
        with _registered(workdir, marker, shared=shared):
            yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        gate, lock = open(workdir / ".gate", "a+"), open(workdir / ".lock", "a+")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"{where} cannot be written: {error.strerror}; choose another") from error
    with lock:
        with gate:
            with storage.needed(workdir, "locks, by which a run knows that it is alone"):
                fcntl.flock(gate, fcntl.LOCK_EX)  # one at a time looks at who is here
            alone = _flocked(lock, fcntl.LOCK_EX)
            in_use = f"{where} is in use by another run; wait for it or stop it"
            check(alone or (shared and _flocked(lock, fcntl.LOCK_SH)), in_use)
            if alone:
                _claim(workdir, marker)
                if shared:
                    fcntl.flock(lock, fcntl.LOCK_SH)
            else:
                _check_alike(where, _marker(workdir) or {}, marker)
        yield


def _check_alike(where: str, running: Mapping[str, object], marker: Mapping[str, object]) -> None:
    """Refuse to work beside workers of another marker."""
    for key in {**marker, **running}:
        there, here = running.get(key), marker.get(key)
        fix_hint = "stop them first, or run what they run"
        check(there == here, f"{where}: the workers there have {key} {there!r}, this one {here!r}; {fix_hint}")


def _claim(workdir: Path, marker: Mapping[str, object]) -> None:
    """Write what is run in a directory in which nobody else works; ConfigError if it is another experiment's."""
    present = _marker(workdir)
    _check_owner(workdir, present, marker)
    if present != marker:
        write_sealed(workdir / "experiment.json", marker)


@contextlib.contextmanager
def _registered(workdir: Path, marker: Mapping[str, object], *, shared: bool) -> Iterator[None]:
    """Hold a work directory in a bucket.

    Of two that come at once each sees the other, as a listing has whatever was written before it: both may be refused,
    and never both let in.
    """
    workers = Leases(about={"marker": dict(marker), "shared": shared})
    try:
        try:
            _register(workers, workdir, marker, shared=shared)
        except OSError as error:
            mend = f"{error.strerror or error}; mend that or choose another"
            raise ConfigError(f"--workdir={workdir} cannot be written: {mend}") from error
        yield
    finally:
        with contextlib.suppress(OSError):  # it counts as dead once it is silent, and nothing else depends on it
            workers.close()
        storage.remove_tree(workdir / HOLDERS / workers.worker)


def _register(workers: Leases, workdir: Path, marker: Mapping[str, object], *, shared: bool) -> None:
    """Lease a name of one's own, and refuse to work beside living others that run something else."""
    where = f"--workdir={workdir}"
    _check_owner(workdir, _marker(workdir), marker)
    workers.take(workdir / HOLDERS / workers.worker)
    for name in storage.names(workdir / HOLDERS):
        other = workdir / HOLDERS / name
        record = workers.record(other)
        both = shared and bool(record.get("shared"))
        if name == workers.worker or (both and record["marker"] == marker):
            continue
        if _outlasts(workers, other):
            if both:
                _check_alike(where, record["marker"], marker)
            check(False, f"{where} is in use by another run ({name}); wait for it or stop it")
        if _newest(other) > 0:
            storage.remove_tree(other)
        elif workers.take(other):  # it leaves if it ever wakes
            workers.release(other)
    _claim(workdir, marker)


def _outlasts(workers: Leases, other: Path) -> bool:
    """Return whether a lease that was not given back is renewed before it counts as dead; that may take minutes."""
    before = storage.versions(other)
    alive = workers.alive(other)
    if workers.record(other).get("machine") == process_identity()["machine"]:
        return alive  # nothing needs to be waited for
    if alive:
        print(f"{other.name} did not say that it ended: looking whether it still works here", flush=True)
    while alive:
        if storage.versions(other) != before:
            return workers.alive(other)
        time.sleep(POLL_SECONDS)
        alive = workers.alive(other)
    return False


def _flocked(lock: IO[str], how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # somebody has it; any other error is none of theirs
        return False
    return True


def _marker(workdir: Path) -> JsonObject | None:
    path = workdir / "experiment.json"
    if not path.exists():
        return None
    try:
        marker = read_sealed(path)
        marker["experiment"]
    except (ValueError, KeyError, TypeError) as error:
        fix_hint = "remove it to claim the directory anew"
        raise ConfigError(f"{path} is damaged, or an earlier version's; {fix_hint}") from error
    return marker


def _check_owner(workdir: Path, present: JsonObject | None, marker: Mapping[str, object]) -> None:
    if present is None:
        # By contents: a claim anew mixes nothing up.
        ours = ("nodes", "attempts", "workers", "trackers", "report", "digests.json", OWN_TEXT)
        foreign = [name for name in storage.names(workdir) if name not in ours and not name.startswith(".")]
        check(not foreign, f"--workdir={workdir} holds other files ({foreign[:1]}); choose a new directory")
        return
    asked, owner = marker["experiment"], present["experiment"]
    check(asked == owner, f"--workdir={workdir} belongs to experiment {owner!r}, this is {asked!r}; give it its own")
