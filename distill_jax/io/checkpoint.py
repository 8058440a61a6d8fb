"""Checkpoints of pytrees in one directory, through Orbax, each proved whole by a list of its files' hashes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from distill_jax.config import ConfigError
from distill_jax.io import staging, storage
from distill_jax.io.files import digest_once, read_sealed, write_sealed
from distill_jax.io.journal import Prefix
from distill_jax.io.storage import absolute, is_local, sync
from distill_jax.sharding.distributed import agreed
from distill_jax.sharding.meeting import Meeting
from distill_jax.types import ArrayOrShape, PyTree

FINAL = "final"
CHUNK = 2**26  # bytes of a leaf that are compressed together


class Damaged(ConfigError):
    """A checkpoint's files are not those that were written."""


class Checkpoints:
    """Keep the newest `keep` training states by step, and a stage's result as `final`.

    A checkpoint `<tag>/` counts only once its proof `<tag>.json` stands beside it: the hashes of its files, and how
    much of the journal belongs to it. A save that was interrupted leaves no such file and is as if it had never begun.
    With several hosts each writes its own shards, and host 0 the proof. What belongs where Orbax does not write (s3://)
    it writes to this machine; the files are uploaded before the proof, and copies of them are read.

    Args:
      journal: the file that the owner of the checkpoints appends its numbers to.
      final: SHA-256 that the proof of `final` must have; None for any.
      owner: what to remove if a checkpoint is damaged; the directory's parent when left out.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        *,
        journal: Path | None = None,
        final: str | None = None,
        owner: Path | None = None,
    ) -> None:
        self.directory, self.keep = directory, keep
        self._journal, self._final, self._owner = journal, final, owner or directory.parent
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def save(
        self,
        tag: int | str,
        tree: PyTree,
        journal: Prefix | None = None,
        *,
        background: bool = False,
        lean: bool = False,
    ) -> None:
        """Write a tree of arrays under a step or a name; older steps beyond `keep` go once it is safe.

        Args:
          journal: what the journal holds by then; it must be on the disk already.
          background: return as soon as the arrays are copied. The checkpoint counts a little later, after `wait` at
            the latest; one save at a time is under way.
          lean: write as few leaves at a time as the largest has bytes, and each in chunks, so that little of what is
            compressed waits in host memory for the disk.

        Raises:
          OSError: if the disk refuses, or did for the save before this one.
        """
        self.wait()
        target, place = self._paths(tag)[0], self._place(tag)
        # All hosts refuse together: one that went on alone would wait for the others within Orbax.
        if number := agreed(self._make_room(tag, tree) if jax.process_index() == 0 else 0):
            raise OSError(number, os.strerror(number), str(target))
        concurrent_gb = -(-max(x.nbytes for x in jax.tree.leaves(tree)) // 10**9) if lean else 96
        chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK), tree) if lean else None
        meeting = Meeting()
        together = ocp.AsyncOptions(barrier_sync_fn=meeting)
        checkpointer = ocp.StandardCheckpointer(save_concurrent_gb=concurrent_gb, async_options=together)
        with _refusals(target, ValueError), _heard(meeting):
            checkpointer.save(absolute(place), tree, force=True, save_args=chunks)
        self._pending = self._worker.submit(self._finish, checkpointer, meeting, tag, journal)
        if not background:
            self.wait()

    def _make_room(self, tag: int | str, tree: PyTree) -> int:
        """Make way for a checkpoint; return the number of the error for which there cannot be one, or 0."""
        try:
            self._paths(tag)[1].unlink(missing_ok=True)
            # Orbax answers a full disk with pages of its threads' tracebacks, so look before it writes.
            needed = 2 * sum(x.nbytes for x in jax.tree.leaves(tree)) + 2**20
            storage.make_directory(self._place(tag).parent)
            return errno.ENOSPC if storage.free_bytes(self._place(tag).parent) < needed else 0
        except OSError as error:
            return error.errno or errno.EIO

    def wait(self) -> None:
        """Wait for the save under way, and raise what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _finish(
        self, checkpointer: ocp.StandardCheckpointer, meeting: Meeting, tag: int | str, journal: Prefix | None
    ) -> None:
        place = self._place(tag)
        try:
            with _refusals(place, Exception), _heard(meeting):
                checkpointer.wait_until_finished()
        finally:
            checkpointer.close()
        if jax.process_index() == 0:
            files = self._written(place)
            self._upload(place, tag)
            record = {"files": files, "journal": dataclasses.asdict(journal) if journal else None}
            write_sealed(self._paths(tag)[1], record)
            for step in self.steps()[: -self.keep]:
                self.remove(step)

    def _place(self, tag: int | str) -> Path:
        """Return where Orbax writes a checkpoint: to its own directory, or to one of this machine."""
        target, _ = self._paths(tag)
        return target if storage.holds_arrays(target) else staging.building_place(target)

    def _upload(self, place: Path, tag: int | str) -> None:
        """Bring what was written on this machine to where it belongs."""
        target, _ = self._paths(tag)
        if place == target:
            return
        storage.remove_tree(target)  # what a save left that was killed here
        staging.upload(place, target)
        storage.remove_tree(place)

    def _written(self, place: Path) -> dict[str, str]:
        """Return the digests of a checkpoint's files, by their names, once all of them are durable."""
        if not is_local(place):
            return storage.server_digests(place)
        files = sorted(place.rglob("*"))
        for path in (*files, place, place.parent, place.parent.parent):
            sync(path)
        return {str(f.relative_to(place)): digest_once(f) for f in files if f.is_file()}

    def steps(self) -> list[int]:
        """Return the steps saved completely, oldest first."""
        return sorted(int(p.stem) for p in self.directory.glob("*.json") if p.stem.isdigit())

    def journal(self, tag: int | str) -> Prefix | None:
        """Return how much of the journal belongs to a checkpoint that was restored."""
        prefix = read_sealed(self._paths(tag)[1])["journal"]
        return Prefix(**prefix) if prefix else None

    def shapes(self, tag: int | str) -> PyTree:
        """Return the tree of a checkpoint as shapes and dtypes, from its description alone.

        Raises:
          Damaged: as `restore` does.
        """
        with ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(absolute(self._proved(tag))).item_metadata

        def is_leaf(node: object) -> bool:
            return hasattr(node, "shape")

        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata.tree, is_leaf=is_leaf)

    def restore(self, tag: int | str, like: PyTree) -> PyTree:
        """Read a checkpoint back into the structure and shapes of `like`, whatever mesh and hosts it was written on.

        Args:
          like: tree of arrays or shape structs; a leaf with a sharding is laid out by it, any other is put whole
            on one device.

        Raises:
          Damaged: if a file is missing, was cut short or has other contents than were written, if the journal is not
            what it was by then, or if the arrays have other names or shapes than `like`.
        """
        target = self._proved(tag)
        one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def abstract(x: ArrayOrShape) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or one_device)

        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(absolute(target), jax.tree.map(abstract, like))
        except ValueError as error:
            damage = "holds other arrays than are read here, perhaps an earlier version's"
            raise self._refused(self._paths(tag)[0], damage) from error

    def remove(self, tag: int | str) -> None:
        """Forget a checkpoint: first its proof, so that a removal cut short leaves nothing that counts."""
        target, proof = self._paths(tag)
        proof.unlink(missing_ok=True)
        for path in (target, *self.directory.glob(f"{tag}.orbax-checkpoint-tmp*")):  # the latter of a save that failed
            storage.remove_tree(path)

    def keep_only(self, tag: str) -> None:
        """Remove all but one checkpoint, and what saves that were killed left."""
        for step in self.steps():
            self.remove(step)
        for path in self.directory.glob("*"):
            if path not in self._paths(tag):
                storage.remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _paths(self, tag: int | str) -> tuple[Path, Path]:
        return self.directory / str(tag), self.directory / f"{tag}.json"

    def _proved(self, tag: int | str) -> Path:
        """Return the directory of a checkpoint that is what it was when it was saved, or a local copy of it."""
        target, proof = self._paths(tag)
        try:
            copied = not storage.holds_arrays(target) and proof.exists()
            readable = staging.local_copy(target) if copied else target
            damage = self._damage(readable, proof)
        except OSError as error:
            damage = f"{error.strerror}"
        if damage:
            raise self._refused(target, damage)
        return readable

    def _refused(self, target: Path, damage: str) -> Damaged:
        return Damaged(f"{target}: {damage}; remove {self._owner} and run again to compute it anew")

    def _damage(self, target: Path, proof: Path) -> str | None:
        if not proof.exists():
            return "no complete checkpoint"
        try:
            record = read_sealed(proof)
            files, journal = record["files"], record["journal"]
        except (ValueError, KeyError):
            files = None
        if files is None or (proof.stem == FINAL and self._final not in (None, digest_once(proof))):
            return f"its list of files {proof.name} is damaged, or an earlier version's"
        known = {} if is_local(target) else storage.server_digests(target)
        for name, expected in files.items():
            if not (name in known or (target / name).is_file()):
                return f"file {name} is missing"
            present = known.get(name) or digest_once(target / name)
            if present != expected and storage.digest_like(target / name, expected) != expected:
                return f"file {name} is damaged"
        if journal and not (self._journal and Prefix(**journal).begins(self._journal)):
            return f"{self._journal and self._journal.name} has lost or changed rows that it had by then"
        return None


