"""Local files that stand for objects: one that grows, what is uploaded when it is complete, copies of what is read.

On a file system each of them is the place itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

from distill_jax.config import ConfigError
from distill_jax.io.storage import Path, copy, files, is_local, location, versions

PUSH_SECONDS = 30.0  # between two uploads of a file that grows
CACHE_GIB = "DISTILL_JAX_CACHE_GIB"  # environment variable: what the local cache may hold


class Growing:
    """A file that grows, or a directory of such files: its path, or a local one that is uploaded whole.

    An object cannot be appended to. It is written anew at most every PUSH_SECONDS and whenever it must be durable;
    in parts it would be many objects, which a reader puts together and a proof lists.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._temporary = None if is_local(target) else tempfile.TemporaryDirectory(prefix="distill-jax-")
        self.path = pathlib.Path(self._temporary.name, target.name) if self._temporary else target
        self._pushed = -float("inf")
        if self._temporary and target.is_file():
            copy(target, self.path)

    def push(self, *, durable: bool = False) -> None:
        """Upload what the local file holds, unless it was a moment ago and need not be durable."""
        if self._temporary and (durable or time.monotonic() - self._pushed > PUSH_SECONDS):
            upload(self.path, self.target)
            self._pushed = time.monotonic()

    def close(self) -> None:
        """Remove the local file."""
        if self._temporary:
            self._temporary.cleanup()


@contextlib.contextmanager
def uploading(target: Path, last: str = "") -> Iterator[Path]:
    """Yield a place to write to, a file or a directory; of an address, a local one that is uploaded at the end.

    Args:
      last: name of the file of a directory that says that all are there.
    """
    if is_local(target):
        yield target
        return
    with tempfile.TemporaryDirectory(prefix="distill-jax-") as temporary:
        local = pathlib.Path(temporary, target.name)
        yield local
        upload(local, target, last)


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """Yield a local directory for what goes to an address: that of the process before, if it was killed."""
    work = building_place(target)
    work.mkdir(parents=True, exist_ok=True)
    yield work
    shutil.rmtree(work, ignore_errors=True)


def building_place(target: Path) -> Path:
    """Return where on this machine is built what goes to an address; one that was killed leaves it to the next."""
    return cache_directory().with_name("building") / hashlib.sha256(str(target).encode()).hexdigest()[:32]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock of this machine; that of a killed process is free."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def upload(source: Path, target: Path, last: str = "") -> None:
    """Copy a file, or all files below a directory, to an address; the one named `last` comes last."""
    if source.is_file():
        return copy(source, target)
    for path in sorted(files(source), key=lambda path: str(path.relative_to(source)) == last):
        copy(path, target / str(path.relative_to(source)))


def cache_directory() -> Path:
    """Return the directory of local copies."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "distill_jax" / "objects"


def local_copy(path: Path) -> Path:
    """Return a file or directory on this machine: the path itself, or a copy of what an address holds now.

    Copies are kept, by the objects' versions, as long as the cache has room for them; the oldest go first.

    Raises:
      FileNotFoundError: if there is nothing at the address.
    """
    if is_local(path):
        return path
    found = versions(path)
    if not found:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    key = hashlib.sha256(repr((str(path), sorted(found.items()))).encode()).hexdigest()[:32]
    entry = cache_directory() / key
    entry.parent.mkdir(parents=True, exist_ok=True)
    with locked(entry.parent / ".lock"):  # two processes of a machine load a thing once
        if not entry.exists():
            _make_room(entry.parent, sum(int(size) for _, size, *_ in found.values()))
            _download(path, list(found), entry)
        os.utime(entry)
    return entry / path.name


def local_input(where: str | os.PathLike[str]) -> Path:
    """Return what a user named, on this machine; whether there is such a path is looked at by whoever reads it.

    Raises:
      ConfigError: if there is nothing at an address.
    """
    path = location(where)
    try:
        return local_copy(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is nothing at this address") from error


def _download(path: Path, names: list[str], entry: Path) -> None:
    temporary = entry.with_name(f".{entry.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for name in names:
            to = temporary / path.name / name
            to.parent.mkdir(parents=True, exist_ok=True)
            copy(path / name, to)
        os.rename(temporary, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_room(cache: Path, needed: int) -> None:
    """Remove the copies that were not asked for the longest, but none of the last hour, which may be in use."""
    given = os.environ.get(CACHE_GIB) or "64"
    try:
        limit = float(given) * 2**30
    except ValueError as error:
        raise ConfigError(f"{CACHE_GIB}={given}: must be a number of GiB, such as 64") from error
    entries = sorted((p for p in cache.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
    sizes = {entry: sum(p.stat().st_size for p in entry.rglob("*") if p.is_file()) for entry in entries}
    for entry in entries:
        old = time.time() - entry.stat().st_mtime > 3600
        if old and sum(sizes.values()) + needed > limit:
            shutil.rmtree(entry, ignore_errors=True)
            del sizes[entry]
