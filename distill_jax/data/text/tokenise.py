"""Tokenise shards in several processes, neighbours that are small as one job, whose file is whole or not there.

Needs no TensorFlow but in these processes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from distill_jax.data import import_tf
from distill_jax.data.atomic_build import log
from distill_jax.data.text import sources
from distill_jax.data.text.sources import Shard
from distill_jax.data.text.token_shards import ShardWriter

FEW_BYTES = 2**26  # with fewer, starting another process takes longer than it saves
LOG_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Job:
    """Shards of one source to tokenise, and where to."""

    shards: tuple[Shard, ...]
    path: Path
    model: Path
    skip_broken: bool

    def __call__(self) -> int:
        """Tokenise the shards and return their size in bytes."""
        text_tasks = import_tf.import_text_tasks()
        words = text_tasks.load_vocabulary(self.model)
        task, writer = text_tasks.TextTask(self.shards, words, self.skip_broken), ShardWriter(self.path)
        unknown = 0
        for batch in task.batches():
            unknown += int((batch["tokens"] == words.unk_id).sum())
            writer.write(batch)
        counts = {key: sum(reader.notes[key] for reader in task.readers) for key in ("blank", "broken")}
        first = next((reader.first_broken for reader in task.readers if reader.first_broken), "")
        writer.finish({**counts, "unknown": unknown, "first_broken": first})
        return self.size

    @property
    def size(self) -> int:
        """The shards' bytes."""
        return sum(shard.size for shard in self.shards)


def grouped(shards: Iterable[Shard]) -> list[tuple[Shard, ...]]:
    """Join neighbours up to SHARD_BYTES: a job takes a quarter of a second and an open file before its first document.

    How large a part of a TFDS data set is nobody knows; each is a job.
    """
    groups: list[list[Shard]] = []
    size = 0
    for shard in shards:
        size += shard.size
        if not groups or size > sources.SHARD_BYTES or shard.source.kind == "tfds":
            groups.append([])
            size = shard.size
        groups[-1].append(shard)
    return [tuple(group) for group in groups]


def run(jobs: Sequence[Job], num_parts: int, workers: int) -> None:
    """Run the jobs in as many processes as help, and print how far they are."""
    if len(jobs) < num_parts:
        log(f"{num_parts - len(jobs):,} of {num_parts:,} parts were tokenised before")
    total, done, start, last_log = sum(job.size for job in jobs), 0, time.monotonic(), time.monotonic()
    for count, size in enumerate(results(jobs, workers or (os.cpu_count() or 1), total), 1):
        done, now = done + size, time.monotonic()
        if now - last_log > LOG_SECONDS:
            last_log, rate = now, done / (now - start)
            left = f"{(total - done) / rate:,.0f} s left" if rate else "?"
            log(f"part {count:,} of {len(jobs):,}  {done / 1e6:,.0f} of {total / 1e6:,.0f} MB  {left}")


def results(jobs: Sequence[Job], workers: int, total: int) -> Iterator[int]:
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
