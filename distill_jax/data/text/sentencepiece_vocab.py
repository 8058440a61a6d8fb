"""SentencePiece vocabularies, trained on the user's own text so that nothing gated is needed. Needs no TensorFlow."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from distill_jax.config import ConfigError
from distill_jax.data.text import hf_tokenizer
from distill_jax.data.text.readers import Piece
from distill_jax.data.text.sources import Shard
from distill_jax.io.staging import local_input

LINE_BYTES = 4096
PAD, EOS, BOS, UNK = range(4)


class Vocabulary(Protocol):
    """What a SentencePiece processor and a published model's tokenizer have in common."""

    def get_piece_size(self) -> int: ...
    def bos_id(self) -> int: ...
    def eos_id(self) -> int: ...
    def pad_id(self) -> int: ...
    def unk_id(self) -> int: ...
    def is_byte(self, index: int, /) -> bool: ...
    def encode(self, texts: Sequence[str], /) -> list[list[int]]: ...
    def decode(self, ids: Sequence[int], /) -> str: ...


def load(path: str | Path) -> Vocabulary:
    """Load a vocabulary; ConfigError if it is none, or has no `<bos>` or no `<eos>`.

    Args:
      path: a SentencePiece model, the directory of a published model with its tokenizer.json, or its GGUF file.
    """
    local = local_input(path)
    if hf_tokenizer.is_published(local) or local.suffix == ".json":
        return hf_tokenizer.Tokenizer(local)
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(local))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"data.vocabulary={str(path)!r}: not a SentencePiece model, or a damaged one") from error
    if min(model.bos_id(), model.eos_id()) < 0:
        raise ConfigError(f"data.vocabulary={str(path)!r}: the model has no <bos> or no <eos>; train it with both")
    return model


def train(texts: Iterable[str], size: int) -> bytes:
    """Train a byte-pair vocabulary that loses nothing: what it has no piece for it spells in bytes.

    No text is normalised, and digits stand alone, as in Gemma's. The same texts give the same model.

    Raises:
      ValueError: if the texts want more or allow fewer entries.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, vocab_size=size, model_type="bpe", byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
            split_digits=True, character_coverage=0.9995, max_sentence_length=4 * LINE_BYTES,
            pad_id=PAD, eos_id=EOS, bos_id=BOS, unk_id=UNK, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        reason = str(error).rsplit("] ", 1)[-1].strip() or "the text does not give that many"
        raise ValueError(
            f"data.vocabulary_size={size}: no such vocabulary comes out of this text ({reason})"
        ) from error
    return model.getvalue()


def sample(shards: Sequence[Shard], size: int, read: Callable[[Shard], Iterable[Piece]]) -> Iterator[str]:
    """Yield about `size` bytes of text, an equal part from the head of every shard, in lines."""
    for shard in shards:
        left = size // len(shards)
        for piece in read(shard):
            for line in itertools.chain.from_iterable(map(_short, piece.text.splitlines())):
                yield line
                left -= len(line.encode())
            if left <= 0:
                break


def _short(line: str) -> Iterator[str]:
    for start in range(0, len(line), LINE_BYTES):
        yield line[start : start + LINE_BYTES]
