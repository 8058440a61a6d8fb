"""Prepare text: `python -m distill_jax.data.prepare_text --config=FILE.json --output=DIR`.

Trains a vocabulary (or takes one), tokenises every shard of the sources, and packs the sets all, retain and forget and
the evaluated documents. Shards are tokenised by several processes and kept until all is done, so a killed run goes on
where it was. The same contents give the same bytes, wherever the files lie and whatever the number of processes.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.config import identity
from distill_jax.data import arithmetic, corpus, packing, pieces, prepare, quiet, records, sources
from distill_jax.data.documents import Documents, ShardWriter
from distill_jax.data.reading import Piece, Reader
from distill_jax.data.sources import Shard
from distill_jax.data.text import ROLES, SIDES, TextConfig
from distill_jax.io.files import Digests

FORMAT = 1
FEW_BYTES = 2**26  # with fewer, starting another process takes longer than it saves
SAY_SECONDS = 5.0
PARTS = {"retain": "valid_retain", "shown": "forget", "heldout": "valid_forget"}  # of the evaluation


def prepare_text(config: TextConfig, directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Prepare the data into a directory and return its manifest; a directory already finished is left as it is.

    Raises:
      ValueError: a document is broken, a source or a split is empty, the vocabulary does not fit the text, or the
        directory holds data of other settings.
    """
    directory = os.fspath(directory)
    os.makedirs(directory, exist_ok=True)
    config = config if config.content else config.identified(Digests())
    with prepare.locked(directory), quiet.errors_only():
        wanted = {"format": FORMAT, "config": config.known_by()}
        if os.path.exists(os.path.join(directory, records.MANIFEST)):
            return prepare.check_finished(directory, wanted)
        work = Path(directory, f"preparing-{identity(wanted)}")
        work.mkdir(exist_ok=True)
        manifest = wanted | _build(config, work)
        prepare.publish(manifest, os.fspath(work), directory)
    return manifest


def _build(config: TextConfig, work: Path) -> dict[str, Any]:
    """Make every file but the manifest under `work`, and return what the manifest says of them."""
    shards = {(role, i): sources.shards(s) for role in ROLES for i, s in enumerate(config.sources(role))}
    model = _vocabulary(config, shards, work)
    words = pieces.load(model)
    documents, places, notes = _tokenise(config, shards, model, work)
    split = _split(config, documents, places)
    chosen, mixture = _mix(config, documents, split)
    sets = {}
    for name, parts in {"all": SIDES, "retain": ("retain",), "forget": ("forget",)}.items():
        told = {"mixture": {source: tokens for side in parts for source, tokens in mixture[side].items()}}
        sets[name] = _write_set(config, name, documents, np.concatenate([chosen[side] for side in parts]), work) | told
    ids = {"size": words.get_piece_size(), "bos": words.bos_id(), "eos": words.eos_id(), "pad": max(words.pad_id(), 0)}
    return {
        "vocabulary": {**ids, "file": model.name, "sha256": records.sha256(model)},
        "sources": notes,
        "sets": sets,
        "evaluation": _write_evaluation(config, documents, split, work),
    }


def _vocabulary(config: TextConfig, shards: Mapping[tuple[str, int], Sequence[Shard]], work: Path) -> Path:
    path = work / "vocabulary.model"
    if path.exists():
        return path
    if config.vocabulary:
        pieces.load(config.vocabulary)  # refuses what is no model
        shutil.copyfile(config.vocabulary, path.with_suffix(".tmp"))
    else:
        start, skip = time.monotonic(), config.broken == "skip"

        def text(side: str) -> Iterator[str]:
            mine = [shard for (role, _), found in shards.items() if role == side for shard in found]
            return pieces.sample(mine, config.vocabulary_bytes, lambda shard: _read(shard, skip))

        model = pieces.train((line for side in SIDES for line in text(side)), config.vocabulary_size)
        path.with_suffix(".tmp").write_bytes(model)
        prepare.say(f"trained a vocabulary of {config.vocabulary_size:,} entries in {time.monotonic() - start:.1f} s")
    os.replace(path.with_suffix(".tmp"), path)
    return path


def _read(shard: Shard, skip_broken: bool) -> Iterator[Piece]:
    if shard.source.kind == "tfds":
        return quiet.import_text_tasks().texts(shard)
    return iter(Reader(shard, skip_broken))


def _tokenise(
    config: TextConfig, shards: Mapping[tuple[str, int], Sequence[Shard]], model: Path, work: Path
) -> tuple[Documents, dict[tuple[str, int], np.ndarray], dict[str, Any]]:
    """Tokenise what is missing; return all documents, which of them each source has, and what is to be said of it."""
    known = [config.content, records.sha256(model), config.broken]
    paths = {
        source: [work / f"{source[0]}-{source[1]}-{i:05d}-{identity([*known, s.start, s.stop])}" for i, s in parts]
        for source, parts in ((source, list(enumerate(found))) for source, found in shards.items())
    }
    jobs = [
        Job(shard, path, model, config.broken == "skip")
        for source, found in shards.items()
        for shard, path in zip(found, paths[source], strict=True)
    ]
    _run([job for job in jobs if not job.path.with_suffix(".npz").exists()], len(jobs), config.workers)
    documents, places, notes = Documents(path for found in paths.values() for path in found), {}, {}
    first, shard = 0, 0
    for source, found in paths.items():
        mine = documents.notes[shard : shard + len(found)]
        count, shard = sum(note["documents"] for note in mine), shard + len(found)
        places[source] = np.arange(first, first + count)
        first += count
        name = config.sources(source[0])[source[1]].name
        notes[f"{source[0]}: {name}"] = _note(config, source, mine, documents, places[source])
    return documents, places, notes


