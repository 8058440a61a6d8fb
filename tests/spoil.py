"""Damage to files, disks that fill up, and what all processes of one test session share."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def largest(directory: Path) -> Path:
    """Return the largest file under a directory."""
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    """Turn over one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Cut a file short by half."""
    os.truncate(path, path.stat().st_size // 2)


def shared(tmp_path_factory, name: str) -> Path:
    """Return a directory that all processes of one test session share."""
    own = tmp_path_factory.getbasetemp()
    path = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    path.mkdir(exist_ok=True)
    return path


def kept_in(cache: Path) -> dict[str, str]:
    """Return the variables with which every compiled program is kept in a directory."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """Mount a small file system of its own, where that is allowed."""
    directory.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], capture_output=True)
    if made.returncode:
        pytest.skip(f"cannot mount a small file system here: {made.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def fill(disk: Path, leave: int) -> None:
    """Fill a disk but for some KiB."""
    free = os.statvfs(disk)
    with open(disk / "filler", "wb") as file:
        file.write(bytes(free.f_bavail * free.f_frsize - leave * 1024))
