"""A node's directory: `config.json`, `metrics.jsonl`, `ledger.json`, `result.json`, `checkpoints/`, and last `DONE`.

DONE is the node's seal: it lists the digests of the files that are read back, and of the lists that prove the larger
ones (a checkpoint's, the rows', the cached states'). What a finished node says is held against it, or refused.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_jax.config import ConfigError, check
from distill_jax.io.checkpoint import FINAL, Checkpoints
from distill_jax.io.files import (
    digest,
    digest_once,
    read_json,
    read_sealed,
    write_json,
    write_sealed,
)
from distill_jax.io.metrics import Metrics, read_rows
from distill_jax.io.node_files import CONFIG, DONE, LEDGER, METRICS, RESULT, TIMINGS
from distill_jax.io.storage import Version, absolute, make_directory, sync, version
from distill_jax.sharding.distributed import is_primary
from distill_jax.types import JsonObject

FORMAT = 2  # of DONE; 1 sealed only the metrics
EXECUTION = "execution.json"  # how it was run, where that was left to the program: `stages.choose_remat`
PROOF, ROWS, STATES, TOKENIZER = "checkpoints/final.json", "rows/manifest.json", "states/states.json", "tokenizer"
SEALED = (CONFIG, EXECUTION, METRICS, LEDGER, RESULT, PROOF, ROWS, STATES, f"{TOKENIZER}/*")  # each if there is one
SEAL_SECONDS = 5.0  # for which a finished node in a bucket is taken to be there still
FIX_HINT = "and run again to compute it anew"


@functools.cache
def _sealed_in(done: Path, _: Version) -> JsonObject:
    return read_sealed(done)


@dataclasses.dataclass(frozen=True)
class Node:
    """A verb with its settings, and the names of the nodes it starts from.

    Attributes:
      name: unique among the nodes it is run with.
      verb: the stage's `kind`.
      settings: the verb's settings dataclass.
      inputs: role ("start", "teacher") -> name of another node.
      identity: hash of the name, the settings, the model, the data and the inputs' identities.
      directory: where the node's files lie.
      peers: how many nodes of its experiment or sweep may train as one population with it, itself among them. How a
        node is laid out depends on this and not on who trains with it in fact, so it comes out the same either way.
      stage: its name in its experiment, on which its random draws depend, and which several nodes of a sweep may share;
        its own name when left out.
    """

    name: str
    verb: str
    settings: Any
    inputs: dict[str, str]
    identity: str
    directory: Path
    peers: int = 1
    stage: str = ""

    def __post_init__(self) -> None:
        if not self.stage:
            object.__setattr__(self, "stage", self.name)

    @property
    def done(self) -> bool:
        """Return whether the node is complete.

        Raises:
          ConfigError: if its DONE is another's, damaged, or of an earlier version.
        """
        return self._seal() is not None

    @property
    def checkpoints(self) -> Checkpoints:
        """The node's checkpoints; of a finished node they are the sealed ones or none."""
        seal = self._seal()
        final = None if seal is None else seal.get(PROOF, "")
        directory, journal = self.directory / "checkpoints", self.directory / METRICS
        return Checkpoints(directory, journal=journal, final=final, owner=self._owner)

    def continued_metrics(self, step: int) -> Metrics:
        """Open the metrics of a node that continues from a checkpoint, or begins at step 0."""
        return Metrics(self.directory, step, self.checkpoints.journal(step) if step else None)

    def subnode(self, name: str) -> Node:
        """Return a part of the node's work: a node within its directory, continued and finished like any other."""
        directory = self.directory / name
        make_directory(directory)
        return dataclasses.replace(self, name=f"{self.name} {name}", directory=directory)

    def finish(self, result: Mapping[str, object], ledger: Mapping[str, object]) -> None:
        """Write the result and the ledger, then DONE, then drop the training states, which nobody needs now."""
        if not is_primary():
            return
        write_json(self.directory / LEDGER, ledger)
        write_json(self.directory / RESULT, result)
        files = {}
        for path in sorted(path for pattern in SEALED for path in self.directory.glob(pattern)):
            sync(path)
            files[str(path.relative_to(self.directory))] = digest(path)
        write_sealed(self.directory / DONE, {"format": FORMAT, "identity": self.identity, "files": files})
        self.tidy()

    def tidy(self) -> None:
        """Drop what only an unfinished node needs: its training states, and what a killed process left of others."""
        self.checkpoints.keep_only(FINAL)
        (self.directory / TIMINGS).unlink(missing_ok=True)
        for left in self.directory.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        for done in self.directory.glob(f"*/{DONE}"):
            self.subnode(done.parent.name).tidy()

    def result(self) -> JsonObject:
        """Read the result of a finished node."""
        return self._read(RESULT)

    def ledger(self) -> JsonObject:
        """Read the ledger of a finished node."""
        return self._read(LEDGER)

    def rows(self) -> list[JsonObject]:
        """Read the metrics of a finished node, every row of them."""
        return read_rows(self.sealed(METRICS))

    def sealed(self, name: str) -> Path:
        """Return the path of a file of a finished node.

        Raises:
          ConfigError: if it is not the file that was there when the node finished.
        """
        path, expected = self.directory / name, (self._seal() or {}).get(name)
        try:
            if expected is None or digest_once(path) != expected:
                raise self._damaged(path)
        except OSError as error:
            raise self._damaged(path) from error
        return path

    def sealed_under(self, folder: str) -> list[Path]:
        """Return the paths of a finished node's files whose names begin so; as `sealed`, each is what it was."""
        return [self.sealed(name) for name in self._seal() or {} if name.startswith(folder)]

    def _read(self, name: str) -> JsonObject:
        return read_json(self.sealed(name))

    def _seal(self) -> Mapping[str, str] | None:
        """Return the digests of the files of a finished node; None if it is not finished."""
        path = self.directory / DONE
        try:
            seal = _sealed_in(path, version(path, SEAL_SECONDS))
            files: Mapping[str, str] = seal["files"]
            intact = (seal["format"], seal["identity"]) == (FORMAT, self.identity) and {RESULT, LEDGER} <= set(files)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(path) from error
        if not intact:
            raise self._damaged(path)
        return files

    @property
    def _owner(self) -> Path:
        """The directory to remove if this one is damaged: a finished node's parts are made only with it."""
        parent = self.directory.parent
        return parent if (parent / DONE).exists() else self.directory

    def _damaged(self, path: Path) -> ConfigError:
        why = "is damaged, another node's or of an earlier version" if path.name == DONE else "is missing or damaged"
        return ConfigError(f"{path} {why}; remove {self._owner} {FIX_HINT}")


def finished(directory: Path) -> Node:
    """Open a finished node by its directory alone, to read what it left.

    Raises:
      ConfigError: if it is not finished, or not what was finished there.
    """
    done = directory / DONE
    check(done.is_file(), f"{directory}: not finished, there is no {DONE}; run the command that makes it to its end")
    try:
        identity = str(_sealed_in(done, version(done))["identity"])
    except (OSError, ValueError, KeyError):
        identity = ""
    if named := re.fullmatch(r".*-([0-9a-f]{12})", absolute(directory).resolve().name):
        identity = named[1]
    node = Node(directory.name, "", None, {}, identity, directory)
    check(node.done, f"{directory}: removed while it was read")
    return node
