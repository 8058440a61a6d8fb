"""What the stages that train the experiment's own model on its packed rows have in common."""

from __future__ import annotations

import abc
import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jax.sharding import Mesh

from distill_jax.config import SettingError, added
from distill_jax.data.data_config import DataConfig
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages.compiled_step import CompileKey, Objective
from distill_jax.stages.context import PARTS, Context, Node
from distill_jax.stages.stage import Stage
from distill_jax.stages.train_job import TrainJob, make_members
from distill_jax.stages.training import EvaluationPlan, finish_models, train
from distill_jax.train.settings import Lora, Training


@dataclasses.dataclass(frozen=True)
class TrainStage(Stage, Training):
    """A stage that trains a decoder on packed rows.

    Attributes:
      microbatches: pieces the batch is accumulated over; the result is the same whatever their number.
      weights: what trains, its moments and its updates are kept in "float32"; or in "bfloat16", where a step below half
        of a weight's last bit is lost. That is how the paper relearned and how it ran WMDP; for nothing else.
      loss_on: "all" tokens of a document, only the "answer", or those "unmarked" by a labeller; of the set "masked"
        answers too are learned where they are unmarked alone.
    """

    microbatches: int = 1
    weights: str = added("float32")
    loss_on: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.microbatches < 1:
            raise SettingError("microbatches", self.microbatches, "must be at least 1")
        if self.batch % self.microbatches:
            raise ValueError(
                f"batch = {self.batch} does not divide into microbatches = {self.microbatches}; "
                f"choose a batch that is a multiple, such as {-(-self.batch // self.microbatches) * self.microbatches}"
            )
        if self.weights not in ("float32", "bfloat16"):
            raise SettingError("weights", self.weights, "choose 'float32' or 'bfloat16'")
        if self.loss_on not in ("all", "answer", "unmarked"):
            raise SettingError("loss_on", self.loss_on, "choose 'all', 'answer' or 'unmarked'")

    goal_fields: ClassVar[tuple[str, ...]] = ()  # of what members may differ in, what says when each may stop

    @abc.abstractmethod
    def objective(self) -> Objective:
        """Return what a step minimises, without what members of one population may differ in."""

    @abc.abstractmethod
    def reads(self) -> str | dict[str, str]:
        """Return the data set whose rows are the batch, or {part of the batch: data set}."""

    @abc.abstractmethod
    def step_flops(self, ctx: Context) -> dict[str, float]:
        """Return the FLOPs of a step of one member by cause: "student", and "teacher" if one runs."""

    def teacher_role(self) -> str:
        """Return the role of the stage whose frozen weights the objective's teacher outputs come from; "" for none."""
        return ""

    def member_coefficients(self) -> dict[str, float]:
        """Return {loss term: what multiplies it}, where members of one population may differ in that."""
        return {}

    def compile_key(self, cfg: TransformerConfig, chunk: int = 0) -> CompileKey:
        """Return what the step function depends on."""
        return CompileKey(cfg, self.objective(), self.per_unit_rate(), self.steps, self.microbatches, chunk)

    def starts(self, ctx: Context, nodes: Sequence[Node], mesh: Mesh) -> list[Params]:
        """Return the weights that each node starts from: its start's, or fresh ones; or one tree for all."""
        if "start" in self.inputs():
            return ctx.starts(nodes, mesh)
        return [ctx.fresh(node, mesh) for node in nodes]

    def train_job(self, ctx: Context, nodes: Sequence[Node]) -> TrainJob:
        """Return what the nodes compile and run as one population."""
        inputs, (members, seeds) = nodes[0].inputs, make_members(nodes)
        return TrainJob(
            members=members,
            seeds=seeds,
            settings=self,
            key=self.compile_key(ctx.model, ctx.run.loss_chunk),
            reads=self.reads(),
            teacher=inputs.get(self.teacher_role(), ""),
            base=inputs["start"] if self.adapters() else "",
            cache=inputs.get("cache", ""),
            flops=self.step_flops(ctx),
        )

    def evaluates_at(self, step: int) -> bool:
        """Return whether it is evaluated at a step."""
        return step > 0 and step % self.evaluate_every == 0

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Train the nodes as one population for all their steps."""
        job = self.train_job(ctx, nodes)
        starts = functools.partial(self.starts, ctx, nodes)
        outcome = train(ctx, job, starts, EvaluationPlan(self.evaluates_at), self.estimate_flops(ctx) * len(nodes))
        finish_models(ctx, job, outcome)

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node at its most steps."""
        return self.steps * sum(self.step_flops(ctx).values()) + self.num_evaluations() * ctx.evaluation_flops(*PARTS)

    def data_sets(self) -> dict[str, str]:
        """Return {setting: name} of the data sets that the settings choose."""
        reads = self.reads()
        return {"data": reads} if isinstance(reads, str) else {}

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError if the data have no answers to train on, or not the set that it reads."""
        del model
        for key, name in self.data_sets().items():
            data.check_set(key, name)
        masked = "masked" in self.data_sets().values()
        if masked and self.loss_on == "all":
            raise SettingError("loss_on", "all", "what is marked in the set 'masked' would count; choose 'unmarked'")
        if self.loss_on == "unmarked" and not masked:
            raise SettingError("loss_on", "unmarked", "only the set 'masked' has marks; read that, or choose 'all'")
        if self.loss_on == "answer" and data.MEASURE != "exact_match":
            raise SettingError("loss_on", "answer", "text has no answers; choose 'all'")

    def shared_fields(self) -> dict[str, Any]:
        """Return what the members of one population have in common: of their learning rates the schedule's shape."""
        free = self.per_member_fields() or ()
        shape = {"final_learning_rate": self.final_fraction} if "learning_rate" in free else {}
        return super().shared_fields() | shape

    def num_evaluations(self) -> int:
        """Return how often a node is evaluated at most, the end among it."""
        return self.steps // self.evaluate_every + 1


@dataclasses.dataclass(frozen=True)
class AdaptingStage(TrainStage, Lora):
    """A stage that trains the weights of the model that it starts from, or adapters to them."""

    def adapters(self) -> Lora | None:
        """Return which adapters it trains in place of weights."""
        return Lora(self.lora_rank, self.lora_alpha) if self.lora_rank else None


# Of stages that never had a model to adapt.
NO_ADAPTERS: Mapping[str, object] = types.MappingProxyType({"lora_rank": 0, "lora_alpha": Lora.lora_alpha})
