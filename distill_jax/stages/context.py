"""What a stage gets from the run: its nodes, its inputs' weights, the data, the evaluation, and where to write."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distill_jax.config import ConfigError, identity
from distill_jax.data.records import load_evaluation, load_manifest
from distill_jax.evals.exact_match import Prompts, make_evaluator, prompts_by_form
from distill_jax.io.checkpoint import FINAL, Checkpoints
from distill_jax.io.files import digest, read_json, write_json
from distill_jax.io.metrics import Progress, read_rows
from distill_jax.models import transformer
from distill_jax.models.transformer import TransformerConfig
from distill_jax.perf import flops

DONE = "DONE"


@dataclasses.dataclass(frozen=True)
class Node:
    """A verb with its settings, and the names of the nodes it starts from.

    Attributes:
      name: unique in the experiment.
      verb: a key of `distill_jax.stages.VERBS`.
      settings: the verb's settings dataclass.
      inputs: role ("start", "teacher") -> name of another node.
      identity: hash of the name, the settings, the model, the data and the inputs' identities.
      directory: where the node's files lie.
    """

    name: str
    verb: str
    settings: Any
    inputs: dict[str, str]
    identity: str
    directory: Path

    @property
    def done(self) -> bool:
        """Whether the node is complete."""
        return (self.directory / DONE).exists()

    @property
    def checkpoints(self) -> Checkpoints:
        """The node's checkpoints."""
        return Checkpoints(self.directory / "checkpoints")

    def finish(self, result: dict[str, Any], ledger: dict[str, Any]) -> None:
        """Write the result and the ledger, then DONE, then drop the training states, which nobody needs now."""
        write_json(self.directory / "ledger.json", ledger)
        write_json(self.directory / "result.json", result)
        rows = self.directory / "metrics.jsonl"
        seal = {"metrics.jsonl": digest(rows)} if rows.exists() else {}
        write_json(self.directory / DONE, {"identity": self.identity, "sha256": seal})
        for step in self.checkpoints.steps():
            self.checkpoints.remove(step)

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


@dataclasses.dataclass
class Context:
    """The surroundings of a stage in one run."""

    model: TransformerConfig
    nodes: dict[str, Node]
    data: Path
    progress: Progress
    evaluation_batch: int = 0
    loss_chunk: int = 0

    def params(self, name: str) -> Any:
        """Return the final weights of a finished node, on the host."""
        like = jax.eval_shape(lambda: transformer.init(self.model, jax.random.key(0)))
        return self.nodes[name].checkpoints.restore(FINAL, like)

    @functools.cached_property
    def row_length(self) -> int:
        """T, the tokens of a packed row."""
        return load_manifest(self.data)["config"]["row_length"]

    @functools.cached_property
    def prompts(self) -> list[Prompts]:
        """The evaluated prompts, one entry a form."""
        return prompts_by_form(load_evaluation(self.data))

    def select(self, *parts: str) -> list[Prompts]:
        """Return the prompts of some parts only (retain, shown, heldout)."""
        out = []
        for prompts in self.prompts:
            keep = np.array([group.split("/")[2] in parts for group in prompts.groups])
            arrays = (prompts.prompts[keep], prompts.lengths[keep], prompts.answers[keep])
            if keep.any():
                out.append(Prompts(*arrays, tuple(np.array(prompts.groups)[keep].tolist())))
        return out

    def evaluator(self, mesh: Any, *parts: str) -> Any:
        """Return evaluate(params [P, ...]) -> bool [P, n] on the parts; compiled once a run."""
        key = (mesh, parts)
        if key not in self._evaluators:
            self._evaluators[key] = make_evaluator(self.model, self.select(*parts), mesh, self.evaluation_batch)
        return self._evaluators[key]

    def evaluation_flops(self, *parts: str) -> float:
        """Return what one member's evaluation on the parts costs."""
        cost = 0.0
        for s in self.select(*parts):
            count, width = s.prompts.shape
            cost += flops.decode(self.model, count, width, s.answers.shape[1])
        return cost

    def __post_init__(self):
        self._evaluators: dict[Any, Any] = {}


def seed_for(*what: Any) -> int:
    """Return a 31-bit seed for a purpose, such as seed_for(seed, "pretrain", "rows")."""
    return int(identity(what), 16) & 0x7FFFFFFF
