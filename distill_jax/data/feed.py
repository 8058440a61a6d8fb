"""The order in which rows are fed: a pure function of one integer, the step. Needs no TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Callable

import grain
import numpy as np

from distill_jax.config import check
from distill_jax.data import records
from distill_jax.data.random_stream import random_stream


def order(count: int, batch: int, seed: int) -> grain.MapDataset[np.ndarray]:
    """Return an endless sequence whose item `step` is the indices [batch] below `count` of that global batch."""
    # grain's shuffle takes a new permutation in every epoch of `repeat`; only indices pass through it.
    return grain.MapDataset.range(count).seed(seed).shuffle().repeat().batch(batch)


def padded(read: Callable[[np.ndarray], np.ndarray], indices: np.ndarray, rows: slice) -> np.ndarray:
    """Read the rows of a batch, zeros for those past its end: segment 0, which no loss counts.

    Args:
      read: indices of a file [n] -> its rows [n, ...].
      indices: of the whole batch, [B].
      rows: of the batch filled up with padding.
    """
    places = np.arange(rows.start, rows.stop)
    out = read(indices[np.minimum(places, len(indices) - 1)])
    if rows.stop > len(indices):
        out = out.copy()  # records lie in memory that is read only
        out[places >= len(indices)] = 0
    return out


class Feed:
    """Feed global batches from an endless stream of epochs, each in its own order.

    The order of an epoch is a counter-based permutation of (seed, epoch): any batch is computed from its number alone,
    so resuming is exact and every host of a pod can read its own part of the same batch.

    Args:
      source: the ArrayRecord file of a set, or its rows where several feeds read one file, which then is decoded once;
        a file with fewer rows than a batch repeats within the batch.
      batch: rows in a global batch.
      seed: fixes the order.
      rows: of the file that are fed, chosen by the seed; 0 for all.

    Raises:
      ValueError: no rows, or a batch below 1.
    """

    def __init__(self, source: str | os.PathLike[str] | records.Rows, batch: int, seed: int, rows: int = 0) -> None:
        check(batch >= 1, f"batch={batch}: must be at least 1")
        self.rows = source if isinstance(source, records.Rows) else records.Rows(source)
        self.batch = batch
        chosen = random_stream(seed, "rows").permutation(len(self.rows))[:rows] if rows else None
        self._order, self._chosen = order(len(self.rows) if chosen is None else len(chosen), batch, seed), chosen

    def __call__(self, step: int, rows: slice = slice(None)) -> np.ndarray:
        """Read global batch `step`, or some of its rows: int32 [batch (or fewer), 3, row_length]."""
        return self.rows.gather(self.indices(step)[rows])

    def indices(self, step: int) -> np.ndarray:
        """Compute which rows make up global batch `step`, int64 [batch]."""
        if step < 0:
            raise IndexError(f"step={step}: must not be negative")
        return self._order[step] if self._chosen is None else self._chosen[self._order[step]]
