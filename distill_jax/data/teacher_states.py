"""A teacher's hidden states of every row of a prepared set, in files of some thousand rows, read by row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from distill_jax.io.files import digest, read_sealed, vouch, vouched, write_sealed
from distill_jax.io.staging import local_copy
from distill_jax.io.storage import make_directory, replacing
from distill_jax.types import JsonObject

MANIFEST = "states.json"


class StateWriter:
    """Write the states of rows 0 to `rows`, a file of `shard_rows` at a time; a file counts once its digest is."""

    def __init__(self, directory: Path, rows: int, shard_rows: int):
        self.directory, self.rows, self.shard_rows = directory, rows, shard_rows

    def missing(self) -> Iterator[range]:
        """Yield the rows of each file that is not there yet."""
        for first in range(0, self.rows, self.shard_rows):
            if not vouched(self._path(first)):
                yield range(first, min(first + self.shard_rows, self.rows))

    def write(self, shard: range, states: np.ndarray) -> None:
        """Write one file's states, [len(shard), T, D] in fp32 or bf16."""
        make_directory(self.directory)
        path = self._path(shard.start)
        plain = states.view(np.uint16) if states.dtype == ml_dtypes.bfloat16 else states
        with replacing(path) as file:
            np.save(file, plain)
        vouch(path)

    def seal(self, description: JsonObject) -> None:
        """Write the manifest, which says that all is there and of what data it is."""
        paths = [self._path(first) for first in range(0, self.rows, self.shard_rows)]
        files = {path.name: vouched(path) for path in paths}
        layout = {"rows": self.rows, "shard_rows": self.shard_rows, "files": files}
        write_sealed(self.directory / MANIFEST, {**description, **layout})

    def _path(self, first: int) -> Path:
        return self.directory / f"{first // self.shard_rows:05d}.npy"


class States:
    """Read cached states by row.

    Args:
      directory: what a StateWriter sealed.
      data: SHA-256 of the set's file; the cache must have been made of it.

    Raises:
      ValueError: if a file is missing or damaged, or the states are those of other data.
    """

    def __init__(self, directory: Path, data: str):
        try:
            manifest = read_sealed(directory / MANIFEST)
        except (OSError, ValueError) as error:
            raise ValueError(f"{directory / MANIFEST} is missing or damaged; make the cache again") from error
        if manifest["data"] != data:
            raise ValueError(f"{directory}: the cached states are those of other data; make the cache again")
        for name, expected in manifest["files"].items():
            path = directory / name
            if not path.is_file() or digest(local_copy(path)) != expected:
                raise ValueError(f"{path} is missing or damaged; make the cache again")
        self._bf16 = manifest["dtype"] == "bfloat16"
        self._shard_rows = manifest["shard_rows"]
        self._files = [np.load(local_copy(directory / name), mmap_mode="r") for name in sorted(manifest["files"])]

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Return the states of some rows, [n, T, D]."""
        states = np.stack([self._files[i // self._shard_rows][i % self._shard_rows] for i in indices.tolist()])
        return states.view(ml_dtypes.bfloat16) if self._bf16 else states
