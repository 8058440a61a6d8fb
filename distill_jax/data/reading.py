"""From a shard's bytes to its documents, with no more than a piece of a document in memory. Needs no TensorFlow."""

from __future__ import annotations

import codecs
import collections
import gzip
import json
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from distill_jax.data.sources import Shard

PIECE_BYTES = 2**20
RECORD_BYTES = 2**28  # of one JSON line, which has to be held whole


class Piece(NamedTuple):
    """A document, or a part of one that is longer than PIECE_BYTES; `first` and `last` say which part."""

    text: str
    first: bool = True
    last: bool = True


class Broken(ValueError):
    """Say which document of which file is broken, and how."""


class Reader:
    """Read the documents of a shard.

    Attributes:
      notes: how many `blank` and `broken` documents were left out, and where the first broken one is.

    Args:
      skip_broken: whether a document that is no UTF-8 or no record is counted and left out instead of refused.
    """

    def __init__(self, shard: Shard, skip_broken: bool = False) -> None:
        self.shard, self.skip_broken = shard, skip_broken
        self.notes: collections.Counter[str] = collections.Counter()
        self.first_broken = ""

    def __iter__(self) -> Iterator[Piece]:
        """Yield the documents in their order.

        Raises:
          Broken: naming file and line, for a document that is broken and may not be skipped.
        """
        read = {"text": self._text, "jsonl": self._jsonl, "parquet": self._parquet}[self.shard.source.kind]
        try:
            for piece in read():
                if piece.first and piece.last and not piece.text.strip():
                    self.notes["blank"] += 1
                else:
                    yield piece
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise Broken(f"{self.shard.path}: not a gzip file, or a damaged one ({error})") from error

    def _text(self) -> Iterator[Piece]:
        by_line = self.shard.source.document == "line"
        for file, begin in self._documents():
            pieces = 0
            try:
                for piece in _pieces(file, by_line):
                    yield piece
                    pieces += 1
            except UnicodeDecodeError as error:
                self._leave_out(begin, _not_utf8(error), may=not pieces)
                if by_line and not error.object.endswith(b"\n"):
                    _skip_line(file)
                elif not by_line:
                    return

    def _jsonl(self) -> Iterator[Piece]:
        for file, begin in self._documents():
            line = file.readline(RECORD_BYTES)
            if len(line) == RECORD_BYTES and not line.endswith(b"\n"):
                self._leave_out(begin, f"a record of over {RECORD_BYTES >> 20} MiB; cut its text in several", may=False)
            try:
                text = _field(json.loads(line), self.shard.source.field) if line.strip() else ""
            except UnicodeDecodeError as error:
                self._leave_out(begin, _not_utf8(error))
            except ValueError as error:
                self._leave_out(begin, str(error))
            else:
                yield from cut(text)

    def _documents(self) -> Iterator[tuple[IO[bytes], int]]:
        """Yield the open file with its offset as long as a document of the shard begins there."""
        with _open(self.shard.path) as file:
            if self.shard.start:
                # The line that lies across the start is the shard's before.
                file.seek(self.shard.start - 1)
                _skip_line(file)
            compressed = self.shard.path.endswith(".gz")
            while file.peek(1) if compressed else file.tell() < self.shard.stop:  # type: ignore[attr-defined]
                yield file, file.tell()

    def _parquet(self) -> Iterator[Piece]:
        import pyarrow
        import pyarrow.parquet

        try:
            yield from self._row_group(pyarrow.parquet.ParquetFile(self.shard.path))
        except (pyarrow.ArrowException, OSError) as error:
            said = str(error).splitlines()[0]
            raise Broken(f"{self.shard.path}: damaged in row group {self.shard.start} ({said})") from error

    def _row_group(self, file: Any) -> Iterator[Piece]:
        field = self.shard.source.field
        if field not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            raise Broken(f"{self.shard.path}: has no column {field!r} but {columns}; name one as ?field=")
        row = sum(file.metadata.row_group(i).num_rows for i in range(self.shard.start))
        for batch in file.iter_batches(256, row_groups=[self.shard.start], columns=[field]):
            for value in batch.column(0):
                row += 1
                try:
                    text = value.as_py()
                    if not isinstance(text, str | None):
                        raise ValueError(f"{field!r} is {type(text).__name__}, not text; name a column as ?field=")
                except UnicodeDecodeError as error:
                    self._refuse(f"{self.shard.path}, row {row}: {_not_utf8(error)}")
                except ValueError as error:
                    self._refuse(f"{self.shard.path}, row {row}: {error}")
                else:
                    yield from cut(text or "")

    def _leave_out(self, offset: int, what: str, may: bool = True) -> None:
        with _open(self.shard.path) as file:
            line = 1 + _count_lines(file, offset)
        self._refuse(f"{self.shard.path}:{line}: {what}", may)

    def _refuse(self, message: str, may: bool = True) -> None:
        if not (may and self.skip_broken):
            mend = "; data.broken='skip' counts such documents and leaves them out" if may else ""
            raise Broken(f"{message}{mend}")
        self.notes["broken"] += 1
        self.first_broken = self.first_broken or message


def cut(text: str) -> Iterator[Piece]:
    """Cut a text that is in memory into pieces, for tokenisers want no gigabyte at once."""
    ends = range(PIECE_BYTES // 2, max(len(text), 1) + PIECE_BYTES // 2, PIECE_BYTES // 2)
    for end in ends:
        start = end - PIECE_BYTES // 2
        yield Piece(text[start:end], start == 0, end >= len(text))


def _pieces(file: IO[bytes], by_line: bool) -> Iterator[Piece]:
    """Yield the document that begins here; no character is cut in two."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    first, last = True, False
    while not last:
        block = (file.readline if by_line else file.read)(PIECE_BYTES)
        last = len(block) < PIECE_BYTES or (by_line and block.endswith(b"\n"))
        text = decoder.decode(block, final=last)
        yield Piece(text.rstrip("\r\n") if by_line else text, first, last)
        first = False


def _field(record: Any, field: str) -> str:
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__} instead of an object")
    if field not in record:
        raise ValueError(f"has no field {field!r} but {', '.join(record) or 'none'}; name one as ?field=")
    if not isinstance(record[field], str):
        raise ValueError(f"{field!r} is {type(record[field]).__name__}, not text; name another field as ?field=")
    record[field].encode()  # half a surrogate pair is legal JSON and no text
    return record[field]


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte {error.object[error.start]:#04x})"


def _open(path: str) -> IO[bytes]:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _skip_line(file: IO[bytes]) -> None:
    while (block := file.readline(PIECE_BYTES)) and not block.endswith(b"\n"):
        pass


def _count_lines(file: IO[bytes], end: int) -> int:
    lines = 0
    while end > 0 and (block := file.read(min(end, PIECE_BYTES))):
        lines, end = lines + block.count(b"\n"), end - len(block)
    return lines
