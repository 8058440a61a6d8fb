"""Attempts: every worker that leases a node computes it in a directory of its own, and the first that ends becomes it.

A lease cannot hold back its last owner: stopped for too long, or stuck in a write to a file server, a worker wakes
beside its successor and inside a rename that nothing recalls. So nothing depends on the dead keeping still. The number
of a lease is a fencing token: its owner writes below `attempts/<node>/<number>/` only, where no other worker ever
writes, and the node's own directory comes to be by one rename of a finished attempt.

* A successor begins with what the newest attempt before its own had proved: it copies records before what they vouch
  for, and never looks there again. What is written late is written where nobody reads.
* Renaming a directory onto one that has files fails, so a node is finished once. Its rows, its ledger and its seal are
  those of one attempt; what a slower one came to has the same numbers, as all are drawn from the same seeds.
* Nothing that a living worker needs is removed: attempts go when the node is there, and before that only the training
  states of older ones, which their workers hold in memory.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from distill_jax.config import check
from distill_jax.io.checkpoint import FINAL, Checkpoints
from distill_jax.io.files import sync
from distill_jax.io.node import DONE, Node

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
    _move_aside(node)
    work, target = base / f".{number}", base / str(number)
    work.mkdir()
    before = [path for path in _attempts(node) if int(path.name) < number]
    source = before[-1] if before else base / IN_PLACE
    if source.exists():
        _adopt(source, work)
    os.rename(work, target)  # an attempt has its name once it has all that it goes on from
    sync(base)
    for path in before:
        _drop_states(path)
    return dataclasses.replace(node, directory=target)


def publish(attempt: Node, node: Node) -> None:
    """Make a finished attempt the node, unless another one is it already, and remove it and those before it."""
    node.directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        if attempt.done:
            attempt.tidy()  # for a worker that did not come to it
            os.rename(attempt.directory, node.directory)
    except OSError:
        if not node.done:
            raise
    check(node.done, f"{attempt.directory} was removed while it was computed; run again")
    sync(node.directory.parent)
    clear(node, int(attempt.directory.name))


def leftovers(node: Node, number: int | None = None) -> list[Path]:
    """Return the directories of attempts, begun or complete, up to that of a number."""
    base = home(node)
    names = os.listdir(base) if base.exists() else []
    numbers = {name: int(name.removeprefix(".")) for name in names if re.fullmatch(r"\.?\d+", name)}
    return [base / name for name in numbers if number is None or numbers[name] <= number]


def clear(node: Node, number: int) -> None:
    """Remove a finished node's attempts up to a number; leases stay, so that no number is given out twice."""
    for path in leftovers(node, number):
        shutil.rmtree(path, ignore_errors=True)
    for path in (home(node) / IN_PLACE).glob("*"):
        if path.is_dir():  # a file stays, so that nothing is moved there again
            shutil.rmtree(path, ignore_errors=True)


def _attempts(node: Node) -> list[Path]:
    """Return the directories of the attempts that have been begun wholly, oldest first."""
    return sorted((path for path in leftovers(node) if path.name.isdecimal()), key=lambda path: int(path.name))


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
            to = target / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            try:
                if set(LINKED) & set(path.relative_to(source).parts):
                    os.link(path, to)
                else:
                    shutil.copy2(path, to)
                    sync(to)
            except FileNotFoundError:  # it was removed since: whoever reads it will miss it
                to.unlink(missing_ok=True)
    for path in [target, *filter(Path.is_dir, target.rglob("*"))]:
        sync(path)


def _files(directory: Path) -> Iterator[Path]:
    """Yield the files that have their final names, but for leases: all others may be written to, or are locks."""
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not UNFINISHED.search(name)]
        yield from (Path(folder, name) for name in names if not UNFINISHED.search(name))


def _is_seal(path: Path) -> bool:
    return path.name == DONE


def _is_record(path: Path) -> bool:
    return path.suffix == ".json"


def _is_content(path: Path) -> bool:
    return not _is_seal(path) and not _is_record(path)


def _drop_states(directory: Path) -> None:
    for path in [*directory.rglob("checkpoints")]:
        Checkpoints(path).keep_only(FINAL)
