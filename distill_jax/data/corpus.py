"""Tokenised documents in memory, and which of them a set takes. Needs no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from distill_jax.data import packing

READ_BATCH = 4096
ENGLISH = "english"  # the one source that is taken by tokens, not whole


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents end to end: `tokens` and `answer` int32 [total], document i is bounds[i]..bounds[i + 1].

    Two flat arrays, because millions of documents as Python objects would cost more than their tokens.
    """

    tokens: np.ndarray
    answer: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> packing.Document:
        place = slice(self.bounds[index], self.bounds[index + 1])
        return packing.Document(self.tokens[place], self.answer[place])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64 [documents]."""
        return np.diff(self.bounds)


def gather(parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Corpus:
    """Join (tokens, answer, lengths) parts into one Corpus."""
    tokens, answer, lengths = zip((np.zeros(0, np.int32),) * 3, *parts, strict=True)
    bounds = np.concatenate([[0], *lengths]).cumsum(dtype=np.int64)
    return Corpus(np.concatenate(tokens), np.concatenate(answer), bounds)


class Task(Protocol):
    """What is read of a SeqIO task, whose package only data preparation imports."""

    name: str

    def get_dataset(self, *, split: str, shuffle: bool, try_in_mem_cache: bool) -> Any: ...


class Mixture(Protocol):
    """What is read of a SeqIO mixture."""

    tasks: Sequence[Task]

    def get_rate(self, task: Task) -> float: ...


def read(task: Task, at_least: float = np.inf) -> Corpus:
    """Read the documents of a SeqIO task in their order: all, or as many as bring `at_least` tokens."""
    dataset = task.get_dataset(split="train", shuffle=False, try_in_mem_cache=False)
    parts, total = [], 0
    for batch in dataset.ragged_batch(READ_BATCH):  # one eager call for thousands of documents
        tokens, answer = batch["tokens"], batch["answer"]
        parts.append((tokens.flat_values.numpy(), answer.flat_values.numpy(), tokens.row_lengths().numpy()))
        total += len(parts[-1][0])
        if total >= at_least:
            break
    return gather(parts)


def cycle(lengths: np.ndarray, tokens: float) -> np.ndarray:
    """Choose documents in turn, over and over, until they have at least `tokens` tokens: int64 [chosen]."""
    if tokens <= 0:
        return np.zeros(0, np.int64)
    passes, rest = divmod(tokens, int(lengths.sum()))
    last = int(np.searchsorted(lengths.cumsum(), rest)) + 1 if rest else 0
    return np.concatenate([np.tile(np.arange(len(lengths)), int(passes)), np.arange(last)])


class Pool:
    """Hold the documents of all tasks, and choose from them the documents of a set.

    Attributes:
      documents: every task's documents in one Corpus.
      places: for each task, the indices of its documents there.
    """

    def __init__(self, corpora: Mapping[str, Corpus]) -> None:
        self.documents = gather([(part.tokens, part.answer, part.lengths) for part in corpora.values()])
        ends = np.cumsum([len(part) for part in corpora.values()])
        self.places = {name: np.arange(end - len(corpora[name]), end) for name, end in zip(corpora, ends, strict=True)}

    def choose(self, rates: Mapping[str, float]) -> np.ndarray:
        """Choose every document of the tasks with a rate, and English up to its share of the tokens: int64 [chosen]."""
        chosen = np.concatenate([self.places[name] for name in rates if name != ENGLISH])
        if ENGLISH not in rates:
            return chosen
        english, lengths = self.places[ENGLISH], self.documents.lengths
        budget = english_tokens(rates, int(lengths[chosen].sum()))
        return np.concatenate([chosen, english[cycle(lengths[english], budget)]])


def english_tokens(rates: Mapping[str, float], arithmetic_tokens: int) -> float:
    """Compute how many tokens of English stand beside so many of arithmetic."""
    english = rates.get(ENGLISH, 0.0)
    return arithmetic_tokens * english / (sum(rates.values()) - english)