def _note(
    config: TextConfig, source: tuple[str, int], notes: list[dict[str, Any]], documents: Documents, mine: np.ndarray
) -> dict[str, Any]:
    """Sum up a source, and say aloud what was left out of it."""
    totals: collections.Counter[str] = collections.Counter()
    for note in notes:
        totals.update({key: note[key] for key in ("unknown", "blank", "broken")})
    files = config.sources(source[0])[source[1]].files
    empty = [path for path in files if not os.path.getsize(path)]
    name = f"{source[0]}: {config.sources(source[0])[source[1]].name}"
    tokens, size = int(documents.lengths[mine].sum()), int(documents.bytes[mine].sum())
    left_out = [f"{totals['blank']:,} blank"] * bool(totals["blank"])
    if totals["broken"]:
        example = next(note["first_broken"] for note in notes if note["first_broken"])
        left_out.append(f"{totals['broken']:,} broken (such as {example})")
    if empty:
        left_out.append(f"{len(empty):,} empty files (such as {empty[0]})")
    prepare.say(
        f"{name}: {len(mine):,} documents, {tokens:,} tokens, {size:,} bytes"
        + (f"; left out: {', '.join(left_out)}" if left_out else "")
    )
    return {"documents": len(mine), "tokens": tokens, "bytes": size, "empty_files": len(empty), **totals}


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard to tokenise, and where to."""

    shard: Shard
    path: Path
    model: Path
    skip_broken: bool

    def __call__(self) -> int:
        """Tokenise the shard and return its size in bytes."""
        text_tasks = quiet.import_text_tasks()
        words = text_tasks.load_vocabulary(self.model)
        reading, writer = text_tasks.Reading(self.shard, words, self.skip_broken), ShardWriter(self.path)
        unknown = 0
        for batch in reading.batches():
            unknown += int((batch["tokens"] == words.unk_id).sum())
            writer.write(batch)
        left_out = reading.reader.notes if reading.reader else {}
        counts = {"blank": left_out.get("blank", 0), "broken": left_out.get("broken", 0), "unknown": unknown}
        writer.finish({**counts, "first_broken": reading.reader.first_broken if reading.reader else ""})
        return self.shard.size


def _run(jobs: Sequence[Job], of: int, workers: int) -> None:
    """Run the jobs in as many processes as help, and say how far they are."""
    if len(jobs) < of:
        prepare.say(f"{of - len(jobs):,} of {of:,} shards were tokenised before")
    total, done, start, said = sum(job.shard.size for job in jobs), 0, time.monotonic(), time.monotonic()
    for count, size in enumerate(_results(jobs, workers or (os.cpu_count() or 1), total), 1):
        done, now = done + size, time.monotonic()
        if now - said > SAY_SECONDS:
            said, rate = now, done / (now - start)
            left = f"{(total - done) / rate:,.0f} s left" if rate else "?"
            prepare.say(f"shard {count:,} of {len(jobs):,}  {done / 1e6:,.0f} of {total / 1e6:,.0f} MB  {left}")


def _results(jobs: Sequence[Job], workers: int, total: int) -> Iterator[int]:
    workers = min(workers, len(jobs))
    if workers < 2 or 0 < total < FEW_BYTES:
        yield from (job() for job in jobs)
        return
    # Spawned: TensorFlow's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
        try:
            for future in concurrent.futures.as_completed([pool.submit(job) for job in jobs]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Leave when the process that gave out the work was killed; otherwise a worker waits for more for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _split(
    config: TextConfig, documents: Documents, places: Mapping[tuple[str, int], np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """Return each role's documents by source; a text that is trained on is not held out, wherever it stands."""
    split: dict[str, list[np.ndarray]] = {role: [] for role in ROLES}
    for (role, _), mine in places.items():
        split[role].append(mine)
    for side in SIDES:
        valid, key = f"valid_{side}", f"valid_{side}" if split[f"valid_{side}"] else side
        if split[valid]:
            trained = documents.hashes[np.concatenate(split[side])]
            kept = [mine[~np.isin(documents.hashes[mine], trained)] for mine in split[valid]]
            dropped = sum(map(len, split[valid])) - sum(map(len, kept))
            if dropped:
                prepare.say(f"{valid}: {dropped:,} documents are also trained on and are not held out")
            split[valid] = kept
        else:
            held = [documents.hashes[mine] % 2**20 < config.validation_share * 2**20 for mine in split[side]]
            split[valid] = [mine[out] for mine, out in zip(split[side], held, strict=True)]
            split[side] = [mine[~out] for mine, out in zip(split[side], held, strict=True)]
        for role, mend in ((side, "it needs more text"), (valid, "give it text, or raise data.validation_share")):
            if not sum(map(len, split[role])):
                where = f"data.{key if role == valid else side}={getattr(config, key if role == valid else side)!r}"
                what = "to hold out" if role == valid else "to train on"
                raise ValueError(f"{where}: no document is left {what}; {mend}")
    return split


