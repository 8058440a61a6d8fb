"""Rows of JSON lines that a model reads: their tokens, batches of like length, and what comes out, in order."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill_jax.config import ConfigError, check
from distill_jax.interop import tokenizers
from distill_jax.interop.tokenizers import Tokenizer
from distill_jax.io.files import write_atomic

Row = dict[str, Any]


class Rows:
    """The rows of a file, each with `text` or `tokens`.

    Attributes:
      rows: what the file holds.
      tokens: the tokens of each row.

    Args:
      where: the tokenizer that `text` needs, as `tokenizers.load` takes it.

    Raises:
      ConfigError: naming the file and the line of a row that is none.
    """

    def __init__(self, path: Path, vocab: int, where: str):
        check(path.is_file(), f"--input={path}: no such file")
        self._where = where
        self.rows: list[Row] = []
        self.tokens: list[list[int]] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                row = _row(line, f"{path}:{number}")
                self.rows.append(row)
                self.tokens.append(self._tokens(row, vocab, f"{path}:{number}"))
        check(bool(self.rows), f"--input={path}: holds no rows")

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded when it is first needed."""
        return tokenizers.load(self._where)

    def _tokens(self, row: Row, vocab: int, where: str) -> list[int]:
        tokens = row["tokens"] if "tokens" in row else self.tokenizer.encode(row["text"])
        what = "tokens" if "tokens" in row else "text (its tokens)"
        integers = isinstance(tokens, list) and all(isinstance(t, int) for t in tokens)
        check(integers and len(tokens) > 0, f"{where}: {what}: a list of at least one whole number is needed")
        check(0 <= min(tokens) <= max(tokens) < vocab, f"{where}: {what} must lie in 0 .. {vocab - 1}, the vocabulary")
        return tokens


def batches(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Yield the rows' numbers in batches of like length, saying now and then how far it is."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    said = time.monotonic()
    for start in range(0, len(order), size):
        yield order[start : start + size]
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"{min(start + size, len(order))}/{len(order)} rows", file=sys.stderr, flush=True)


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: no JSON ({error})") from error
    good = isinstance(row, dict) and ("text" in row) != ("tokens" in row)
    check(good, f"{where}: a row has either `text` or `tokens`")
    check(isinstance(row.get("text", ""), str), f"{where}: text: a string is needed")
    return row


def padded_length(length: int) -> int:
    """Return a multiple of 16 at most a quarter longer, or 15: few lengths, for each is a program of its own."""
    step = max(16, 2 ** (length.bit_length() - 3))
    return -(-length // step) * step


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON lines, the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
