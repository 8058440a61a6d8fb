"""A data set of packed rows, as every preparation writes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from distill_jax.data.atomic_build import log
from distill_jax.data.packing import Document, pack
from distill_jax.data.records import write_rows
from distill_jax.io.files import digest
from distill_jax.types import JsonObject


def write_packed_set(
    work: Path, name: str, documents: Iterable[Document], row_length: int, *, overlap: int = 0, **totals: int
) -> JsonObject:
    """Pack documents, in their order, into the rows of `work`/NAME.array_record; return the set's manifest entry.

    Args:
      overlap: tokens that a later piece of a document that is longer than a row repeats.
      totals: what else the manifest says of the set, such as its bytes.
    """
    path, count, tokens = work / f"{name}.array_record", 0, 0

    def counted() -> Iterator[Document]:
        nonlocal count, tokens
        for document in documents:
            count, tokens = count + 1, tokens + len(document.tokens)
            yield document

    rows = write_rows(path, pack(counted(), row_length, overlap=overlap))
    # An overlap's token stands twice: padding is what no row would have needed.
    padding = round(max(0.0, 1 - tokens / (rows * row_length)), 6)
    log(f"set {name}: {count:,} documents, {tokens:,} tokens, {rows:,} rows, {padding:.1%} padding")
    about = {"documents": count, "tokens": tokens, **totals, "rows": rows, "padding": padding}
    return {"file": path.name, **about, "sha256": digest(path)}
