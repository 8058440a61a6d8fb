"""Reading of prepared data: rows by index, evaluation prompts, the manifest. Needs no TensorFlow."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np
from array_record.python import array_record_module

from distill_jax.config import ConfigError
from distill_jax.io.files import digest, read_sealed
from distill_jax.io.staging import local_copy
from distill_jax.io.storage import is_file, location
from distill_jax.types import JsonObject

MANIFEST, EVALUATION, EVALUATION_ROWS = "manifest.json", "evaluation.jsonl", "evaluation.array_record"
# group_size:1 makes every record its own compressed chunk, so that reading one row decompresses one row.
WRITER_OPTIONS = "group_size:1,zstd:3"
# Files up to this size are kept decoded in memory.
CACHE_BYTES = 256 * 2**20

Path = str | os.PathLike[str]


class PromptItem(TypedDict):
    """A line of `evaluation.jsonl` of prompts that have an answer."""

    prompt: str
    answer: str
    prompt_ids: list[int]
    answer_ids: list[int]
    operation: str
    form: str
    part: str
    fact: str


class ChoiceReading(TypedDict):
    """A line of `evaluation.jsonl` of multiple-choice items: one `Question`, its part, its group and the answer."""

    part: str
    group: str
    answer: int
    item: int
    choices: list[int]
    tokens: list[int]
    own: int
    last: list[int]
    cut: int


class Rows:
    """Read the packed rows of one set by index.

    Attributes:
      path: the ArrayRecord file.
      row_length: tokens in a row.

    Raises:
      ValueError: the file is missing, holds no rows, or a record is not a whole row; the message names the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        if not location(path).is_file():
            raise ValueError(f"{self.path}: no such file; prepare the data first")
        self._reader = array_record_module.ArrayRecordReader(os.fspath(local_copy(location(path))))
        # A file cut short opens without complaint and reports no records.
        self._length: int = self._reader.num_records()
        if not self._length:
            raise ValueError(f"{self.path}: holds no rows; it is empty or damaged, prepare the data again")
        self.row_length = len(self._reader.read([0])[0]) // 12
        small = self._length * self.row_length * 12 <= CACHE_BYTES
        self._memory = self._decode(self._reader.read_all()) if small else None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> np.ndarray:
        return self.gather([index])[0]

    def gather(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read rows by index, int32 [len(indices), 3, row_length]."""
        wanted = np.asarray(indices, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self._length:
            raise IndexError(f"{self.path}: has rows 0..{self._length - 1}, wanted {wanted.min()}..{wanted.max()}")
        if self._memory is not None:
            return self._memory[wanted]
        return self._decode(self._reader.read(wanted.tolist()))

    def _decode(self, records: Sequence[bytes]) -> np.ndarray:
        size = 12 * self.row_length
        if not size or any(len(record) != size for record in records):
            raise ValueError(f"{self.path}: damaged, a record is not a row of {size} bytes; prepare the data again")
        return np.frombuffer(b"".join(records), "<i4").reshape(-1, 3, self.row_length)


def write_rows(path: Path, rows: Iterable[np.ndarray]) -> int:
    """Write rows, an iterable of int32 arrays [3, row_length], as one ArrayRecord file; return their number."""
    writer = array_record_module.ArrayRecordWriter(os.fspath(path), WRITER_OPTIONS)
    count = 0
    for row in rows:
        writer.write(row.astype("<i4").tobytes())
        count += 1
    writer.close()
    return count


def special_tokens(directory: Path) -> dict[str, int]:
    """Return the ids `bos`, `eos` and `pad` of prepared text; none of what is no text, or not prepared."""
    if not is_file(location(directory) / MANIFEST):
        return {}
    vocabulary = load_manifest(directory).get("vocabulary", {})
    return {name: int(vocabulary[name]) for name in ("bos", "eos", "pad") if name in vocabulary}


def load_manifest(directory: Path) -> JsonObject:
    """Read the manifest of a prepared directory.

    Raises:
      ConfigError: where preparation has not finished, or the manifest is not what it wrote.
    """
    path = location(directory) / MANIFEST
    if not is_file(path):
        raise ConfigError(
            f"{path}: missing, preparation has not finished; run the same command again, or `distill-jax data`"
        )
    try:
        return read_sealed(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: damaged, or an earlier version's; prepare the data again") from error


def load_evaluation(directory: Path) -> list[JsonObject]:
    """Read the evaluation prompts: dicts of prompt, answer, prompt_ids, answer_ids, operation, form, part, fact."""
    path = location(directory) / EVALUATION
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: missing or damaged; prepare the data again") from error


def entries(manifest: JsonObject) -> list[JsonObject]:
    """Return a manifest's entries of the files of its directory."""
    all_entries = (*manifest["sets"].values(), manifest["evaluation"], manifest.get("vocabulary", {}))
    return [
        entry for entry in all_entries if "file" in entry
    ]  # the shipped vocabulary has none, images have no vocabulary


def verify(directory: Path) -> None:
    """Hash every prepared file and compare with the manifest; ConfigError names one that is missing or damaged."""
    local = local_copy(location(directory))
    for entry in entries(load_manifest(directory)):
        path = location(directory) / entry["file"]
        if not (local / entry["file"]).is_file():
            raise ConfigError(f"{path}: missing; prepare the data again")
        if digest(local / entry["file"]) != entry["sha256"]:
            raise ConfigError(f"{path}: damaged, its hash differs from the manifest's; prepare the data again")
