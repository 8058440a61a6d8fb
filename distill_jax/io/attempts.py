"""Attempts: every worker that leases a node computes it in a directory of its own, and the first that ends becomes it.

A lease cannot hold back its last owner: stopped for too long, or stuck in a write to a file server, a worker wakes
beside its successor and inside a rename that nothing recalls. So nothing depends on the dead keeping still. The number
of a lease is a fencing token: its owner writes below `attempts/<node>/<number>/` only, where no other worker ever
writes, and the node's own directory comes to be by one rename of a finished attempt.

* A successor begins with what the newest attempt before its own had proved: it copies records before what they vouch
  for, and never looks there again. What is written late is written where nobody reads.
* Renaming a directory onto one that has files fails, so a node is finished once. Its rows, its ledger and its seal are
  those of one attempt; what a slower one came to has the same numbers, as all are drawn from the same seeds.
* A bucket has no directories to rename. There the attempt that becomes the node is chosen by one conditional write, and
  whoever finds it chosen copies that one, its seal last: however many do it, and however late, they write the same.
* Nothing that a living worker needs is removed: attempts go when the node is there, and before that only the training
  states of older ones, which their workers hold in memory.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from distill_jax.config import check
from distill_jax.io import storage
from distill_jax.io.checkpoint import FINAL, Checkpoints
from distill_jax.io.files import read_json
from distill_jax.io.node import DONE, Node
from distill_jax.io.storage import is_local, sync

CHOSEN = "chosen.json"  # in a bucket: the number of the attempt that becomes the node
BEGUN = ".begun"  # in a bucket: says that an attempt has all that it goes on from
IN_PLACE = "in-place"  # what `distill-jax run`, which needs no attempts, left of a node
LINKED = ("checkpoints", "states")  # whose files are never changed once they have their names
UNFINISHED = re.compile(r"^\.|^lease-|\.tmp$|checkpoint-tmp")


def home(node: Node) -> Path:
    """Return the directory of a node's leases and attempts."""
    return node.directory.parent.parent / "attempts" / node.directory.name


def latest(node: Node) -> Node:
    """Return the node as its newest attempt left it; the node itself if there is none."""
    attempts = _attempts(node)
    return dataclasses.replace(node, directory=attempts[-1]) if attempts else node


def begin(node: Node, number: int) -> Node:
    """Return the node in the directory of a new attempt, which goes on from the one before it.

    Args:
      number: of the lease that the caller holds on `home(node)`.

    Raises:
      ConfigError: if the node's own directory holds files that cannot be moved aside a second time.
    """
    base = home(node)
    target = base / str(number)
    before = [path for path in _attempts(node) if int(path.name) < number]
    if is_local(base):
        _move_aside(node)
        source = before[-1] if before else base / IN_PLACE
        _begin_by_rename(source, base / f".{number}", target)
    else:
        _adopt(before[-1] if before else node.directory, target)
        storage.write_atomic(target / BEGUN, b"{}")
    for path in before:
        _drop_states(path)
    return dataclasses.replace(node, directory=target)


def publish(attempt: Node, node: Node) -> None:
    """Make a finished attempt the node, unless another one is it already, and remove it and those before it."""
    storage.make_directory(node.directory.parent)
    try:
        if attempt.done:
            attempt.tidy()  # for a worker that did not come to it
            if is_local(attempt.directory):
                os.rename(attempt.directory, node.directory)
            elif not node.done:
                _copy_chosen(attempt, node)
    except OSError:
        if not node.done:
            raise
    check(node.done, f"{attempt.directory} was removed while it was computed; run again")
    sync(node.directory.parent)
    clear(node, int(attempt.directory.name))


