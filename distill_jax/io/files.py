"""Write files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill_jax.io.sealed import seal, unseal
from distill_jax.types import JsonObject


def write_atomic(path: Path, text: str) -> None:
    """Replace a file's contents in one step, on disk under its name before the call returns."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(path):
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # of the directory too, if that is what went wrong
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in the OSError of a write that fails."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """Flush a file's contents, or the names in a directory, to the disk: a rename survives a power cut only then."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that syncs no directories
            raise
    finally:
        os.close(handle)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, atomically; NaN and infinities are refused, as JSON has none."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_sealed(path: Path, value: Mapping[str, object]) -> None:
    """Write an object as JSON with its own digest, atomically."""
    write_json(path, seal(value))


def read_sealed(path: Path) -> JsonObject:
    """Read what `write_sealed` wrote.

    Raises:
      OSError: if there is no such file.
      ValueError: if it is not what was written.
    """
    return unseal(read_json(path))


def digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def vouch(path: Path) -> None:
    """Write a file's digest beside it, for a process that goes on after this one."""
    write_sealed(_voucher(path), {"digest": digest(path)})


def vouched(path: Path) -> str:
    """Return a file's SHA-256 if the file is there as it was when it was vouched for, or ""."""
    try:
        present = digest(path)
        return present if read_sealed(_voucher(path))["digest"] == present else ""
    except (OSError, ValueError, KeyError):
        return ""


def _voucher(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


Stamp = tuple[int, int, int, int]
TICK = 2 * 10**9  # nanoseconds; the coarsest file systems count in two seconds


def stamp(path: Path) -> Stamp:
    """Return (inode, size, mtime, ctime), which change with whatever writes to a file."""
    about = os.stat(path)
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


@functools.cache
def _digest_of(path: Path, _: Stamp) -> str:
    return digest(path)


def digest_once(path: Path) -> str:
    """Return the SHA-256 of a file's contents; this process hashes a file again only once it was written to."""
    now = stamp(path)
    # Two writes within one tick of the file system's clock leave one stamp: what is new may not be known by it.
    return _digest_of(path, now) if time.time_ns() - max(now[2:]) > TICK else digest(path)


class Digests:
    """Digests of files, remembered in a file as long as nothing writes to them.

    Args:
      cache: where they are read from and saved; None remembers nothing. What it holds is right or it is not used.
    """

    def __init__(self, cache: Path | None = None):
        self._cache = cache
        self._known: JsonObject = {}
        with contextlib.suppress(OSError, ValueError):
            self._known = dict(read_sealed(cache)["files"]) if cache else {}

    def of(self, path: str) -> str:
        """Return the SHA-256 of a file's contents."""
        now, key = list(stamp(Path(path))), os.path.abspath(path)
        *then, sha256 = self._known.get(key, [""])
        if then != now:
            sha256 = digest(Path(path))
            self._known[key] = [*now, sha256]
        return str(sha256)

    def save(self) -> None:
        """Write what was computed to the cache, if anything was."""
        if self._cache and self._known:
            write_sealed(self._cache, {"files": self._known})
