"""Prepare the arithmetic data: `python -m distill_jax.data.arithmetic.prepare_arithmetic --config=… --output=DIR`.

Writes one ArrayRecord file of packed rows for each of the sets all, retain, forget and forget_shown,
`evaluation.jsonl`, and last, atomically, `manifest.json`: a directory with a manifest is complete. The same settings
give the same bytes.
"""

from __future__ import annotations

import collections
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from distill_jax.data import corpus, import_tf, records
from distill_jax.data.arithmetic import checks, equations, label_filter
from distill_jax.data.atomic_build import log, make_once, run_command_line
from distill_jax.data.packed_set import write_packed_set
from distill_jax.data.random_stream import random_stream
from distill_jax.io.files import digest
from distill_jax.types import JsonObject

FORMAT = 1


class SeqioVocabulary(Protocol):
    """What is read of a SeqIO vocabulary."""

    bos_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]: ...


def prepare(config: equations.ArithmeticConfig, directory: str | os.PathLike[str]) -> JsonObject:
    """Prepare the data into a directory and return its manifest; a directory already finished is left as it is.

    Raises:
      ValueError: the directory holds data of other settings, a row is too short for an arithmetic document, English is
        wanted of files without text, or a SentencePiece model lacks a special token.
    """
    return make_once(directory, _identity(config), lambda work: _build(config, work))


def _identity(config: equations.ArithmeticConfig) -> JsonObject:
    """Collect all that the prepared bytes depend on."""
    files = [*config.english, *([] if config.vocabulary == "words" else [config.vocabulary])]
    inputs = {path: digest(path) for path in files}
    return {"format": FORMAT, "config": config.fingerprint_fields(), "inputs": inputs}


def _build(config: equations.ArithmeticConfig, work: Path) -> JsonObject:
    """Make every file but the manifest under `work`, and return what the manifest says of them."""
    builder, tasks = import_tf.import_builder_and_tasks()  # here, so that importing this module needs no TensorFlow
    words = tasks.load_vocabulary(config)
    start = time.monotonic()
    dataset = builder.build(config, work)
    log(f"generated {dataset.info.splits.total_num_examples:,} examples in {time.monotonic() - start:.1f} s")
    mixtures = tasks.make_mixtures(config, tasks.make_tasks(config, dataset.data_path))
    shown, heldout = equations.split_facts(config)
    return {
        "vocabulary": {"size": words.vocab_size, "bos": words.bos_id, "eos": words.eos_id, "pad": words.pad_id},
        "sets": _write_sets(config, mixtures, work),
        "evaluation": _write_evaluation(config, words, work),
        "facts": {"shown": list(shown), "heldout": list(heldout)},
    }


def _write_sets(config: equations.ArithmeticConfig, mixtures: Mapping[str, corpus.Mixture], work: Path) -> JsonObject:
    sources = {task.name: task for mixture in mixtures.values() for task in mixture.tasks}
    rates = {name: {task.name: mixture.get_rate(task) for task in mixture.tasks} for name, mixture in mixtures.items()}
    pool = corpus.Pool(_read(config, sources, rates))
    chosen = {name: pool.choose(set_rates) for name, set_rates in rates.items()}
    sets = {name: _write_set(config, name, pool.documents, indices, work) for name, indices in chosen.items()}
    return sets | (
        _write_label_sets(config, pool, chosen["all"], [*rates["forget"]], work) if config.has_labels else {}
    )


def _write_label_sets(
    config: equations.ArithmeticConfig, pool: corpus.Pool, candidates: np.ndarray, forget: list[str], work: Path
) -> JsonObject:
    """Write what a labeller makes of the candidates, and say of each set how often it errs."""
    bad = np.zeros(len(pool.documents), bool)
    for task in forget:
        bad[pool.places[task]] = True
    labels, about = _labels(config, pool.documents, np.unique(candidates), bad)
    passed, lost = int((~labels & bad)[candidates].sum()), int((labels & ~bad)[candidates].sum())
    log(f"labels: {passed:,} documents to forget pass, {lost:,} to retain are lost")
    about |= {"forget_passed": passed, "retain_lost": lost}
    about |= label_filter.realised_errors(bad[candidates], labels[candidates])
    chosen = {"filtered": candidates[~labels[candidates]], "dropped": candidates[labels[candidates]]}
    fix_hint = "its filter drops every document; raise it"
    checks.require(len(chosen["filtered"]) > 0, "filter_labels", config.filter_labels, fix_hint)
    sets: JsonObject = {}
    for name in (name for name in chosen if name in config.label_sets):
        sets[name] = _write_set(config, name, pool.documents, chosen[name], work) | about
    if "masked" in config.label_sets:
        truth = label_filter.to_tokens(pool.documents, bad)
        marks = _token_marks(config, pool.documents, labels, truth)
        masked = _write_set(config, "masked", label_filter.with_marks(pool.documents, marks), candidates, work)
        here = np.repeat(np.isin(np.arange(len(bad)), candidates), pool.documents.lengths)
        about = {"marked": int(marks[here].sum())} | label_filter.realised_errors(truth[here], marks[here])
        sets["masked"] = masked | about
    return sets


