"""The package from Python. `import distill_jax` gives these names, and imports what they need when they are used.

    import distill_jax

    run = distill_jax.open_run("arithmetic:smoke", "runs/smoke", {"relearn.seeds": 1})   # checked, nothing computed
    run.compute()
    for model in run.summary()["models"]:
        print(model["name"], model["retain"], model["forget"])

`examples/attack_a_model.py` scores a model's text and attacks it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# What nothing here uses, the package offers: its `__all__` is the one list of names.
from distill_jax.config import ConfigError, check_path  # noqa: F401
from distill_jax.experiment.config_file import load_experiment, validate, with_content_hashes
from distill_jax.experiment.named_config import NamedConfig, change, check_settings_are_read, open_config
from distill_jax.experiment.sweep_points import axis, chain, product, select_stages, zipped  # noqa: F401

if TYPE_CHECKING:
    from distill_jax.data.data_config import DataConfig
    from distill_jax.experiment.experiment import CheckedExperiment
    from distill_jax.io.files import Digests
    from distill_jax.io.node import Node
    from distill_jax.stages import Relearn
    from distill_jax.stages.context import Context


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment in a work directory: checked, and nothing of it computed yet.

    Attributes:
      experiment: its model, data and stages.
      nodes: name -> node: `node.done`, `node.directory`, and once it is done `node.result()` and `node.ledger()`.
    """

    experiment: CheckedExperiment
    nodes: dict[str, Node]
    workdir: Path
    _digests: Digests

    def compute(self) -> Path | None:
        """Compute what is missing and draw the report; return its page, on the first of several processes.

        Raises:
          ConfigError: if the work directory belongs to another experiment, or is in use.
          Interrupted: if SIGTERM came; everything up to it is saved.
        """
        from distill_jax.experiment import graph
        from distill_jax.sharding import distributed

        with self._held(check_mesh=True):
            began = time.monotonic()
            graph.execute(self.nodes, self.experiment.model, self.experiment.run)
            if not distributed.is_primary():
                return None
            from distill_jax.reports import (
                goodput_summary,
                run_summary,
            )  # not before: a third of the time to start is scipy's

            goodput_summary.write(self.nodes.values(), self.workdir)
            write = self.experiment.report or run_summary.write_report
            identity = graph.experiment_identity(self.nodes)
            page: Path = write(self.experiment, self.nodes, identity, self.workdir, time.monotonic() - began)
            return page

    def prepare(self) -> Context:
        """Make the data only."""
        from distill_jax.experiment import graph

        with self._held():
            return graph.execute({graph.DATA: self.nodes[graph.DATA]}, self.experiment.model, self.experiment.run)

    def summary(self) -> dict[str, Any]:
        """Return what the report says, once the run is computed."""
        return read_summary(self.workdir)

    @contextlib.contextmanager
    def _held(self, *, check_mesh: bool = False) -> Iterator[None]:
        """Hold the work directory; one of a run's processes holds it for all.

        Args:
          check_mesh: whether devices that do not divide as the config says are refused first.
        """
        from distill_jax import backend
        from distill_jax.experiment import graph
        from distill_jax.io import leases
        from distill_jax.sharding import distributed

        backend.find_devices()
        if check_mesh:
            graph.check_mesh(self.nodes, self.experiment.model, self.experiment.run)
        if not distributed.is_primary():
            yield
            return
        with leases.held(self.workdir, {"experiment": self.experiment.name}):
            self._digests.save()
            yield


def open_run(config: str | NamedConfig, workdir: str | Path, settings: Mapping[str, Any] | None = None) -> Run:
    """Check an experiment and build its graph; no device is touched and nothing is written.

    Args:
      config: a path or the name of a shipped config, with a preset: "arithmetic:cpu".
      workdir: where everything is written.
      settings: of the config, to be changed: {"relearn.steps": 100}.

    Raises:
      ConfigError: naming the key, the value and the mend.
    """
    from distill_jax import backend

    backend.settle_for_cpu()
    named = open_config(config) if isinstance(config, str) else config
    change(named.config, settings or {})
    backend.set_up(named.config.run)
    check_settings_are_read(named)
    return open_experiment(load_experiment(named.module, named.config), workdir)


def open_experiment(experiment: CheckedExperiment, workdir: str | Path) -> Run:
    """Build the graph of an experiment whose settings fit each other.

    Raises:
      ConfigError: naming a file that is missing, or stages that are not wired as they must be.
    """
    from distill_jax.experiment import graph
    from distill_jax.io import storage
    from distill_jax.io.files import Digests

    check_path("workdir", str(workdir))
    directory = storage.location(workdir)
    storage.check_access(directory, "--workdir")
    digests = Digests(directory / "digests.json")
    experiment = with_content_hashes(experiment, digests)
    return Run(experiment, graph.build(experiment, directory), directory, digests)


def attack(model: str | Path, data: DataConfig, workdir: str | Path, relearn: Relearn, seed: int = 0) -> Run:
    """Open a run that measures a model, attacks it by relearning, and reports what came back.

    Args:
      model: its directory in the Hugging Face layout; `distill-jax export` makes one of a node.
      data: what it is measured on and what the attacker trains on, such as a `TextConfig` or `QuizConfig`.
      relearn: the attack; what it starts from is filled in.

    Raises:
      ConfigError: naming what of them does not fit the model.
    """
    from distill_jax import backend

    backend.settle_for_cpu()
    backend.import_jax()
    from distill_jax.experiment.experiment import CheckedExperiment
    from distill_jax.interop.model_source import open_model
    from distill_jax.io.storage import location
    from distill_jax.stages import Import
    from distill_jax.stages.context import RunSettings

    run, cfg = RunSettings(), open_model(location(model)).cfg
    backend.set_up(dataclasses.asdict(run))
    stages = {"model": Import(path=str(model)), "relearn-model": dataclasses.replace(relearn, start="model", seed=seed)}
    validate(stages, cfg, data)
    name, description = "attack", f"An attack on {location(model).name}."
    return open_experiment(CheckedExperiment(name, description, cfg, data, stages, run), workdir)


def score(model: str | Path, rows: Iterable[str | Mapping[str, Any]], batch: int = 8) -> list[dict[str, Any]]:
    """Return rows with `log_likelihoods`, one a token (the first has none), and their sum, `log_likelihood`.

    Args:
      model: a finished node's directory, or one in the Hugging Face layout.
      rows: texts, or dicts with `text` or `tokens`.

    Raises:
      ConfigError: naming a row that is none, or longer than the model reads.
    """
    from distill_jax import backend

    backend.settle_for_cpu()
    backend.import_jax()
    from distill_jax.interop.model_source import open_model
    from distill_jax.interop.rows import Inference, Rows
    from distill_jax.interop.scoring import score_rows
    from distill_jax.io.storage import location

    source = open_model(location(model))
    named = ((f"row {i}", {"text": row} if isinstance(row, str) else dict(row)) for i, row in enumerate(rows))
    return score_rows(source, Rows(named, source), Inference(batch=batch))


def read_summary(workdir: str | Path) -> dict[str, Any]:
    """Return the summary of a finished run: its models, their scores and attacks, and what was concluded.

    Raises:
      ConfigError: if the directory holds none, or it was changed since it was written.
    """
    from distill_jax.io.storage import location
    from distill_jax.reports import run_summary

    return run_summary.read(location(workdir))
