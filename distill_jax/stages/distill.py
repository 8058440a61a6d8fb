"""Distil: train a student on the teacher's output distribution, and on nothing else.

The student is random (Unlearn-and-Distill) or a damaged copy of the teacher (UNDO). The loss is the forward KL over
the full vocabulary on unlabelled data, without any cross-entropy term. A student stops when its retain score is
within `tolerance` of the teacher's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.config import SettingError, added
from distill_jax.losses.distillation import Divergence
from distill_jax.losses.head_loss import HeadInputs, HeadLoss, from_teacher, from_uniform
from distill_jax.models import transformer
from distill_jax.models.head import head_loss, head_of, head_weights
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.stages.cache import Cache
from distill_jax.stages.compiled_step import Objective
from distill_jax.stages.context import Context, Node
from distill_jax.stages.next_token import hidden_and_mask
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.stages.train_stage import AdaptingStage
from distill_jax.stages.training import EvaluationPlan, finish_models, train
from distill_jax.train.batch import PackedRows
from distill_jax.train.step import Batch, Term
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Imitation(Objective):
    """The divergence from the teacher's next-token distribution, and on other rows from the uniform one.

    Attributes:
      loss_on: "all" or "answer".
      cached: whether the batch has the teacher's final hidden states, and the teacher is its head alone.
      uniform: whether the batch is {"imitated": rows, "uniform": rows}, of which the teacher reads the first.
    """

    divergence: Divergence
    loss_on: str = "all"
    cached: bool = False
    uniform: bool = False

    def teacher_outputs(self, cfg: TransformerConfig, teacher: Params, batch: Batch) -> PyTree:
        """Return the teacher's head and its final hidden states, a vocabulary's width smaller than logits."""
        rows = self._imitated(batch)
        if self.cached:
            assert rows.states is not None
            return {"hidden": rows.states[:, :-1], "head": teacher}
        hidden = transformer.hidden_states(cfg, teacher, rows.tokens, rows.segments)[:, :-1]
        return {"hidden": hidden, "head": head_weights(teacher)}

    def head_losses(self) -> tuple[HeadLoss, ...]:
        """Return the divergence from the teacher, and from the uniform distribution where that is a target."""
        return (from_teacher(self.divergence), *([from_uniform(self.divergence)] if self.uniform else []))

    def loss_terms(
        self, cfg: TransformerConfig, chunk: int, params: Params, batch: Batch, teacher_outputs: PyTree
    ) -> dict[str, Term]:
        """Return one term, "kl"."""
        hidden, mask = hidden_and_mask(cfg, params, self._imitated(batch), self.loss_on)
        student, teacher = head_of(params, hidden), head_of(teacher_outputs["head"], teacher_outputs["hidden"])
        imitate, *flatten = self.head_losses()
        total = head_loss(cfg, chunk, imitate, HeadInputs(student, teacher, mask))
        for loss in flatten:  # one mean over the tokens of both, as if both had been rows of one set
            hidden, mask = hidden_and_mask(cfg, params, batch["uniform"], self.loss_on)
            student = student._replace(hidden=hidden)
            flattened = head_loss(cfg, chunk, loss, HeadInputs(student, None, mask))
            total = jax.tree.map(jnp.add, total, flattened)
        return {"kl": Term(1.0, *total)}

    def _imitated(self, batch: Batch) -> PackedRows:
        rows: PackedRows = batch["imitated"] if self.uniform else batch
        return rows


@dataclasses.dataclass(frozen=True)
class Distill(AdaptingStage):
    """Distil a teacher into a student.

    Attributes:
      teacher: the node whose outputs are imitated.
      start: the node the student starts from; "" draws a fresh student.
      cache: a cache node of the same teacher and data, read instead of running the teacher; "" for none.
      data: the prepared set whose tokens both models read.
      uniform: a set of which every step reads `batch` rows more, to which the target is the uniform distribution,
        whatever the teacher would say; "" for none.
      divergence: what is minimised, a key of `losses.distillation.DIVERGENCES`.
      temperature, times_t_squared, beta, skew, top_k: the divergence's, see `losses.distillation.Divergence`; one that
        the chosen divergence does not read must keep its default, and so cannot change an identity.
      tolerance: the student has recovered when its retain accuracy is at most this much below the teacher's, or its
        cross-entropy at most this share above it.
      stop: whether a student that recovered stops; otherwise it takes all steps.
    """

    teacher: str = stage_input()
    start: str = stage_input(optional=True)
    cache: str = stage_input(optional=True)
    data: str = "all"
    uniform: str = added("")
    divergence: str = "forward_kl"
    temperature: float = 1.0
    times_t_squared: bool = True
    beta: float = Divergence.beta
    skew: float = Divergence.skew
    top_k: int = Divergence.top_k
    tolerance: float = 0.05
    stop: bool = True

    kind: ClassVar[str] = "distill"
    goal_fields: ClassVar[tuple[str, ...]] = ("tolerance",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.objective()  # which checks the divergence
        if not 0 <= self.tolerance <= 1:
            raise SettingError("tolerance", self.tolerance, "a difference of scores lies in [0, 1]")
        if self.lora_rank and not self.start:
            raise SettingError("lora_rank", self.lora_rank, "a student of adapters needs a start to attach them to")
        if self.uniform and self.cache:
            raise SettingError("uniform", self.uniform, "a cache holds one set; leave cache or uniform out")

    def data_sets(self) -> dict[str, str]:
        """Return {setting: name} of the data sets that the settings choose."""
        return {"data": self.data} | ({"uniform": self.uniform} if self.uniform else {})

    def check_inputs(self, sources: Mapping[str, Stage]) -> None:
        """Raise ValueError unless teacher and start leave models, and the cache is of this teacher and data."""
        super().check_inputs({role: source for role, source in sources.items() if role != "cache"})
        if "cache" not in sources:
            return
        cache = sources["cache"]
        if not isinstance(cache, Cache):
            raise SettingError("cache", self.cache, f"a {cache.kind} stage holds no hidden states; name a cache stage")
        for key, own, cached in (("teacher", self.teacher, cache.teacher), ("data", self.data, cache.data)):
            if own != cached:
                raise ValueError(
                    f"cache = {self.cache!r} has {key} = {cached!r}, the student {own!r}; they must be one"
                )

    def per_member_fields(self) -> tuple[str, ...]:
        """Return what students behind one teacher may differ in; adapters also share their base."""
        free = ("seed", "learning_rate", "tolerance")
        return free if self.lora_rank else (*free, "start")

    def objective(self) -> Imitation:
        """Return the divergence from the teacher."""
        named = (self.divergence, self.temperature, self.times_t_squared, self.beta, self.skew, self.top_k)
        return Imitation(Divergence(*named), self.loss_on, bool(self.cache), bool(self.uniform))

    def starts(self, ctx: Context, nodes: Sequence[Node], mesh: Mesh) -> list[Params]:
        """Return each student's starting weights: another node's, or fresh ones."""
        return [ctx.params(n.inputs["start"], mesh) if "start" in n.inputs else ctx.fresh(n, mesh) for n in nodes]

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node at its most steps."""
        steps = self.steps * sum(self.step_flops(ctx).values())
        evaluations = self.num_evaluations() * ctx.evaluation_flops("retain")
        return steps + evaluations + ctx.evaluation_flops("shown", "heldout")

    def reads(self) -> str | dict[str, str]:
        """Return the data set whose rows are the batch, or those that are imitated and those that are flattened."""
        return {"imitated": self.data, "uniform": self.uniform} if self.uniform else self.data

    def teacher_role(self) -> str:
        """Return the role of the model that is imitated."""
        return "teacher"

    def step_flops(self, ctx: Context) -> dict[str, float]:
        """Return the FLOPs of a step of one student, and of the teacher of all."""
        layers = 0 if self.cache else ctx.model.layers  # a cached teacher only applies its head
        sets = 2 if self.uniform else 1
        return {
            "student": sets * flops.train_step(ctx.model, self.batch, ctx.row_length, lora_rank=self.lora_rank),
            "teacher": flops.forward(ctx.model, self.batch, ctx.row_length, layers=layers),
        }

    def evaluates_at(self, step: int) -> bool:
        """Return whether it is evaluated at a step; before the first one too."""
        return step % self.evaluate_every == 0

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Distil one teacher into all the nodes' students."""
        job = self.train_job(ctx, nodes)
        teacher = ctx.nodes[job.teacher].result()["retain"]
        scale = ctx.measure.scale
        score = np.nan if teacher is None else teacher  # of a teacher that diverged there is none, and none to recover
        goals = np.array([scale.goal(score, node.settings.tolerance) for node in nodes])

        def reached(scores: dict[str, np.ndarray]) -> np.ndarray:
            return scale.reaches(scores["retain"], goals)

        plan = EvaluationPlan(self.evaluates_at, ("retain",), reached if self.stop else None)
        starts = functools.partial(self.starts, ctx, nodes)
        outcome = train(ctx, job, starts, plan, self.estimate_flops(ctx) * len(nodes))
        finish_models(ctx, job, outcome, watched=("retain",))
