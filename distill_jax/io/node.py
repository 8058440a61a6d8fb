"""A node's directory: `config.json`, `metrics.jsonl`, `ledger.json`, `result.json`, `checkpoints/`, and last `DONE`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from distill_jax.config import ConfigError
from distill_jax.io.checkpoint import FINAL, Checkpoints
from distill_jax.io.files import digest, read_json, write_json
from distill_jax.io.metrics import read_rows
from distill_jax.sharding.distributed import chief

DONE = "DONE"


@dataclasses.dataclass(frozen=True)
class Node:
    """A verb with its settings, and the names of the nodes it starts from.

    Attributes:
      name: unique among the nodes it is run with.
      verb: a key of `distill_jax.stages.VERBS`.
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

    def __post_init__(self):
        if not self.stage:
            object.__setattr__(self, "stage", self.name)

    @property
    def done(self) -> bool:
        """Whether the node is complete."""
        return (self.directory / DONE).exists()

    @property
    def checkpoints(self) -> Checkpoints:
        """The node's checkpoints."""
        return Checkpoints(self.directory / "checkpoints")

    def part(self, name: str) -> Node:
        """Return a part of the node's work: a node within its directory, continued and finished like any other."""
        directory = self.directory / name
        directory.mkdir(parents=True, exist_ok=True)
        return dataclasses.replace(self, name=f"{self.name} {name}", directory=directory)

    def finish(self, result: dict[str, Any], ledger: dict[str, Any]) -> None:
        """Write the result and the ledger, then DONE, then drop the training states, which nobody needs now."""
        if not chief():
            return
        write_json(self.directory / "ledger.json", ledger)
        write_json(self.directory / "result.json", result)
        rows = self.directory / "metrics.jsonl"
        seal = {"metrics.jsonl": digest(rows)} if rows.exists() else {}
        write_json(self.directory / DONE, {"identity": self.identity, "sha256": seal})
        self.tidy()

    def tidy(self) -> None:
        """Drop what only an unfinished node needs: its training states, and what a killed process left of others."""
        self.checkpoints.keep_only(FINAL)
        for left in self.directory.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        for part in self.directory.glob(f"*/{DONE}"):
            self.part(part.parent.name).tidy()

    def result(self) -> dict[str, Any]:
        """Read the result of a finished node."""
        return self._read("result.json")

    def ledger(self) -> dict[str, Any]:
        """Read the ledger of a finished node."""
        return self._read("ledger.json")

    def rows(self) -> list[dict[str, Any]]:
        """Read the metrics of a finished node, every row of them."""
        path = self.directory / "metrics.jsonl"
        sealed = self._read(DONE).get("sha256", {}).get(path.name)
        if not path.exists() or (sealed and digest(path) != sealed):
            raise self._damaged(path)
        return read_rows(path)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return read_json(self.directory / name)
        except (OSError, ValueError) as error:
            raise self._damaged(self.directory / name) from error

    def _damaged(self, path: Path) -> ConfigError:
        return ConfigError(f"{path} is missing or damaged; remove {self.directory} and run again to compute it anew")
