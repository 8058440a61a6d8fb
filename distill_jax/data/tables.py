"""Parquet files that people give, read by groups of rows; one is open at a time. Needs no TensorFlow."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from distill_jax.data.lines import Broken, not_utf8
from distill_jax.io.staging import local_copy
from distill_jax.io.storage import Version, location, version
from distill_jax.types import JsonObject

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

READ_ROWS = 256


def row_groups(path: str) -> int:
    """Return how many groups of rows a file has."""
    with damage_named(path):
        return int(_open(path).num_row_groups)


def top_names(path: str) -> list[str]:
    """Return the names of a file's columns."""
    with damage_named(path):
        return list(_open(path).schema_arrow.names)


def names(path: str) -> list[str]:
    """Return the names of what a file holds, of what is inside of others with dots: `doc.text`."""
    with damage_named(path):
        schema = _open(path).schema_arrow
        return [name for field in schema for name in _leaves(field)]


def rows(
    path: str, columns: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator[tuple[str, JsonObject | ValueError]]:
    """Yield (the row's place, {column: value} or the ValueError that a value raised) of each row.

    Args:
      columns: names, with dots for those inside of others, whose value is then inside of dicts.
      groups: numbers of row groups; all when left out.
    """
    with damage_named(path):
        file = _open(path)
    chosen = range(file.num_row_groups) if groups is None else groups
    with damage_named(path, f"damaged in row group {min(chosen, default=0)}"):
        number = sum(file.metadata.row_group(i).num_rows for i in range(min(chosen, default=0)))
        for batch in file.iter_batches(READ_ROWS, row_groups=list(chosen), columns=list(columns)):
            for i in range(batch.num_rows):
                number += 1
                yield f"{path}, row {number}", _row(batch, i)


def _row(batch: pyarrow.RecordBatch, i: int) -> JsonObject | ValueError:
    try:
        return {name: batch.column(k)[i].as_py() for k, name in enumerate(batch.schema.names)}
    except UnicodeDecodeError as error:
        return ValueError(not_utf8(error))
    except ValueError as error:
        return ValueError(str(error).splitlines()[0])


@contextlib.contextmanager
def damage_named(path: str, what: str = "not a parquet file, or a damaged one") -> Iterator[None]:
    """Turn what pyarrow raises into Broken."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Broken(f"{path}: {what} ({reason})") from error


def _leaves(field: pyarrow.Field) -> list[str]:
    import pyarrow.types

    if not pyarrow.types.is_struct(field.type):
        return [str(field.name)]
    return [f"{field.name}.{name}" for inner in field.type for name in _leaves(inner)]


def _open(path: str) -> pyarrow.parquet.ParquetFile:
    local = local_copy(location(path))
    return _opened(str(local), version(local))


@functools.lru_cache(maxsize=1)  # reading a footer takes longer than reading one of a thousand small groups
def _opened(path: str, _: Version) -> pyarrow.parquet.ParquetFile:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path)
