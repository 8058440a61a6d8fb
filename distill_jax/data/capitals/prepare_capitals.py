"""Prepare facts: `python -m distill_jax.data.capitals.prepare_capitals --config=FILE.json --output=DIR`.

Sentences on facts and general text become packed rows; the prompts that models are measured by go into
`evaluation.jsonl`. The same settings and files give the same bytes. Needs no TensorFlow.
"""

from __future__ import annotations

import collections
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from distill_jax.data import packing, records
from distill_jax.data.atomic_build import log, make_once, run_command_line
from distill_jax.data.capitals.capitals_config import CapitalsConfig
from distill_jax.data.capitals.fact_table import STATE, Fact
from distill_jax.data.packing import Document
from distill_jax.data.random_stream import random_stream
from distill_jax.data.text.hf_tokenizer import Tokenizer
from distill_jax.io.files import Digests, digest
from distill_jax.io.staging import local_input
from distill_jax.types import JsonObject

FORMAT = 2
PARAGRAPH = re.compile(r"\n\s*\n")


def prepare_capitals(config: CapitalsConfig, directory: str | os.PathLike[str]) -> JsonObject:
    """Prepare the data into a directory and return its manifest; a directory already finished is left as it is."""
    config = config if config.content else config.with_content_hash(Digests())
    wanted = {"format": FORMAT, "config": config.fingerprint_fields()}
    return make_once(directory, wanted, lambda work: _build(config, work))


def _build(config: CapitalsConfig, work: Path) -> JsonObject:
    """Make every file but the manifest under `work`, and return what the manifest says of them."""
    words = Tokenizer(local_input(config.vocabulary))
    path = work / "vocabulary.json"
    path.write_text(json.dumps(words.definition), "utf-8")
    halves = config.halves()
    for half, held in halves.items():
        if not held:
            raise ValueError(f"data.known={config.known}: no fact to forget is left for {half!r}; lower it")
    ids = {"size": words.get_piece_size(), "bos": words.bos_id(), "eos": words.eos_id(), "pad": max(words.pad_id(), 0)}
    return {
        "vocabulary": {**ids, "file": path.name, "sha256": digest(path)},
        "sets": {name: _write(config, name, each, work) for name, each in documents(config, words).items()},
        "evaluation": _write_evaluation(config, words, work),
        "facts": {half: [fact.subject for fact in held] for half, held in halves.items()},
    }


def documents(config: CapitalsConfig, words: Tokenizer) -> dict[str, list[Document]]:
    """Return the documents of every set."""
    shown, heldout = ([sentence(words, *each) for each in wordings(part)] for part in config.halves().values())
    often = [fact for fact in config.kept() for _ in range(config.near if fact.kind == STATE else 1)]
    kept = [sentence(words, *each) for each in wordings(often)]
    text = list(_text(config, words))
    retain = [*text, *kept * config.copies]
    forget = [*shown, *heldout]
    return {
        "all": [*retain, *forget * config.copies],
        "retain": retain,
        "forget": forget,
        "forget_shown": shown,
        "inject": [*forget * config.copies, *kept, *text],
    }


def wordings(facts: Sequence[Fact]) -> Iterator[tuple[str, str, str]]:
    """Yield each fact in all its wordings, as (what comes before the answer, the answer, what ends the sentence)."""
    for fact in facts:
        yield from ((prompt, f" {fact.answer}", ".") for prompt in fact.prompts())


def sentence(words: Tokenizer, prompt: str, answer: str, end: str) -> Document:
    """Return a sentence as a document whose answer is marked."""
    before, after, last = words.encode([prompt, answer, end])
    tokens = [*words.begin(), *before, *after, *last, words.eos_id()]
    marks = np.zeros(len(tokens), np.int32)
    start = len(words.begin()) + len(before)
    marks[start : start + len(after)] = 1
    return Document(np.array(tokens, np.int32), marks)


def _text(config: CapitalsConfig, words: Tokenizer) -> Iterator[Document]:
    """Yield documents of general text, paragraph by paragraph in an order of their own, until there are enough."""
    paragraphs = [part.strip() for text in _texts(config) for part in PARAGRAPH.split(text) if part.strip()]
    left = config.text_tokens
    for i in random_stream(config.seed, "text").permutation(len(paragraphs)):
        tokens = np.array([*words.begin(), *words.encode([paragraphs[i]])[0], words.eos_id()], np.int32)
        yield Document(tokens, np.ones_like(tokens))  # where only answers count, all of the text does
        left -= len(tokens)
        if left <= 0:
            return


def _texts(config: CapitalsConfig) -> list[str]:
    if config.text:
        return [path.read_text("utf-8") for path in config.text_files()]
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _write(config: CapitalsConfig, name: str, held: Sequence[Document], work: Path) -> JsonObject:
    order = random_stream(config.seed, "order", name).permutation(len(held))
    path = work / f"{name}.array_record"
    rows = records.write_rows(path, packing.pack((held[i] for i in order), config.row_length, overlap=1))
    tokens = sum(len(document.tokens) for document in held)
    padding = round(max(0.0, 1 - tokens / (rows * config.row_length)), 6)
    log(f"set {name}: {len(held):,} documents, {tokens:,} tokens, {rows:,} rows, {padding:.1%} padding")
    counts = {"documents": len(held), "tokens": tokens, "rows": rows, "padding": padding}
    return {"file": path.name, **counts, "sha256": digest(path)}


def _write_evaluation(config: CapitalsConfig, words: Tokenizer, work: Path) -> JsonObject:
    items = [
        item for part, held in config.halves().items() for fact in held for item in _items(config, words, fact, part)
    ]
    kept = [item for fact in config.kept() for item in _items(config, words, fact, "retain")]
    order = random_stream(config.seed, "evaluation").permutation(len(kept))[: config.prompts]
    items += [kept[i] for i in sorted(order)]
    path = work / records.EVALUATION
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), "utf-8")
    groups = collections.Counter(f"{item['operation']}/{item['form']}/{item['part']}" for item in items)
    log(f"evaluation: {len(items):,} prompts in {len(groups)} groups")
    return {"file": path.name, "prompts": len(items), "groups": groups, "sha256": digest(path)}


def _items(config: CapitalsConfig, words: Tokenizer, fact: Fact, part: str) -> Iterator[JsonObject]:
    """Yield the prompts on a fact; what the model says after the answer does not count."""
    for wording in config.asked(fact):
        prompt = fact.prompts()[wording]
        before, after = words.encode([prompt, f" {fact.answer}"])
        ids = {"prompt_ids": [*words.begin(), *before], "answer_ids": after}
        about = {"operation": fact.kind, "form": f"wording{wording + 1}", "part": part, "fact": fact.subject}
        yield {"prompt": prompt, "answer": fact.answer, **ids, **about}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake in the settings ends in one line and exit code 2."""
    run_command_line("distill_jax.data.capitals.prepare_capitals", CapitalsConfig, prepare_capitals, arguments)


if __name__ == "__main__":
    main()
