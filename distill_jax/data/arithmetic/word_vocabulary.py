"""The shipped word-level vocabulary: a tokenizer in plain Python over `words.txt`.

Text is lower-cased (ASCII) and cut into words, single digits and single punctuation marks; anything that is not in
`words.txt` becomes `<unk>`. One entry a line, the line number is the id.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Iterable

from distill_jax.data.arithmetic import word_problems

PAD, EOS, BOS, UNK = range(4)
SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>")
DIGITS = tuple("0123456789")
OPERATORS = ("+", "-", "*", "/", "=")
PUNCTUATION = (".", ",", "?")

# Both patterns name their characters one by one so that Python's `re` and TensorFlow's RE2 agree on every string.
_PIECE = re.compile(r"[a-z]+|[^a-z \t\n\r\f\v]")
LONE_CHARACTER = r"([^a-z \t\n\r\f\v])"


def split(text: str) -> list[str]:
    """Cut text into lower-case words, digits and punctuation marks."""
    # bytes.lower touches ASCII only, as tf.strings.lower does.
    return _PIECE.findall(text.encode().lower().decode())


def required_entries() -> tuple[str, ...]:
    """Compute the entries that the templates need, in the order of their ids."""
    sentences = (
        s for part in (word_problems.TRAINING, word_problems.HELD_OUT) for group in part.values() for s in group
    )
    words = {piece for s in sentences for piece in split(s.format(a=0, b=0)) if piece.isalpha()}
    return (*SPECIALS, *DIGITS, *OPERATORS, *PUNCTUATION, *sorted(words))


@functools.cache
def load_entries() -> tuple[str, ...]:
    """Read the shipped entries; an entry's place is its id."""
    return tuple(importlib.resources.files(__package__).joinpath("words.txt").read_text("utf-8").splitlines())


class WordVocabulary:
    """Turn text into ids and back.

    Attributes:
      entries: every entry; the index is the id.
      size: number of entries.
      pad_id, eos_id, bos_id, unk_id: ids of the special entries; neither they nor their names occur in encoded text.
    """

    pad_id, eos_id, bos_id, unk_id = PAD, EOS, BOS, UNK

    def __init__(self) -> None:
        self.entries = load_entries()
        self.size = len(self.entries)
        self._ids = {entry: index for index, entry in enumerate(self.entries)}

    def encode(self, text: str) -> list[int]:
        """Turn text into ids, without `<bos>` and `<eos>`."""
        return [self._ids.get(piece, UNK) for piece in split(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text up to the first `<eos>`; `<pad>` and `<bos>` vanish, an id without entry reads `<unk>`."""
        text, before = "", ""
        for index in ids:
            if index == EOS:
                break
            if index in (PAD, BOS):
                continue
            entry = self.entries[index] if 0 <= index < self.size else SPECIALS[UNK]
            joined = entry in PUNCTUATION or (entry in DIGITS and before in DIGITS)
            text += entry if joined or not text else f" {entry}"
            before = entry
        return text


if __name__ == "__main__":
    with importlib.resources.as_file(importlib.resources.files(__package__).joinpath("words.txt")) as path:
        path.write_text("\n".join(required_entries()) + "\n", "utf-8")
    print(f"words.txt: {len(required_entries())} entries")
