"""Rows of JSON lines that a model reads: their tokens, batches of like length, and what comes out, in order."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from distill_jax.config import check
from distill_jax.data.lines import objects
from distill_jax.interop import tokenizers
from distill_jax.interop.chat import Chat
from distill_jax.interop.model_source import Model
from distill_jax.interop.tokenizers import Tokenizer
from distill_jax.io.files import write_atomic
from distill_jax.io.storage import make_directory
from distill_jax.types import JsonObject


@dataclasses.dataclass(frozen=True)
class Inference:
    """How a model reads rows.

    Attributes:
      dtype: of the computation, float32 or bfloat16.
      batch: rows at a time.
      tokenizer: of `text`, as `tokenizers.load` takes it; "" for the model's own.
      chat: whether `text` is a question that the model's own template puts.
    """

    dtype: str = "float32"
    batch: int = 8
    tokenizer: str = ""
    chat: bool = False


DEFAULT = Inference()


class Rows:
    """Rows with `text`, `tokens` or `messages`, for a model to read.

    Attributes:
      rows: as they were given.
      tokens: the tokens of each row.
      places: where each row is from, for errors.

    Args:
      named: (place, row) of each.
      model: that is to read them.
      tokenizer: that `text` needs, as `tokenizers.load` takes it; the model's own when "".
      chat: whether `text` is a question that the model's own template puts; `messages` are a conversation.

    Raises:
      ConfigError: naming the place of a row that is none.
    """

    def __init__(self, named: Iterable[tuple[str, JsonObject]], model: Model, tokenizer: str = "", chat: bool = False):
        limit = longest(model)
        self._tokenizer_source = tokenizer or model.tokenizer
        self._chat = Chat(self._tokenizer_source) if chat else None
        self.rows: list[JsonObject] = []
        self.tokens: list[list[int]] = []
        self.places: list[str] = []
        for place, row in named:
            tokens = self._tokens(row, model.cfg.vocab, place)
            mend = f"the model reads {limit:,} (max_position_embeddings); cut the row"
            check(not limit or len(tokens) <= limit, f"{place}: has {len(tokens):,} tokens; {mend}")
            self.rows.append(row)
            self.tokens.append(tokens)
            self.places.append(place)

    @classmethod
    def read(cls, path: Path, model: Model, tokenizer: str = "", chat: bool = False) -> Self:
        """Read the rows of a file of JSON lines; their places are `file:line`."""
        check(path.is_file(), f"--input={path}: no such file")
        rows = cls(objects(str(path)), model, tokenizer, chat)
        check(bool(rows.rows), f"--input={path}: holds no rows")
        return rows

    @functools.cached_property
    def tokenizer(self) -> SingleBegin:
        """The tokenizer, loaded when it is first needed."""
        return SingleBegin(tokenizers.load(self._tokenizer_source))

    def _encoded(self, row: JsonObject, place: str) -> list[int]:
        """Return the tokens of a row's text or messages; [] if it has neither."""
        if "messages" in row:
            check(self._chat is not None, f"{place}: messages: the model's template puts them; give --chat")
            check(_is_conversation(row["messages"]), f"{place}: messages: a list of {{role, content}} is needed")
        if self._chat and "messages" in row:
            return self._chat.encode(self._chat.conversation(row["messages"]))
        check(isinstance(row.get("text", ""), str), f"{place}: text: a string is needed")
        if "text" not in row:
            return []
        return self._chat.encode(self._chat.question(row["text"])) if self._chat else self.tokenizer.encode(row["text"])

    def _tokens(self, row: JsonObject, vocab: int, place: str) -> list[int]:
        spelled = "text" in row or "messages" in row
        kinds = "`text` or `tokens` (or, with --chat, `messages`)"
        check(spelled or "tokens" in row, f"{place}: a row has {kinds}; there is {', '.join(row) or 'none'}")
        encoded = self._encoded(row, place)
        tokens = row.get("tokens", encoded)
        what = "tokens" if "tokens" in row else "text (its tokens)"
        # As `score` writes them; it may have been another model's tokenizer.
        same = not spelled or tokens == encoded
        check(same, f"{place}: `tokens` are not those of `text`; give one of them")
        integers = isinstance(tokens, list) and all(type(t) is int for t in tokens)  # True is none
        check(integers and len(tokens) > 0, f"{place}: {what}: a list of at least one whole number is needed")
        check(0 <= min(tokens) <= max(tokens) < vocab, f"{place}: {what} must lie in 0 .. {vocab - 1}, the vocabulary")
        return tokens


def _is_conversation(messages: object) -> bool:
    """Return whether a value is a list of messages, each with texts for `role` and `content`."""
    if not isinstance(messages, list) or not messages:
        return False
    fields = [each.get(key) for each in messages if isinstance(each, dict) for key in ("role", "content")]
    return len(fields) == 2 * len(messages) and all(isinstance(field, str) for field in fields)


class SingleBegin:
    """A tokenizer that does not put what begins every text, `<bos>`, before a text that spells it there itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        begin = tokenizer.encode("a")[:1]
        self._begin = begin if begin == tokenizer.encode("")[:1] else []
        self.decode = tokenizer.decode

    def encode(self, text: str) -> list[int]:
        """Turn text into ids; what spells a special token is that token, as in transformers."""
        ids = self._tokenizer.encode(text)
        return ids[1:] if self._begin and ids[:2] == 2 * self._begin else ids


def batches(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Yield the rows' numbers in batches of like length, saying now and then how far it is."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    last = time.monotonic()
    for start in range(0, len(order), size):
        yield order[start : start + size]
        if time.monotonic() - last > 5:
            last = time.monotonic()
            print(f"{min(start + size, len(order))}/{len(order)} rows", file=sys.stderr, flush=True)


def longest(model: Model) -> int:
    """Return how many tokens a model may read, as transformers has it; 0 if that is not known."""
    return int(model.facts.get("max_position_embeddings") or 0)


def check_finite(good: np.ndarray, place: str, dtype: str) -> None:
    """Raise ConfigError unless all is good: what is not finite says nothing of a model, and is written nowhere."""
    mend = f"a weight is NaN or infinite, or too large for --dtype={dtype}; nothing is written"
    check(bool(np.all(good)), f"{place}: the model's logits are not finite: {mend}")


def padded_length(length: int) -> int:
    """Return a multiple of 16 at most a quarter longer, or 15: few lengths, for each is a program of its own."""
    step = max(16, 2 ** (length.bit_length() - 3))
    return -(-length // step) * step


def write(path: Path, rows: Sequence[JsonObject]) -> None:
    """Write rows as JSON lines, the file in one step; a reader of any kind finds no line's end within a row."""
    make_directory(path.parent)
    write_atomic(path, "".join(_line(row) for row in rows))


def _line(row: JsonObject) -> str:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return _LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


_LINE_ENDS = re.compile("[\u0085\u2028\u2029]")  # what str.splitlines cuts at and JSON does not escape
