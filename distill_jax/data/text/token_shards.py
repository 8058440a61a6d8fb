"""Tokenised documents on the disk, a shard a file; many more than memory holds. Needs no TensorFlow."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from distill_jax.data.packing import Document
from distill_jax.io.files import vouch, vouched
from distill_jax.io.storage import replacing, sync
from distill_jax.types import JsonObject

COLUMNS = ("lengths", "bytes", "hashes")
OPEN_FILES = 64


class ShardWriter:
    """Write the documents of one shard: its tokens as they come, and last, when they are whole, what is known of them.

    Args:
      path: without an ending; `.tokens` and `.npz` are written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.with_suffix(".tokens").open("wb")
        self._columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
        self._open = np.zeros(3, np.int64)  # length, bytes and hash of the document whose end has not come

    def write(self, batch: Mapping[str, np.ndarray]) -> None:
        """Append examples; one that is not `first` continues the document before it."""
        self._file.write(batch["tokens"].astype("<i4").tobytes())
        starts = np.flatnonzero(batch["first"])
        lengths, sizes = batch["lengths"].astype(np.int64), batch["bytes"].astype(np.int64)
        head = int(starts[0]) if len(starts) else len(lengths)
        self._open[:2] += lengths[:head].sum(), sizes[:head].sum()
        if not len(starts):
            return
        self._close()
        summed = [np.add.reduceat(column, starts) for column in (lengths, sizes)]
        starting = [*summed, batch["hash"].astype(np.int64)[starts]]
        for name, column in zip(COLUMNS, starting, strict=True):
            self._columns[name].append(column[:-1])
        self._open[:] = [column[-1] for column in starting]

    def _close(self) -> None:
        if self._open[0]:
            for name, value in zip(COLUMNS, self._open, strict=True):
                self._columns[name].append(np.array([value]))

    def finish(self, notes: Mapping[str, object]) -> None:
        """Close the shard, with notes for the manifest."""
        self._close()
        self._file.close()
        sync(self.path.with_suffix(".tokens"))
        columns = {name: np.concatenate([np.zeros(0, np.int64), *parts]) for name, parts in self._columns.items()}
        with replacing(self.path.with_suffix(".npz")) as file:
            noted = json.dumps({**notes, "documents": len(columns["lengths"])})
            np.savez(file, notes=np.array(noted), **columns)  # type: ignore[arg-type]
        for path in _files(self.path):
            vouch(path)


def _files(path: Path) -> tuple[Path, Path]:
    return path.with_suffix(".tokens"), path.with_suffix(".npz")


def complete(path: Path) -> bool:
    """Return whether a shard is there as it was written, by this process or one before it."""
    return all(vouched(file) for file in _files(path))


class Documents:
    """Read the documents of several finished shards by index; no more than OPEN_FILES of them are open.

    Attributes:
      lengths: tokens of each document, int64 [n].
      bytes: of each document's text.
      hashes: of each document's text (of a very long one, of its head).
      notes: what was noted of each shard.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files = [path.with_suffix(".tokens") for path in paths]
        self._tokens = functools.lru_cache(OPEN_FILES)(self._map)
        columns: dict[str, list[np.ndarray]] = {name: [np.zeros(0, np.int64)] for name in COLUMNS}
        self.notes: list[JsonObject] = []
        for path in self._files:
            with np.load(path.with_suffix(".npz")) as file:
                for name, parts in columns.items():
                    parts.append(file[name])
                self.notes.append(json.loads(str(file["notes"])))
        self.lengths, self.bytes, self.hashes = (np.concatenate(columns[name]) for name in COLUMNS)
        self._first = np.cumsum([0, *(len(part) for part in columns["lengths"][1:])])
        self._starts = np.concatenate([np.zeros(0, np.int64), *(np.cumsum(p) - p for p in columns["lengths"][1:])])

    def _map(self, shard: int) -> np.ndarray:
        return np.memmap(self._files[shard], "<i4", "r")  # none of it is empty, for a document is in it

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document:
        shard = int(np.searchsorted(self._first, index, "right")) - 1
        # Copied: what still looks into a file would keep it open.
        tokens = np.array(self._tokens(shard)[self._starts[index] : self._starts[index] + self.lengths[index]])
        return Document(tokens, np.broadcast_to(np.int32(0), tokens.shape))
