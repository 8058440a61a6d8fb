"""Write files that are either whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any


def write_atomic(path: Path, text: str) -> None:
    """Replace a file's contents in one step, on disk before the call returns."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)  # a failed write does not say of which file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Put a file's contents, or the names in a directory, on the disk: a rename survives a power cut only then."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that syncs no directories
            error.filename = str(path)
            raise
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically; NaN and infinities are refused, as JSON has none."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """Digests of files, remembered in a file as long as a file's size and time stay what they were.

    Args:
      cache: where they are read from and saved; None remembers nothing.
    """

    def __init__(self, cache: Path | None = None):
        self._cache = cache
        try:
            self._known = read_json(cache) if cache else {}
        except (OSError, ValueError):
            self._known = {}

    def of(self, path: str) -> str:
        """Return the SHA-256 of a file's contents."""
        about, key = os.stat(path), os.path.abspath(path)
        size, time, found = self._known.get(key, (None, None, ""))
        if (size, time) != (about.st_size, about.st_mtime_ns):
            found = digest(Path(path))
            self._known[key] = (about.st_size, about.st_mtime_ns, found)
        return found

    def save(self) -> None:
        """Write down what was computed, if anything was."""
        if self._cache and self._known:
            write_json(self._cache, self._known)