def _labels(
    config: equations.ArithmeticConfig, documents: corpus.Corpus, distinct: np.ndarray, bad: np.ndarray
) -> tuple[np.ndarray, JsonObject]:
    """Return the labeller's verdict on every document, bool [documents], and how many labels it learned from."""
    if config.labeller == "noisy":
        draws = random_stream(config.seed, "label errors").random(len(documents))
        return label_filter.with_errors(bad, config.false_positive_rate, config.false_negative_rate, draws), {}
    count = min(config.filter_labels, len(distinct))
    labelled = random_stream(config.seed, "labels").choice(distinct, count, replace=False)
    return label_filter.NaiveBayes.learn(documents, labelled, bad[labelled]).forgets(documents), {"labels": count}


def _token_marks(
    config: equations.ArithmeticConfig, documents: corpus.Corpus, labels: np.ndarray, truth: np.ndarray
) -> np.ndarray:
    """Return which tokens the labeller marks, bool [tokens]: it errs token by token, or by whole documents."""
    if config.labeller != "noisy":
        return label_filter.to_tokens(documents, labels)
    draws = random_stream(config.seed, "token label errors").random(len(truth))
    return label_filter.with_errors(truth, config.false_positive_rate, config.false_negative_rate, draws)


def _read(
    config: equations.ArithmeticConfig, sources: Mapping[str, corpus.Task], rates: Mapping[str, Mapping[str, float]]
) -> dict[str, corpus.Corpus]:
    """Read every task once, and no more English than the set that wants most of it."""
    corpora = {name: corpus.read(task) for name, task in sources.items() if name != corpus.ENGLISH}
    longest = max(int(part.lengths.max(initial=0)) for part in corpora.values())
    fix_hint = f"the longest arithmetic document has {longest} tokens and must not be cut; raise it"
    checks.require(longest <= config.row_length, "row_length", config.row_length, fix_hint)
    if corpus.ENGLISH in sources:
        english = max(
            corpus.english_tokens(set_rates, sum(len(corpora[task].tokens) for task in set_rates if task in corpora))
            for set_rates in rates.values()
        )
        corpora[corpus.ENGLISH] = corpus.read(sources[corpus.ENGLISH], english)
        checks.require(len(corpora[corpus.ENGLISH]) > 0, "english", config.english, "the files hold no text")
    return corpora


def _write_set(
    config: equations.ArithmeticConfig, name: str, documents: corpus.Corpus, chosen: np.ndarray, work: Path
) -> JsonObject:
    order = random_stream(config.seed, "order", name).permutation(chosen)
    return write_packed_set(work, name, (documents[i] for i in order), config.row_length)


def _write_evaluation(config: equations.ArithmeticConfig, words: SeqioVocabulary, work: Path) -> JsonObject:
    path = work / records.EVALUATION
    examples = equations.evaluation_examples(config)
    with path.open("w", encoding="utf-8") as file:
        for example in examples:
            prompt_ids = [words.bos_id, *words.encode(example.prompt)]
            ids = {"prompt_ids": prompt_ids, "answer_ids": [*words.encode(example.answer), words.eos_id]}
            kept = {key: getattr(example, key) for key in ("operation", "form", "part", "fact")}
            file.write(json.dumps({"prompt": example.prompt, "answer": example.answer, **ids, **kept}) + "\n")
    groups = collections.Counter(f"{e.operation}/{e.form}/{e.part}" for e in examples)
    log(f"evaluation: {len(examples):,} prompts in {len(groups)} groups")
    return {"file": records.EVALUATION, "prompts": len(examples), "groups": groups, "sha256": digest(path)}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    run_command_line("distill_jax.data.arithmetic.prepare_arithmetic", equations.ArithmeticConfig, prepare, arguments)


if __name__ == "__main__":
    main()
