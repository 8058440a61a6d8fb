"""What the stages that train the experiment's own model on its packed rows have in common."""

from __future__ import annotations

import abc
import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.config import added
from distill_jax.data.data_config import DataConfig
from distill_jax.models.transformer import TransformerConfig
from distill_jax.stages.compiled_step import CompileKey, Objective
from distill_jax.stages.context import PARTS, Context, Node
from distill_jax.stages.stage import Stage
from distill_jax.stages.train_job import TrainJob
from distill_jax.train.settings import Lora, Training


@dataclasses.dataclass(frozen=True)
class TrainStage(Stage, Training):
    """A stage that trains a decoder on packed rows.

    Attributes:
      microbatches: pieces the batch is accumulated over; the result is the same whatever their number.
      weights: what trains, its moments and its updates are kept in "float32"; or in "bfloat16", where a step below half
        of a weight's last bit is lost. That is how the paper relearned and how it ran WMDP; for nothing else.
      loss_on: "all" tokens of a document, or only the "answer".
    """

    microbatches: int = 1
    weights: str = added("float32")
    loss_on: str = "all"

    def __post_init__(self):
        super().__post_init__()
        if self.microbatches < 1:
            raise ValueError(f"microbatches = {self.microbatches}: must be at least 1")
        if self.batch % self.microbatches:
            raise ValueError(
                f"batch = {self.batch} does not divide into microbatches = {self.microbatches}; "
                f"choose a batch that is a multiple, such as {-(-self.batch // self.microbatches) * self.microbatches}"
            )
        if self.weights not in ("float32", "bfloat16"):
            raise ValueError(f"weights = {self.weights!r}: choose 'float32' or 'bfloat16'")
        if self.loss_on not in ("all", "answer"):
            raise ValueError(f"loss_on = {self.loss_on!r}: choose 'all' or 'answer'")

    @abc.abstractmethod
    def objective(self) -> Objective:
        """Return what a step minimises, without what members of one population may differ in."""

    @abc.abstractmethod
    def train_job(self, ctx: Context, nodes: Sequence[Node]) -> TrainJob:
        """Return what the nodes compile and run as one population."""

    def compile_key(self, cfg: TransformerConfig, chunk: int = 0) -> CompileKey:
        """Return what the step function depends on."""
        return CompileKey(cfg, self.objective(), self.per_unit_rate(), self.steps, self.microbatches, chunk)

    def data_sets(self) -> dict[str, str]:
        """Return {setting: name} of the data sets that the settings choose."""
        return {}

    def validate(self, model: Any, data: DataConfig) -> None:
        """Raise ValueError if the data have no answers to train on, or not the set that it reads."""
        del model
        for key, name in self.data_sets().items():
            data.check_set(key, name)
        if self.loss_on == "answer" and data.MEASURE != "exact_match":
            raise ValueError("loss_on = 'answer': text has no answers; choose 'all'")

    def shared_fields(self) -> dict[str, Any]:
        """Return what the members of one population have in common: of their learning rates the schedule's shape."""
        free = self.per_member_fields() or ()
        shape = {"final_learning_rate": self.final_fraction} if "learning_rate" in free else {}
        return super().shared_fields() | shape

    def num_evaluations(self) -> int:
        """Return how often a node is evaluated at most, the end among it."""
        return self.steps // self.evaluate_every + 1

    def evaluation_flops(self, ctx: Context) -> float:
        """Return the FLOPs of a node's evaluations on all parts."""
        return self.num_evaluations() * ctx.evaluation_flops(*PARTS)


@dataclasses.dataclass(frozen=True)
class AdaptingStage(TrainStage, Lora):
    """A stage that trains the weights of the model that it starts from, or adapters to them."""

    def adapters(self) -> Lora | None:
        """Return which adapters it trains in place of weights."""
        return Lora(self.lora_rank, self.lora_alpha) if self.lora_rank else None


# Of stages that never had a model to adapt.
NO_ADAPTERS: Mapping[str, object] = types.MappingProxyType({"lora_rank": 0, "lora_alpha": Lora.lora_alpha})
