"""An experiment: as its config declares it, and as it is run once its config is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from distill_jax.data.arithmetic.equations import ArithmeticConfig
from distill_jax.data.data_config import DataConfig
from distill_jax.io.node import Node
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages.context import RunSettings
from distill_jax.stages.stage import Stage


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config's `get_experiment` returns.

    Attributes:
      stages: by name; each starts from others, by their names.
      model, data: the dataclasses that the sections `model` and `data` of the config are settings of.
      check: refuses a design that could not answer, by ConfigError; what has one can be audited.
      report: writes the report of a finished run; None writes that on robustness (`reports.run_summary`).
      notes: what a report says that no stage knows, such as {"pretraining_tokens": 2e12}.
    """

    stages: Mapping[str, Stage]
    model: type[Any] = TransformerConfig
    data: type[DataConfig] = ArithmeticConfig
    check: Callable[[CheckedExperiment], None] | None = None
    report: ReportWriter | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CheckedExperiment:
    """An experiment whose settings are known to fit each other.

    Attributes:
      precision: part of every identity; of weights it is the stages' own setting.
    """

    name: str
    description: str
    model: TransformerConfig
    data: DataConfig
    stages: Mapping[str, Stage]
    run: RunSettings
    report: ReportWriter | None = None
    audited: bool = False
    precision: str = "fp32"
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class ReportWriter(Protocol):
    """Write the report of a finished run, and return the page's path."""

    def __call__(
        self, experiment: CheckedExperiment, nodes: dict[str, Node], identity: str, workdir: Path, seconds: float
    ) -> Path: ...