# What TensorStore calls a disk that refuses, where it does not give the error's number.
STATUS = {
    "RESOURCE_EXHAUSTED": errno.ENOSPC,
    "NOT_FOUND": errno.ENOENT,
    "PERMISSION_DENIED": errno.EACCES,
    "FAILED_PRECONDITION": errno.ENOTDIR,
}


@contextlib.contextmanager
def _refusals(target: Path, kinds: type[Exception]) -> Iterator[None]:
    """Raise whatever Orbax and TensorStore make of a disk that refuses as the OSError that it was.

    Args:
      kinds: the exceptions of which it may be the reason; OSError is among them anyhow.
    """
    try:
        yield
    except (OSError, kinds) as error:
        number = _number(error) if target.parent.is_dir() else errno.ENOENT
        what = os.strerror(number or errno.EIO)
        raise OSError(number, what if number else f"{what} ({str(error)[:200]})", str(target)) from error


@contextlib.contextmanager
def _heard(meeting: Meeting) -> Iterator[None]:
    """Tell the other processes, which would wait for this one, of whatever goes wrong."""
    try:
        yield
    except BaseException:
        meeting.fail()
        raise


def _number(error: BaseException | None) -> int | None:
    """Return the errno behind an exception."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if code := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore's
            return int(code[1])
        if (status := str(error).partition(":")[0]) in STATUS:
            return STATUS[status]
        error = error.__cause__ or error.__context__
    return None


Hook = Callable[["sys.UnraisableHookArgs"], object]


def _print_unraisable(problem: sys.UnraisableHookArgs, hook: Hook = sys.unraisablehook) -> None:
    """Print what nobody can catch, but for TensorStore's threads that come late to a failed save."""
    if str(problem.exc_value) != "Event loop is closed":
        hook(problem)


sys.unraisablehook = _print_unraisable
