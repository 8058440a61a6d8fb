"""Prepare text and multiple-choice items.

Run as `python -m distill_jax.data.multiple_choice.prepare_quiz --config=FILE.json --output=DIR`.

The text becomes rows as in `prepare_text`. The items become token ids in `evaluation.jsonl`, one reading a line; and
those of the part `shown`, solved, the set `forget_shown`, which teaches an attacker half of the facts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from distill_jax.data import packing, records
from distill_jax.data.atomic_build import log, run_command_line
from distill_jax.data.multiple_choice import items
from distill_jax.data.multiple_choice.items import Item
from distill_jax.data.multiple_choice.questions import questions
from distill_jax.data.multiple_choice.quiz_config import QuizConfig
from distill_jax.data.packed_set import write_packed_set
from distill_jax.data.random_stream import random_stream
from distill_jax.data.text import hf_tokenizer, prepare_text
from distill_jax.data.text.sentencepiece_vocab import Vocabulary
from distill_jax.io.files import digest
from distill_jax.types import JsonObject


class Prompts:
    """A vocabulary behind whatever its model begins a prompt with."""

    def __init__(self, words: Vocabulary) -> None:
        self._words = words
        self._begin = words.begin() if isinstance(words, hf_tokenizer.Tokenizer) else [words.bos_id()]

    def encode(self, text: str) -> list[int]:
        """Turn text into ids."""
        return [*self._begin, *self._words.encode([text])[0]]


class Quiz(Protocol):
    """Settings of items that are measured, and of rows of those that an attacker is shown."""

    seed: int
    row_length: int
    longest: int

    def eval_splits(self) -> Parts:
        """Return (group, item, context) of each item of a part."""


Parts = Mapping[str, Sequence[tuple[str, Item, str]]]  # part -> (group, item, context) of each of its items


def write_evaluation(parts: Parts, longest: int, words: Vocabulary, work: Path) -> JsonObject:
    """Write the items' readings, and return what the manifest says of the evaluation."""
    encoder, lines, entries = Prompts(words), [], {}
    for part, measured in parts.items():
        groups, part_items, contexts = zip(*measured, strict=True)
        asked = questions(part_items, contexts, encoder, longest)
        for question in asked:
            item = {"part": part, "group": groups[question.item], "answer": part_items[question.item].answer}
            lines.append(json.dumps({**item, **dataclasses.asdict(question)}) + "\n")
        cut = len({question.item for question in asked if question.cut})
        entries[part] = {"items": len(part_items), "readings": len(asked), "cut": cut}
        log(f"items, {part}: {len(part_items):,}, read {len(asked):,} times" + (f"; {cut:,} cut" if cut else ""))
    path = work / records.EVALUATION
    path.write_text("".join(lines), "utf-8")
    return {"file": path.name, "parts": entries, "sha256": digest(path)}


def write_quiz(config: Quiz, words: Vocabulary, work: Path) -> JsonObject:
    """Write the items and the set `forget_shown`, and return what the manifest says of both."""
    parts = config.eval_splits()
    evaluation = write_evaluation(parts, config.longest, words, work)
    solved = words.encode([items.solved(item) for _, item, _ in parts["shown"]])
    shown = [[words.bos_id(), *ids, words.eos_id()] for ids in solved]
    return {"sets": {"forget_shown": _rows(config, shown, work)}, "evaluation": evaluation}


def _rows(config: Quiz, documents: list[list[int]], work: Path) -> JsonObject:
    order = random_stream(config.seed, "order", "forget_shown").permutation(len(documents))
    arrays = (np.array(documents[i], np.int32) for i in order)
    packed = (packing.Document(tokens, tokens * 0) for tokens in arrays)
    return write_packed_set(work, "forget_shown", packed, config.row_length, overlap=1)


def prepare_quiz(config: QuizConfig, directory: str) -> JsonObject:
    """Prepare the data into a directory and return its manifest; see `prepare_text`."""
    return prepare_text.prepare_text(config, directory, write_quiz)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake in the settings ends in one line and exit code 2."""
    run_command_line("distill_jax.data.multiple_choice.prepare_quiz", QuizConfig, prepare_quiz, arguments)


if __name__ == "__main__":
    main()
