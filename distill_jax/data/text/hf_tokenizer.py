"""Vocabularies of published models: tokenizer.json, and the special tokens that the files beside it name.

Prepared data keep them in one file: {"tokenizer", "bos", "eos", "pad"}. Needs no TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from distill_jax.config import ConfigError
from distill_jax.data.text.gguf_tokenizer import GENERATION, tokenizer_files
from distill_jax.io.gguf_header import is_gguf
from distill_jax.io.storage import location
from distill_jax.types import JsonObject

JSON, SETTINGS, CONFIG = "tokenizer.json", "tokenizer_config.json", "config.json"


class Tokenizer:
    """A tokenizer.json, with the methods that SentencePiece's processors have.

    Args:
      path: the model's directory, its GGUF file, or the one file that prepared data keep.

    Raises:
      ConfigError: if there is no such tokenizer, or nothing names its `<bos>` or its `<eos>`.
    """

    def __init__(self, path: Path):
        import tokenizers

        where = f"data.vocabulary={str(path)!r}"
        try:
            definition = gather(path) if is_published(path) else json.loads(path.read_text("utf-8"))
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition["tokenizer"]))
        except ConfigError:
            raise
        except OSError as error:
            raise ConfigError(f"{where}: {error.filename} cannot be read: {error.strerror}") from error
        except Exception as error:  # the library has its own
            raise ConfigError(f"{where}: no tokenizer ({' '.join(str(error).split())[:200]})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A document that spells `<eos>` does not end there.
        self._tokenizer.encode_special_tokens = True
        self.definition = definition
        for name in ("bos", "eos"):
            fix_hint = f"name its {name}_token in {SETTINGS}, or its {name}_token_id in {CONFIG}"
            if not isinstance(definition[name], int):
                raise ConfigError(f"{where}: nothing says what <{name}> is; {fix_hint}")

    def get_piece_size(self) -> int:
        """Return the number of entries, those added to the vocabulary among them."""
        return int(self._tokenizer.get_vocab_size())

    def bos_id(self) -> int:
        """Return the id that begins a document."""
        return int(self.definition["bos"])

    def eos_id(self) -> int:
        """Return the id that ends a document."""
        return int(self.definition["eos"])

    def begin(self) -> list[int]:
        """Return what the model begins a prompt with: `<bos>`, or nothing."""
        return list(self._tokenizer.encode("").ids)

    def pad_id(self) -> int:
        """Return the id of padding, or -1."""
        return -1 if self.definition["pad"] is None else int(self.definition["pad"])

    def unk_id(self) -> int:
        """Return the id of what the vocabulary does not have, or -1."""
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        index = None if unknown is None else self._tokenizer.token_to_id(unknown)
        return -1 if index is None else int(index)

    def is_byte(self, index: int) -> bool:
        """Return whether an id spells a byte."""
        entry = self._tokenizer.id_to_token(index) or ""
        return len(entry) == 6 and entry.startswith("<0x") and entry.endswith(">")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Turn texts into ids, without `<bos>` and `<eos>`."""
        return [list(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def encode_as_is(self, text: str) -> list[int]:
        """Turn text that a template wrote into ids: what spells a special token is that token."""
        self._tokenizer.encode_special_tokens = False
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        finally:
            self._tokenizer.encode_special_tokens = True

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))


def is_published(path: str | Path) -> bool:
    """Return whether a path is of a published model: a directory, or a GGUF file."""
    return str(path) != "" and (location(path).is_dir() or is_gguf(path))  # an empty path is the directory we are in


def files(directory: Path) -> list[Path]:
    """Return the files of a published model that the vocabulary depends on."""
    if is_gguf(directory):
        return [directory]
    return [directory / name for name in (JSON, SETTINGS, CONFIG) if (directory / name).is_file()]


def gather(path: Path) -> JsonObject:
    """Return what prepared data keep of a published model."""
    held = tokenizer_files(path) if is_gguf(path) else {f.name: json.loads(f.read_text("utf-8")) for f in files(path)}
    tokenizer = held[JSON]
    ids = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    out: JsonObject = {"tokenizer": tokenizer}
    for name in ("bos", "eos", "pad"):
        token = held.get(SETTINGS, {}).get(f"{name}_token")
        token = token["content"] if isinstance(token, dict) else token
        fallback = held.get(CONFIG, held.get(GENERATION, {})).get(f"{name}_token_id")
        out[name] = ids.get(token, fallback[0] if isinstance(fallback, list) else fallback)
    return out
