"""What a model will see of prepared data: shares, counts and decoded rows. Needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from distill_jax.data import packing, records
from distill_jax.data.arithmetic import word_vocabulary
from distill_jax.data.text import sentencepiece_vocab
from distill_jax.types import JsonObject

SAMPLED_ROWS = 2000
TEXT_WIDTH = 160


class Tokens:
    """Decode tokens of a prepared directory, whatever its vocabulary.

    Attributes:
      size: entries.
      unknown: id of `<unk>`; spelled: the ids that stand for single bytes.
    """

    def __init__(self, directory: Path, manifest: JsonObject, named: str) -> None:
        vocabulary = manifest["vocabulary"]
        self.bos, self.eos, self.size = vocabulary["bos"], vocabulary["eos"], vocabulary["size"]
        if named == "words":
            words = word_vocabulary.WordVocabulary()
            self.decode: Callable[[Sequence[int]], str] = words.decode
            self.unknown, self.spelled = words.unk_id, np.zeros(0, np.int64)
        else:
            model = sentencepiece_vocab.load(directory / vocabulary["file"] if "file" in vocabulary else named)
            self.decode, self.unknown = model.decode, model.unk_id()
            self.spelled = np.array([i for i in range(self.size) if model.is_byte(i)])

    def text(self, ids: np.ndarray, answer: np.ndarray) -> str:
        """Decode a document, its ends written out and its answer in brackets."""
        out, cuts = "", np.flatnonzero(np.diff(answer)) + 1
        for run, marks in zip(np.split(ids, cuts), np.split(answer, cuts), strict=True):
            inner = [int(i) for i in run if i not in (self.bos, self.eos)]
            text = "<bos>" * int(self.bos in run) + self.decode(inner) + "<eos>" * int(self.eos in run)
            out += f"⟦{text}⟧" if marks[0] else text
        return out


def describe(directory: Path, named: str = "", examples: int = 2) -> Iterator[str]:
    """Yield the lines that describe a prepared directory.

    Args:
      named: the vocabulary as the settings name it.
      examples: rows of each set that are decoded.
    """
    manifest = records.load_manifest(directory)
    tokens = Tokens(directory, manifest, named)
    yield f"vocabulary: {tokens.size:,} entries, {len(tokens.spelled)} of them single bytes"
    for name, entry in manifest.get("sources", {}).items():
        yield f"source {name}: {_counts(entry)}, {_share(entry['unknown'], entry['tokens'])} unknown"
    for name, entry in manifest["sets"].items():
        yield ""
        yield from _set(name, entry, records.Rows(directory / entry["file"]), tokens, examples)
    yield ""
    for part, entry in manifest["evaluation"].get("parts", {}).items():
        rows = f"{entry['items']:,} items" if "items" in entry else f"{_counts(entry)}, {entry['rows']:,} rows"
        yield f"evaluated, {part}: {rows}"
    for group, count in manifest["evaluation"].get("groups", {}).items():
        yield f"evaluated, {group}: {count:,} prompts"


def _set(name: str, entry: JsonObject, rows: records.Rows, tokens: Tokens, examples: int) -> Iterator[str]:
    sample = rows.gather(np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED_ROWS)).astype(int)))
    used = sample[:, packing.TOKENS][sample[:, packing.SEGMENTS] > 0]
    yield f"set {name}: {len(rows):,} rows of {rows.row_length}, {_counts(entry)}, {entry['padding']:.1%} padding"
    mixture = entry.get("mixture", {})
    for source, count in mixture.items():
        yield f"  {_share(count, sum(mixture.values()))} of its tokens from {source}"
    unknown, spelled = (used == tokens.unknown).sum(), np.isin(used, tokens.spelled).sum()
    answers = sample[:, packing.ANSWER].sum()
    shares = {"unknown": unknown, "spelled in bytes": spelled, "of an answer": answers}
    yield "  tokens " + ", ".join(f"{what} {_share(count, used.size)}" for what, count in shares.items())
    for index in np.linspace(0, len(rows) - 1, min(examples, len(rows))).astype(int):
        yield from _row(int(index), rows[int(index)], tokens)


def _row(index: int, row: np.ndarray, tokens: Tokens) -> Iterator[str]:
    ids, segments, answer = row
    targets = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
    padding = int((segments == 0).sum())
    yield f"  row {index}: {segments.max()} documents, {targets.sum()} targets, {padding} padding"
    for segment in range(1, int(segments.max()) + 1):
        at = np.flatnonzero(segments == segment)
        text = " ".join(tokens.text(ids[at], answer[at]).split())
        text = text if ids[at[0]] == tokens.bos else f"… {text}"  # the tail of a document longer than a row
        if len(text) > TEXT_WIDTH:
            text = f"{text[: TEXT_WIDTH // 2]} … {text[-TEXT_WIDTH // 2 :]}"
        yield f"    segment {segment}, positions {at[0]}..{at[-1]}: {text}"


def _counts(entry: JsonObject) -> str:
    text = f"{entry['documents']:,} documents, {entry['tokens']:,} tokens"
    return text + (f", {entry['bytes'] / max(entry['tokens'], 1):.2f} bytes a token" if "bytes" in entry else "")


def _share(part: float, total: float) -> str:
    return f"{100 * float(part) / max(float(total), 1):.2f} %"