def _mix(
    config: TextConfig, documents: Documents, split: Mapping[str, Sequence[np.ndarray]]
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, int]]]:
    """Choose each side's documents of the set `all`, and count the tokens that each source gives."""
    share = {"retain": config.retain_share, "forget": 1 - config.retain_share}
    sizes = {side: np.array([documents.lengths[mine].sum() for mine in split[side]]) for side in SIDES}
    rates = {side: _rates(config, side, sizes[side]) for side in SIDES}
    whole = {side: float(np.min(sizes[side] / np.maximum(rates[side], 1e-12))) for side in SIDES}
    total = config.tokens or min(whole[side] / share[side] for side in SIDES)
    chosen: dict[str, np.ndarray] = {}
    mixture: dict[str, dict[str, int]] = {side: {} for side in SIDES}
    for side in SIDES:
        parts = []
        for i, (source, mine) in enumerate(zip(config.sources(side), split[side], strict=True)):
            order = arithmetic.random_stream(config, "choice", side, str(i)).permutation(mine)
            budget = round(total * share[side] * rates[side][i])
            parts.append(order[corpus.cycle(documents.lengths[order], budget)])
            given = int(documents.lengths[parts[-1]].sum())
            mixture[side][f"{side}: {source.name}"] = given
            if given > 1.01 * sizes[side][i]:
                prepare.say(f"{side}: {source.name} is repeated {given / sizes[side][i]:.1f} times")
        chosen[side] = np.concatenate(parts)
    return chosen, mixture


def _rates(config: TextConfig, side: str, sizes: np.ndarray) -> np.ndarray:
    weights = np.array([source.weight for source in config.sources(side)])
    if weights.any() and not weights.all():
        raise ValueError(f"data.{side}={getattr(config, side)!r}: give every source a weight, or none")
    for source, size in zip(config.sources(side), sizes, strict=True):
        if not size:
            raise ValueError(f"data.{side}={source.name!r}: holds no document to train on; leave it out")
    weights = weights if weights.any() else sizes
    return weights / weights.sum()


def _write_set(config: TextConfig, name: str, documents: Documents, chosen: np.ndarray, work: Path) -> dict[str, Any]:
    order = arithmetic.random_stream(config, "order", name).permutation(chosen)
    path = work / f"{name}.array_record"
    rows = records.write_rows(path, packing.pack((documents[i] for i in order), config.row_length, overlap=1))
    tokens, size = int(documents.lengths[chosen].sum()), int(documents.bytes[chosen].sum())
    # An overlap's token stands twice: padding is what no row would have needed.
    padding = round(max(0.0, 1 - tokens / (rows * config.row_length)), 6)
    prepare.say(f"set {name}: {len(chosen):,} documents, {tokens:,} tokens, {rows:,} rows, {padding:.1%} padding")
    facts = {"documents": len(chosen), "tokens": tokens, "bytes": size, "rows": rows, "padding": padding}
    return {"file": path.name, **facts, "sha256": records.sha256(path)}


def _write_evaluation(
    config: TextConfig, documents: Documents, split: Mapping[str, Sequence[np.ndarray]], work: Path
) -> dict[str, Any]:
    """Write the rows of all parts one after another into one file."""
    path, parts, rows = work / records.EVALUATION_ROWS, {}, []
    for part, role in PARTS.items():
        found = np.concatenate(split[role])
        fitting = found[documents.bytes[found] <= config.evaluation_bytes]
        if not len(fitting):
            mend = f"every document of {role} is longer; raise it"
            raise ValueError(f"data.evaluation_bytes={config.evaluation_bytes}: {mend}")
        order = arithmetic.random_stream(config, "evaluation", part).permutation(fitting)
        order = order[np.cumsum(documents.bytes[order]) <= config.evaluation_bytes]
        packed = list(packing.pack((documents[i] for i in order), config.row_length, overlap=1))
        rows += packed
        tokens, size = int(documents.lengths[order].sum()), int(documents.bytes[order].sum())
        parts[part] = {"rows": len(packed), "documents": len(order), "tokens": tokens, "bytes": size}
        prepare.say(f"evaluation, {part}: {len(order):,} documents, {tokens:,} tokens, {size:,} bytes")
    records.write_rows(path, rows)
    return {"file": path.name, "parts": parts, "sha256": records.sha256(path)}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake in the settings ends in one line and exit code 2."""
    prepare.run_command_line("distill_jax.data.prepare_text", TextConfig, prepare_text, arguments)


if __name__ == "__main__":
    main()
