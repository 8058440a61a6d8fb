"""From a shard's bytes to its documents, with no more than a piece of a document in memory. Needs no TensorFlow."""

from __future__ import annotations

import codecs
import collections
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

from distill_jax.data import lines, tables
from distill_jax.data.lines import Broken
from distill_jax.data.text import sources
from distill_jax.data.text.sources import Shard, Source

PIECE_BYTES = 2**20


class Piece(NamedTuple):
    """A document, or a part of one that is longer than PIECE_BYTES; `first` and `last` say which part."""

    text: str
    first: bool = True
    last: bool = True


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
        kinds = {"text": self._text, "jsonl": self._jsonl, "array": self._array, "parquet": self._parquet}
        with lines.damage_named(self.shard.path):
            for piece in kinds[self.shard.source.kind]():
                if piece.first and piece.last and not piece.text.strip():
                    self.notes["blank"] += 1
                else:
                    yield piece

    def _text(self) -> Iterator[Piece]:
        by_line = self.shard.source.document == "line"
        for file, begin in self._documents():
            pieces = 0
            try:
                for piece in _pieces(file, by_line):
                    yield piece
                    pieces += 1
            except UnicodeDecodeError as error:
                self._leave_out(begin, lines.not_utf8(error), may=not pieces)
                if by_line and not error.object.endswith(b"\n"):
                    _skip_line(file)
                elif not by_line:
                    return

    def _jsonl(self) -> Iterator[Piece]:
        for file, begin in self._documents():
            line = file.readline(lines.RECORD_BYTES)
            if len(line) == lines.RECORD_BYTES and not line.endswith(b"\n"):
                self._leave_out(begin, lines.too_long(), may=False)
            try:
                blank = not line.strip(lines.JSON_BLANKS)
                text = "" if blank else self._field(lines.parse_object(line))
            except ValueError as error:
                self._leave_out(begin, str(error))
            else:
                yield from cut(text)

    def _array(self) -> Iterator[Piece]:
        for number, element in lines.elements(self.shard.path):
            try:
                text = self._field(lines.parse_object(element))
            except ValueError as error:
                self._refuse(f"{self.shard.path}:{number}: {error}")
            else:
                yield from cut(text)

    def _documents(self) -> Iterator[tuple[IO[bytes], int]]:
        """Yield the open file with its offset as long as a document of the shard begins there."""
        with lines.open_bytes(self.shard.path) as file:
            if self.shard.start:
                # The line that lies across the start is the shard's before.
                file.seek(self.shard.start - 1)
                _skip_line(file)
            compressed = lines.is_gzipped(self.shard.path)
            begin = file.tell() if self.shard.start else 0  # a byte order mark belongs to the first document
            while file.peek(1) if compressed else begin < self.shard.stop:  # type: ignore[attr-defined]
                yield file, begin
                begin = file.tell()

    def _parquet(self) -> Iterator[Piece]:
        path, field = self.shard.path, self.shard.source.field
        known = tables.names(path)
        if field not in known:
            raise Broken(f"{path}: {lines.no_field(field, known)}")
        for where, row in tables.rows(path, [field], range(self.shard.start, self.shard.stop)):
            try:
                if isinstance(row, ValueError):
                    raise row
                text = self._field(row, null="")
            except ValueError as error:
                self._refuse(f"{where}: {error}")
            else:
                yield from cut(text)

    def _field(self, record: lines.Record, null: str | None = None) -> str:
        field = self.shard.source.field
        value = lines.value_at(record, field)
        text = null if value is None else value
        if not isinstance(text, str):
            raise ValueError(f"{field!r} is {type(text).__name__}, not text; name another field as ?field=")
        return text

    def _leave_out(self, offset: int, what: str, may: bool = True) -> None:
        line = 0
        if not (may and self.first_broken):  # only the first is told with its place
            with lines.open_bytes(self.shard.path) as file:
                file.seek(0)
                line = 1 + _count_lines(file, offset)
        self._refuse(f"{self.shard.path}:{line}: {what}", may)

    def _refuse(self, message: str, may: bool = True) -> None:
        if not (may and self.skip_broken):
            fix_hint = "; data.broken='skip' counts such documents and leaves them out" if may else ""
            raise Broken(f"{message}{fix_hint}")
        self.notes["broken"] += 1
        self.first_broken = self.first_broken or message


def documents(sources_read: Iterable[Source], skip_broken: bool = False) -> Iterator[str]:
    """Yield the documents of sources of files, each whole."""
    for source in sources_read:
        for shard in sources.shards(source):
            parts: list[str] = []
            for piece in Reader(shard, skip_broken):
                parts.append(piece.text)
                if piece.last:
                    yield "".join(parts)
                    parts = []


def cut(text: str) -> Iterator[Piece]:
    """Cut a text that is in memory into pieces, for tokenisers want no gigabyte at once."""
    ends = range(PIECE_BYTES // 2, max(len(text), 1) + PIECE_BYTES // 2, PIECE_BYTES // 2)
    for end in ends:
        start = end - PIECE_BYTES // 2
        yield Piece(text[start:end], start == 0, end >= len(text))


def _pieces(file: IO[bytes], by_line: bool) -> Iterator[Piece]:
    """Yield the document that begins here; no character is cut in two, and no CR LF that may end it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    first, last = True, False
    while not last:
        block = (file.readline if by_line else file.read)(PIECE_BYTES)
        last = len(block) < PIECE_BYTES or (by_line and block.endswith(b"\n"))
        while by_line and not last and block.endswith(b"\r"):
            more = file.readline(1)
            block, last = block + more, more in (b"", b"\n")
        text = decoder.decode(block, final=last)
        if by_line and text.endswith("\n"):
            text = text[: -2 if text.endswith("\r\n") else -1]
        yield Piece(text, first, last)
        first = False


def _skip_line(file: IO[bytes]) -> None:
    while (block := file.readline(PIECE_BYTES)) and not block.endswith(b"\n"):
        pass


def _count_lines(file: IO[bytes], end: int) -> int:
    count = 0
    while end > 0 and (block := file.read(min(end, PIECE_BYTES))):
        count, end = count + block.count(b"\n"), end - len(block)
    return count
