"""Prepare questions to forget beside questions and text to retain.

Run as `python -m distill_jax.data.facts.prepare_facts --config=FILE.json --output=DIR`.

What is read becomes files of documents, which `prepare_text` tokenises and packs as any others. The sets `forget`, all
facts, and `forget_shown`, those that an attacker is shown, mark what is an answer. `evaluation.jsonl` has prompts:
the questions, and of text to retain beginnings of documents held out, whose answer is the token that follows.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from distill_jax.config import check
from distill_jax.data import overlap, packing, records
from distill_jax.data.atomic_build import log, run_command_line
from distill_jax.data.facts import facts
from distill_jax.data.facts.facts import Question
from distill_jax.data.facts.facts_config import FactsConfig
from distill_jax.data.multiple_choice.prepare_quiz import Prompts
from distill_jax.data.multiple_choice.questions import pair
from distill_jax.data.packed_set import write_packed_set
from distill_jax.data.random_stream import random_stream
from distill_jax.data.records import PromptItem
from distill_jax.data.text import prepare_text
from distill_jax.data.text.readers import documents
from distill_jax.data.text.sentencepiece_vocab import Vocabulary
from distill_jax.io.files import Digests, digest
from distill_jax.types import JsonObject

SHORTEST, LONGEST = 4, 64  # tokens of a document's beginning
FORGET, KEPT, TEXT = ("facts", "asked"), ("other facts", "asked"), ("text", "next token")  # (operation, form)


def prepare_facts(config: FactsConfig, directory: str) -> JsonObject:
    """Prepare the data into a directory and return its manifest; see `prepare_text`.

    Raises:
      ValueError: for whatever is wrong with them.
    """
    config = config if config.content else config.with_content_hash(Digests())
    shown, heldout = config.forget_split()
    asked, read = config.retain_sources()
    trained, measured = config.retain_split(facts.read(asked))
    folder = Path(directory, "documents")
    folder.mkdir(parents=True, exist_ok=True)
    if config.overlap == "refuse" and read:
        overlap.refuse((q.text for q in (*shown, *heldout)), documents(read))
    kept, left = _by_hash(config, documents(read))
    check(bool(left or measured), f"data.retain={config.retain!r}: nothing is left to measure by; give more of it")
    check(bool(kept or trained), f"data.retain={config.retain!r}: nothing is left to train on; give more of it")
    roles = {
        "forget": [q.text for q in shown], "valid_forget": [q.text for q in heldout],
        "retain": [*kept, *(q.text for q in trained)], "valid_retain": [*left, *(q.text for q in measured)],
    }  # fmt: skip
    files = {role: _write(folder / f"{role}.jsonl", texts) for role, texts in roles.items()}
    questions = {"shown": shown, "heldout": heldout, "retain": measured}
    write = functools.partial(write_facts, questions=questions, beginnings=left)
    rendered = dataclasses.replace(config, **files)  # type: ignore[arg-type]
    manifest = prepare_text.prepare_text(rendered, directory, write)
    shutil.rmtree(folder)
    return manifest


def _by_hash(config: FactsConfig, texts: Iterable[str]) -> tuple[list[str], list[str]]:
    kept: list[str] = []
    left: list[str] = []
    for text in texts:
        (left if facts.hashed(text) % 2**20 < config.validation_share * 2**20 else kept).append(text)
    return kept, left


def _write(path: Path, texts: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return str(path)


def write_facts(
    config: FactsConfig, words: Vocabulary, work: Path, *, questions: dict[str, list[Question]], beginnings: list[str]
) -> JsonObject:
    """Write prompts and the sets of facts, and return what the manifest says of them."""
    encoder = Prompts(words)
    prompts = [
        _prompt(encoder, question, part, KEPT if part == "retain" else FORGET)
        for part, asked in questions.items()
        for question in sorted(asked, key=lambda q: facts.hashed(q.text))[: config.prompts]
    ]
    prompts += _beginnings(config, encoder, words, beginnings)
    path = work / records.EVALUATION
    groups: dict[str, int] = {}
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts), "utf-8")
    for prompt in prompts:
        group = f"{prompt['operation']}/{prompt['form']}/{prompt['part']}"
        groups[group] = groups.get(group, 0) + 1
    log(f"prompts: {', '.join(f'{group} {count:,}' for group, count in groups.items())}")
    both = [*questions["shown"], *questions["heldout"]]
    sets = {"forget": both, "forget_shown": questions["shown"]}
    return {
        "sets": {name: _rows(config, name, encoder, words, asked, work) for name, asked in sets.items()},
        "evaluation": {"file": path.name, "groups": groups, "sha256": digest(path)},
        "facts": {part: sorted({q.fact for q in questions[part]}) for part in ("shown", "heldout")},
    }


def _prompt(encoder: Prompts, asked: Question, part: str, group: tuple[str, str]) -> PromptItem:
    before, after = pair(encoder, asked.question, f" {asked.answer}")
    mend = "the tokenizer joins it with what stands before; begin it otherwise"
    check(len(after) > 0, f"question {asked.question!r}: its answer has no token of its own: {mend}")
    return {
        "prompt": asked.question, "answer": asked.answer, "prompt_ids": before, "answer_ids": after,
        "operation": group[0], "form": group[1], "part": part, "fact": asked.fact,
    }  # fmt: skip


def _beginnings(config: FactsConfig, encoder: Prompts, words: Vocabulary, texts: list[str]) -> list[PromptItem]:
    """Return prompts of documents: a beginning of each, and the token that follows it."""
    random = random_stream(config.seed, "beginnings")
    out: list[PromptItem] = []
    for text in sorted(texts, key=facts.hashed):
        ids = encoder.encode(text[: 16 * LONGEST])
        if len(ids) > SHORTEST and len(out) < config.prompts:
            at = int(random.integers(SHORTEST, min(len(ids), LONGEST)))
            out.append(
                PromptItem(
                    prompt=words.decode(ids[:at]), answer=words.decode(ids[at : at + 1]),
                    prompt_ids=ids[:at], answer_ids=ids[at : at + 1],
                    operation=TEXT[0], form=TEXT[1], part="retain", fact=str(facts.hashed(text)),
                )
            )  # fmt: skip
    return out


def _rows(
    config: FactsConfig, name: str, encoder: Prompts, words: Vocabulary, asked: Sequence[Question], work: Path
) -> JsonObject:
    """Write the questions with their answers, marked as such, as rows."""
    documents = []
    for question in asked:
        before, after = pair(encoder, question.question, f" {question.answer}")
        before = before if before[:1] == [words.bos_id()] else [words.bos_id(), *before]
        tokens = np.array([*before, *after, words.eos_id()], np.int32)
        answer = np.zeros_like(tokens)
        answer[len(before) : -1] = 1
        documents.append(packing.Document(tokens, answer))
    order = random_stream(config.seed, "order", name).permutation(len(documents))
    return write_packed_set(work, name, (documents[i] for i in order), config.row_length, overlap=1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake in the settings ends in one line and exit code 2."""
    run_command_line("distill_jax.data.facts.prepare_facts", FactsConfig, prepare_facts, arguments)


if __name__ == "__main__":
    main()
