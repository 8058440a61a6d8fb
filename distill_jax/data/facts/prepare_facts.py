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
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from distill_jax.config import check
from distill_jax.data import overlap, packing, records
from distill_jax.data.atomic_build import log, run_command_line
from distill_jax.data.facts import facts
from distill_jax.data.facts.facts import Question
from distill_jax.data.facts.facts_config import FactsConfig
from distill_jax.data.facts.wording import Answered, ChatWording, PlainWording, Wording
from distill_jax.data.multiple_choice.prepare_quiz import Prompts
from distill_jax.data.packed_set import write_packed_set
from distill_jax.data.random_stream import random_stream
from distill_jax.data.records import PromptItem
from distill_jax.data.text import hf_tokenizer, prepare_text
from distill_jax.data.text.chat_template import load_template
from distill_jax.data.text.readers import documents
from distill_jax.data.text.sentencepiece_vocab import Vocabulary
from distill_jax.io import storage
from distill_jax.io.files import Digests, digest
from distill_jax.types import JsonObject

SHORTEST, LONGEST = 4, 64  # tokens of a document's beginning
# (operation, form)
FORGET, KEPT, TEXT = ("facts", "asked"), ("other facts", "as trained on"), ("text", "next token")


def prepare_facts(config: FactsConfig, directory: str) -> JsonObject:
    """Prepare the data into a directory and return its manifest; see `prepare_text`.

    Raises:
      ValueError: for whatever is wrong with them.
    """
    config = config if config.content else config.with_content_hash(Digests())
    shown, heldout = config.forget_split()
    asked, read = config.retain_sources()
    trained = facts.read(asked)
    measured = config.retain_measured(trained)
    folder = storage.location(directory) / "documents"
    storage.make_directory(folder)
    if config.overlap == "refuse" and read:
        overlap.refuse((q.text for q in (*shown, *heldout)), documents(read))
    kept, left = _by_hash(config, documents(read))
    check(bool(left or measured), f"data.retain={config.retain!r}: nothing is left to measure by; give more of it")
    check(bool(kept or trained), f"data.retain={config.retain!r}: nothing is left to train on; give more of it")
    roles = {
        "forget": [q.text for q in shown], "valid_forget": [q.text for q in heldout],
        "retain": [*kept, *(q.text for q in trained)], "valid_retain": left,
    }  # fmt: skip
    files = {role: _write(folder / f"{role}.jsonl", texts) for role, texts in roles.items()}
    questions = {"shown": shown, "heldout": heldout, "retain": measured}
    write = functools.partial(write_facts, questions=questions, beginnings=left, kept=(kept, trained))
    rendered = dataclasses.replace(config, **files)  # type: ignore[arg-type]
    manifest = prepare_text.prepare_text(rendered, directory, write)
    storage.remove_tree(folder)
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
    config: FactsConfig, words: Vocabulary, work: Path, *, questions: dict[str, list[Question]], beginnings: list[str],
    kept: tuple[Sequence[str], Sequence[Question]] = ((), ()),
) -> JsonObject:  # fmt: skip
    """Write prompts and the sets of facts, and return what the manifest says of them.

    Args:
      kept: texts and questions to retain that are trained on; a fact of them is measured too. A chat
        template puts questions alone, so that with one the set `retain` is made of them here.
    """
    wording = _wording(config, words)
    prompts = [
        _prompt(wording, question, part, KEPT if part == "retain" else FORGET)
        for part, asked in questions.items()
        for question in sorted(asked, key=lambda q: facts.hashed(q.text))[: config.prompts]
    ]
    prompts += _beginnings(config, Prompts(words), words, beginnings)
    path = work / records.EVALUATION
    groups: dict[str, int] = {}
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts), "utf-8")
    for prompt in prompts:
        group = f"{prompt['operation']}/{prompt['form']}/{prompt['part']}"
        groups[group] = groups.get(group, 0) + 1
    log(f"prompts: {', '.join(f'{group} {count:,}' for group, count in groups.items())}")
    asked = {name: [_document(wording(q)) for q in questions[name]] for name in ("shown", "heldout")}
    sets = {"forget": [*asked["shown"], *asked["heldout"]], "forget_shown": asked["shown"]}
    if config.chat and kept[1]:
        texts = [_text(ids, words) for ids in words.encode(list(kept[0]))]
        sets["retain"] = [*texts, *(_document(wording(q), config.ANSWER) for q in kept[1])]
        sets["all"] = [*sets["retain"], *sets["forget"]]
    return {
        "sets": {name: _rows(config, name, documents, work) for name, documents in sets.items()},
        "evaluation": {"file": path.name, "groups": groups, "sha256": digest(path)},
        "facts": {part: sorted({q.fact for q in questions[part]}) for part in ("shown", "heldout")},
    }


def _wording(config: FactsConfig, words: Vocabulary) -> Wording:
    if not config.chat:
        return PlainWording(words)
    assert isinstance(words, hf_tokenizer.Tokenizer)
    return ChatWording(words, load_template(config.vocabulary))


def _prompt(wording: Wording, asked: Question, part: str, group: tuple[str, str]) -> PromptItem:
    answered = wording(asked)
    return {
        "prompt": asked.question, "answer": asked.answer, "prompt_ids": answered.before, "answer_ids": answered.answer,
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


def _document(asked: Answered, elsewhere: int = 0) -> packing.Document:
    """Return a question with its answer, which is marked as such; `elsewhere` marks all of it."""
    before = [*asked.begin, *asked.before]
    tokens = np.array([*before, *asked.answer, *asked.end], np.int32)
    answer = np.full_like(tokens, elsewhere)
    answer[len(before) : len(before) + len(asked.answer)] = 1
    return packing.Document(tokens, answer)


def _text(ids: Sequence[int], words: Vocabulary) -> packing.Document:
    """Return a text to retain, all of which counts as an answer."""
    tokens = np.array([words.bos_id(), *ids, words.eos_id()], np.int32)
    return packing.Document(tokens, np.ones_like(tokens))


def _rows(config: FactsConfig, name: str, documents: Sequence[packing.Document], work: Path) -> JsonObject:
    """Write documents as rows, in an order of the set's own."""
    order = random_stream(config.seed, "order", name).permutation(len(documents))
    return write_packed_set(work, name, (documents[i] for i in order), config.row_length, overlap=1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake in the settings ends in one line and exit code 2."""
    run_command_line("distill_jax.data.facts.prepare_facts", FactsConfig, prepare_facts, arguments)


if __name__ == "__main__":
    main()
