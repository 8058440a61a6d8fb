"""Write files that are either whole or not there."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_jax.io import storage
from distill_jax.io.sealed import seal, unseal
from distill_jax.io.storage import Version, absolute, digest, is_local, location, version
from distill_jax.types import JsonObject


def write_atomic(path: Path, text: str) -> None:
    """Replace a file's contents in one step, on disk under its name before the call returns."""
    storage.write_atomic(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, atomically; NaN and infinities are refused, as JSON has none."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(storage.read_bytes(path).decode())


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


TICK = 2 * 10**9  # nanoseconds; the coarsest file systems count in two seconds


@functools.cache
def _digest_of(path: Path, _: Version) -> str:
    return digest(path)


def digest_once(path: Path) -> str:
    """Return the SHA-256 of a file's contents; this process hashes a file again only once it was written to."""
    now = version(path)
    # Two writes within one tick of the file system's clock leave one version: what is new may not be known by it.
    known = not is_local(path) or time.time_ns() - max(int(at) for at in now[2:]) > TICK
    return _digest_of(path, now) if known else digest(path)


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
        file = location(path)
        now, key = list(version(file)), str(absolute(file))
        *then, sha256 = self._known.get(key, [""])
        if then != now:
            sha256 = digest(file)
            self._known[key] = [*now, sha256]
        return str(sha256)

    def save(self) -> None:
        """Write what was computed to the cache, if anything was."""
        if self._cache and self._known:
            write_sealed(self._cache, {"files": self._known})
