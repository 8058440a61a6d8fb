"""Packing of documents into rows of one length, with nothing dropped.

A row is an int32 array [3, row_length]: tokens, segments (1, 2, ... for the documents of the row, 0 for padding) and
answer (1 on the answer's tokens and its `<eos>`). A document goes whole into the first open row with room for it; only
a document longer than a row is cut, and its tail is packed like any other document. With an overlap each later piece
begins with the last tokens of the one before: with one, every token but a document's first is some token's target.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

TOKENS, SEGMENTS, ANSWER = range(3)
MARKED = -1  # in the place of ANSWER's 0 or 1: a labeller marked the token, and no loss that heeds marks counts it


class Document(NamedTuple):
    """Tokens and, for each of them, whether it belongs to the answer: two integer arrays [length]."""

    tokens: np.ndarray
    answer: np.ndarray


class _Row:
    def __init__(self, length: int) -> None:
        self.data = np.zeros((3, length), np.int32)
        self.room = length
        self.documents = 0

    def add(self, document: Document) -> None:
        start = self.data.shape[1] - self.room
        self.room -= len(document.tokens)
        self.documents += 1
        place = slice(start, start + len(document.tokens))
        self.data[TOKENS, place] = document.tokens
        self.data[SEGMENTS, place] = self.documents
        self.data[ANSWER, place] = document.answer


def pack(documents: Iterable[Document], row_length: int, open_rows: int = 16, overlap: int = 0) -> Iterator[np.ndarray]:
    """Pack documents in order into rows, int32 [3, row_length]; of `open_rows` open ones the fullest is closed."""
    rows: list[_Row] = []
    for document in documents:
        for piece in cut(document, row_length, overlap):
            row = next((row for row in rows if row.room >= len(piece.tokens)), None)
            if row is None:
                if len(rows) == open_rows:
                    fullest = min(rows, key=lambda row: row.room)
                    rows.remove(fullest)
                    yield fullest.data
                row = _Row(row_length)
                rows.append(row)
            row.add(piece)
    yield from (row.data for row in rows)


def cut(document: Document, row_length: int, overlap: int = 0) -> Iterator[Document]:
    """Cut a document into pieces of row_length tokens and a shorter tail; an empty document has no pieces."""
    length = len(document.tokens)
    for start in range(0, max(length - overlap, min(length, 1)), row_length - overlap):
        yield Document(*(part[start : start + row_length] for part in document))
