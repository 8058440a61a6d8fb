"""Prepare text: `python -m distill_jax.data.text.prepare_text --config=FILE.json --output=DIR`.

Trains a vocabulary (or takes one), tokenises every shard of the sources, and packs the sets all, retain and forget and
the evaluated documents. Shards are tokenised by several processes and kept until all is done, so a killed run goes on
where it was. The same contents give the same bytes, wherever the files lie and whatever the number of processes.
"""

from __future__ import annotations

import collections
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.config import identity
from distill_jax.data import import_tf, packing, records
from distill_jax.data.atomic_build import log, make_once, run_command_line
from distill_jax.data.packed_set import write_packed_set
from distill_jax.data.random_stream import random_stream
from distill_jax.data.text import hf_tokenizer, mixing, sentencepiece_vocab, sources, tokenise
from distill_jax.data.text.readers import Piece, Reader
from distill_jax.data.text.sentencepiece_vocab import Vocabulary
from distill_jax.data.text.sources import Shard
from distill_jax.data.text.text_config import ROLES, SIDES, TextConfig
from distill_jax.data.text.token_shards import Documents, complete
from distill_jax.io import storage
from distill_jax.io.files import Digests, digest, vouch, vouched
from distill_jax.types import JsonObject

FORMAT = 1
PARTS = {"retain": "valid_retain", "shown": "forget", "heldout": "valid_forget"}  # of the evaluation


WriteEvaluation = Callable[[Any, Vocabulary, Path], JsonObject]  # of (config, words, work)


def prepare_text(
    config: TextConfig, directory: str | os.PathLike[str], evaluation: WriteEvaluation | None = None
) -> JsonObject:
    """Prepare the data into a directory and return its manifest; a directory already finished is left as it is.

    Args:
      evaluation: evaluation(config, words, work) writes what models are measured on, and sets of its own, and returns
        the manifest's {"sets", "evaluation"}, and what else it says; held-out documents when left out.

    Raises:
      ValueError: a document is broken, a source or a split is empty, the vocabulary does not fit the text, or the
        directory holds data of other settings.
    """
    config = config if config.content else config.with_content_hash(Digests())
    wanted = {"format": FORMAT, "config": config.fingerprint_fields()}
    return make_once(directory, wanted, lambda work: _build(config, work, evaluation), resumes=True)


def _build(config: TextConfig, work: Path, evaluation: WriteEvaluation | None) -> JsonObject:
    """Make every file but the manifest under `work`, and return what the manifest says of them."""
    shards = {(role, i): sources.shards(s) for role in ROLES for i, s in enumerate(config.sources(role))}
    model = _vocabulary(config, shards, work)
    words = sentencepiece_vocab.load(model)
    documents, places, notes = _tokenise(config, shards, model, work)
    split = mixing.split(config, documents, places, measured=evaluation is None)
    chosen, mixture = mixing.mix(config, documents, split)
    sets = {}
    for name, parts in {"all": SIDES, "retain": ("retain",), "forget": ("forget",)}.items():
        shares = {"mixture": {source: tokens for side in parts for source, tokens in mixture[side].items()}}
        sets[name] = (
            _write_set(config, name, documents, np.concatenate([chosen[side] for side in parts]), work) | shares
        )
    ids = {"size": words.get_piece_size(), "bos": words.bos_id(), "eos": words.eos_id(), "pad": max(words.pad_id(), 0)}
    if evaluation:
        measured = evaluation(config, words, work)
    else:
        measured = {"sets": {}, "evaluation": _write_evaluation(config, documents, split, work)}
    made = {
        "vocabulary": {**ids, "file": model.name, "sha256": digest(model)},
        "sources": notes,
        "sets": sets | measured["sets"],
    }
    return made | {key: value for key, value in measured.items() if key != "sets"}


def _vocabulary(config: TextConfig, shards: Mapping[tuple[str, int], Sequence[Shard]], work: Path) -> Path:
    published = hf_tokenizer.is_published(config.vocabulary)
    path = work / ("vocabulary.json" if published else "vocabulary.model")
    if vouched(path):
        return path
    if config.vocabulary:
        given = sentencepiece_vocab.load(config.vocabulary)  # refuses what is no vocabulary
        if isinstance(given, hf_tokenizer.Tokenizer):
            made = json.dumps(given.definition).encode()
        else:
            made = storage.read_bytes(storage.location(config.vocabulary))
    else:
        start, skip = time.monotonic(), config.broken == "skip"

        def text(side: str) -> Iterator[str]:
            of_side = [shard for (role, _), each in shards.items() if role == side for shard in each]
            return sentencepiece_vocab.sample(of_side, config.vocabulary_bytes, lambda shard: _read(shard, skip))

        made = sentencepiece_vocab.train((line for side in SIDES for line in text(side)), config.vocabulary_size)
        log(f"trained a vocabulary of {config.vocabulary_size:,} entries in {time.monotonic() - start:.1f} s")
    storage.write_atomic(path, made)
    vouch(path)
    return path