def _copy_chosen(attempt: Node, node: Node) -> None:
    """Copy the attempt that was chosen to be the node, which is this one if none was, into the node's directory."""
    record = home(node) / CHOSEN
    own = {"attempt": attempt.directory.name}
    if not storage.create_exclusive(record, json.dumps(own).encode()):
        old, chosen = storage.version(record), read_json(record)
        source = record.with_name(chosen["attempt"])
        # Attempts go once the node is there. If one is gone, and then there is no node, it was removed by hand.
        if not (source / DONE).exists() and not node.done:
            storage.replace_if(record, old, json.dumps(own).encode())
    source = record.with_name(read_json(record)["attempt"])
    files = [path for path in storage.files(source) if path.name != BEGUN]
    for path in sorted(files, key=lambda path: path == source / DONE):
        storage.copy(path, node.directory / str(path.relative_to(source)))


def leftovers(node: Node, number: int | None = None) -> list[Path]:
    """Return the directories of attempts, begun or complete, up to that of a number."""
    base = home(node)
    numbers = {name: int(name.removeprefix(".")) for name in storage.names(base) if re.fullmatch(r"\.?\d+", name)}
    return [base / name for name in numbers if number is None or numbers[name] <= number]


def clear(node: Node, number: int) -> None:
    """Remove a finished node's attempts up to a number; leases stay, so that no number is given out twice."""
    for path in leftovers(node, number):
        storage.remove_tree(path)
    for path in (home(node) / IN_PLACE).glob("*"):
        if path.is_dir():  # a file stays, so that nothing is moved there again
            storage.remove_tree(path)


def _attempts(node: Node) -> list[Path]:
    """Return the directories of the attempts that have been begun wholly, oldest first."""
    begun = (path for path in leftovers(node) if path.name.isdecimal())
    return sorted((p for p in begun if is_local(p) or (p / BEGUN).exists()), key=lambda path: int(path.name))


def _begin_by_rename(source: Path, work: Path, target: Path) -> None:
    """Give an attempt its name once it has all that it goes on from."""
    work.mkdir()
    if source.exists():
        _adopt(source, work)
    os.rename(work, target)
    sync(target.parent)


def _move_aside(node: Node) -> None:
    """Move what lies in an unfinished node's directory out of its way.

    A worker that stalls before the rename must not move what its successor published meanwhile: there is one place
    for such files, and once they are there the rename fails.
    """
    if not node.directory.exists() or node.done:
        return
    try:
        os.rename(node.directory, home(node) / IN_PLACE)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise
    unclear = node.directory.exists() and not node.done
    check(not unclear, f"{node.directory} has no {DONE}; remove it and run again to compute it anew")


def _adopt(source: Path, target: Path) -> None:
    """Copy an attempt, whose worker may still be writing: a record before what it vouches for.

    A record is written after what it vouches for, so of whatever was seen first all the rest is there.
    """
    for kind in (_is_seal, _is_record, _is_content):
        for path in filter(kind, _files(source)):
            to = target / str(path.relative_to(source))
            storage.make_directory(to.parent)
            try:
                if is_local(path) and set(LINKED) & set(path.relative_to(source).parts):
                    os.link(path, to)
                else:
                    storage.copy(path, to)
            except FileNotFoundError:  # it was removed since: whoever reads it will miss it
                to.unlink(missing_ok=True)
    for path in [target, *filter(Path.is_dir, target.rglob("*"))] if is_local(target) else ():
        sync(path)


def _files(directory: Path) -> Iterator[Path]:
    """Yield the files that have their final names, but for leases: all others may be written to, or are locks."""
    for path in storage.files(directory):
        if not any(UNFINISHED.search(part) for part in path.relative_to(directory).parts):
            yield path


def _is_seal(path: Path) -> bool:
    return path.name == DONE


def _is_record(path: Path) -> bool:
    return path.suffix == ".json"


def _is_content(path: Path) -> bool:
    return not _is_seal(path) and not _is_record(path)


def _drop_states(directory: Path) -> None:
    inside = (folder for file in storage.files(directory) for folder in file.parents)
    for path in {p for p in inside if p.name == "checkpoints" and p.is_relative_to(directory)}:
        Checkpoints(path).keep_only(FINAL)
