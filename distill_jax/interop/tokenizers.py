"""Tokenizers by where they are kept: tokenizer.json, a SentencePiece model, a GGUF file, or the shipped words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from distill_jax.config import ConfigError, check
from distill_jax.data.arithmetic.word_vocabulary import WordVocabulary
from distill_jax.data.text.gguf_tokenizer import tokenizer_files
from distill_jax.io.files import read_json, write_json
from distill_jax.io.gguf_header import is_gguf
from distill_jax.io.staging import local_input
from distill_jax.io.storage import make_directory, write_atomic

JSON, SENTENCEPIECE, SETTINGS = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
GENERATION = "generation_config.json"
# What goes along when a model is copied.
FILES = (JSON, SENTENCEPIECE, SETTINGS, "special_tokens_map.json", "chat_template.jinja", GENERATION)
WORDS = "words"


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
      finds_special: whether what spells a special token in a text is that token.
    """

    finds_special: bool

    def encode(self, text: str) -> list[int]:
        """Turn text into ids, behind whatever its model begins every text with."""

    def encode_as_is(self, text: str) -> list[int]:
        """Turn text into ids, with nothing before them."""

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids into text; special tokens vanish."""


def load(where: str) -> Tokenizer:
    """Load a tokenizer.

    Args:
      where: a directory, a file, a GGUF file among them, or "words".

    Raises:
      ConfigError: if there is none, naming the files it may be in.
    """
    if where == WORDS:
        return _Words()
    mend = f"give --tokenizer=FILE, a {JSON} or a SentencePiece model (*.model), or --tokenizer={WORDS}"
    check(bool(where), f"`text` needs a tokenizer, and the model has none: {mend}")
    path = local_input(where)
    if path.is_dir():
        files = [path / name for name in (JSON, SENTENCEPIECE) if (path / name).is_file()]
        fetch = f"`hf download OWNER/NAME {JSON} --local-dir {path}` fetches it"
        check(bool(files), f"{path}: has neither {JSON} nor {SENTENCEPIECE}; {fetch}, or {mend}")
        path = files[0]
    check(path.is_file(), f"{path}: no such file; {mend}")
    try:
        if is_gguf(path):
            return _Json(json.dumps(tokenizer_files(path)[JSON]))
        return _Json(path.read_text("utf-8")) if path.suffix == ".json" else _SentencePiece(path)
    except ConfigError:
        raise
    except Exception as error:  # each library has its own
        raise ConfigError(f"{path}: no tokenizer ({' '.join(str(error).split())[:200]})") from error


def copy(where: str, to: Path) -> None:
    """Copy a tokenizer's files, those that there are, into a directory; those of a GGUF file are made."""
    path = local_input(where)
    if is_gguf(path):
        make_directory(to)
        for name, contents in tokenizer_files(path).items():
            write_json(to / name, contents)
        return
    files = [path] if path.is_file() else [file for name in FILES if (file := beside(where, name))]
    for file in files:
        make_directory(to)
        write_atomic(to / (SENTENCEPIECE if file.suffix == ".model" else file.name), file.read_bytes())


def beside(where: str, name: str) -> Path | None:
    """Return a file of this name in a tokenizer's directory, if it has one and it is there."""
    path = local_input(where) / name if where not in ("", WORDS) else None
    return path if path and path.is_file() else None


class _Json:
    finds_special = True

    def __init__(self, definition: str):
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def encode_as_is(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))


class _SentencePiece:
    finds_special = False

    def __init__(self, path: Path):
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        settings = path.with_name(SETTINGS)
        begins = read_json(settings).get("add_bos_token", True) if settings.is_file() else True
        self._begin = [self._model.bos_id()] if begins and self._model.bos_id() >= 0 else []

    def encode(self, text: str) -> list[int]:
        return [*self._begin, *self.encode_as_is(text)]

    def encode_as_is(self, text: str) -> list[int]:
        return list(self._model.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._model.decode([i for i in ids if not self._model.is_control(i)]))


class _Words:
    finds_special = False

    def __init__(self) -> None:
        self._words = WordVocabulary()

    def encode(self, text: str) -> list[int]:
        return [self._words.bos_id, *self.encode_as_is(text)]

    def encode_as_is(self, text: str) -> list[int]:
        return list(self._words.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        return self._words.decode(ids)