def _read(shard: Shard, skip_broken: bool) -> Iterator[Piece]:
    if shard.source.kind == "tfds":
        return import_tf.import_text_tasks().texts(shard)
    return iter(Reader(shard, skip_broken))


def _tokenise(
    config: TextConfig, shards: Mapping[tuple[str, int], Sequence[Shard]], model: Path, work: Path
) -> tuple[Documents, dict[tuple[str, int], np.ndarray], JsonObject]:
    """Tokenise what is missing; return all documents, which of them each source has, and what is to be said of it."""
    known = [config.content, digest(model), config.broken]
    skip = config.broken == "skip"

    def jobs_of(name: str, source_shards: Sequence[Shard]) -> list[tokenise.Job]:
        groups = enumerate(tokenise.grouped(source_shards))
        ids = [(i, part, identity([*known, *((s.start, s.stop) for s in part)])) for i, part in groups]
        return [tokenise.Job(part, work / f"{name}-{i:05d}-{held}", model, skip) for i, part, held in ids]

    jobs = {source: jobs_of(f"{source[0]}-{source[1]}", each) for source, each in shards.items()}
    every = [job for each in jobs.values() for job in each]
    tokenise.run([job for job in every if not complete(job.path)], len(every), config.workers)
    documents, places, notes = Documents(job.path for job in every), {}, {}
    first, shard = 0, 0
    for source, source_jobs in jobs.items():
        shard_notes = documents.notes[shard : shard + len(source_jobs)]
        count, shard = sum(note["documents"] for note in shard_notes), shard + len(source_jobs)
        places[source] = np.arange(first, first + count)
        first += count
        described = config.sources(source[0])[source[1]]
        name = f"{source[0]}: {described.name}"
        notes[name] = _note(name, described.files, shard_notes, documents, places[source])
    return documents, places, notes


def _note(
    name: str, files: Sequence[str], notes: Sequence[JsonObject], documents: Documents, indices: np.ndarray
) -> JsonObject:
    """Sum up a source, and print what was left out of it."""
    totals: collections.Counter[str] = collections.Counter()
    for note in notes:
        totals.update({key: note[key] for key in ("unknown", "blank", "broken")})
    empty = [path for path in files if not storage.size(storage.location(path))]
    tokens, size = int(documents.lengths[indices].sum()), int(documents.bytes[indices].sum())
    left_out = [f"{totals['blank']:,} blank"] * bool(totals["blank"])
    if totals["broken"]:
        example = next(note["first_broken"] for note in notes if note["first_broken"])
        left_out.append(f"{totals['broken']:,} broken (such as {example})")
    if empty:
        left_out.append(f"{len(empty):,} empty files (such as {empty[0]})")
    log(
        f"{name}: {len(indices):,} documents, {tokens:,} tokens, {size:,} bytes"
        + (f"; left out: {', '.join(left_out)}" if left_out else "")
    )
    return {"documents": len(indices), "tokens": tokens, "bytes": size, "empty_files": len(empty), **totals}


def _marked(config: TextConfig, document: packing.Document) -> packing.Document:
    return document._replace(answer=document.answer + config.ANSWER)


def _write_set(config: TextConfig, name: str, documents: Documents, chosen: np.ndarray, work: Path) -> JsonObject:
    order = random_stream(config.seed, "order", name).permutation(chosen)
    marked = (_marked(config, documents[i]) for i in order)
    size = int(documents.bytes[chosen].sum())
    return write_packed_set(work, name, marked, config.row_length, overlap=1, bytes=size)


def _write_evaluation(config: TextConfig, documents: Documents, split: mixing.Split, work: Path) -> JsonObject:
    """Write the rows of all parts one after another into one file."""
    path, parts, rows = work / records.EVALUATION_ROWS, {}, []
    for part, role in PARTS.items():
        candidates = np.concatenate(split[role])
        fitting = candidates[documents.bytes[candidates] <= config.evaluation_bytes]
        if not len(fitting):
            fix_hint = f"every document of {role} is longer; raise it"
            raise ValueError(f"data.evaluation_bytes={config.evaluation_bytes}: {fix_hint}")
        order = random_stream(config.seed, "evaluation", part).permutation(fitting)
        order = order[np.cumsum(documents.bytes[order]) <= config.evaluation_bytes]
        packed = list(packing.pack((documents[i] for i in order), config.row_length, overlap=1))
        rows += packed
        tokens, size = int(documents.lengths[order].sum()), int(documents.bytes[order].sum())
        sizes = np.stack([documents.lengths[order], documents.bytes[order]], axis=1).tolist()  # of each document
        parts[part] = {"rows": len(packed), "documents": len(order), "tokens": tokens, "bytes": size, "sizes": sizes}
        log(f"evaluation, {part}: {len(order):,} documents, {tokens:,} tokens, {size:,} bytes")
    records.write_rows(path, rows)
    return {"file": path.name, "parts": parts, "sha256": digest(path)}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake in the settings ends in one line and exit code 2."""
    run_command_line("distill_jax.data.text.prepare_text", TextConfig, prepare_text, arguments)


if __name__ == "__main__":
    main()
