"""AnswerDistillation: does what a model forgot come out of its answers? A student learns from them alone.

The teacher is the attacked model itself, on what an attacker is shown, and no true answer is. A random student shows
what the answers hold; the attacked model, shrunk or perturbed first, whether learning them again undoes what hides
the rest.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import jax
from jax.sharding import Mesh

from distill_jax.config import SettingError
from distill_jax.losses.distillation import Divergence
from distill_jax.models.transformer import Params
from distill_jax.perf import flops
from distill_jax.stages.attacks.finetuning import Attack
from distill_jax.stages.compiled_step import Objective
from distill_jax.stages.context import Context, Node, seed_for
from distill_jax.stages.distill import Imitation
from distill_jax.train.population import draw_weights

STUDENTS = ("random", "attacked")


@dataclasses.dataclass(frozen=True)
class AnswerDistillation(Attack):
    """Attack a model by distilling what it answers, by the forward KL.

    Attributes:
      student: a "random" one, another for each seed, or the "attacked" model, shrunk or perturbed.
    """

    student: str = "attacked"

    kind: ClassVar[str] = "answer_distillation"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student not in STUDENTS:
            raise SettingError("student", self.student, f"choose one of {', '.join(STUDENTS)}")
        changed = bool(self.shrink or self.noise)
        if self.student == "random" and (changed or self.lora_rank):
            raise ValueError("shrink, noise and lora_rank are of the attacked model; leave them 0 for a random student")
        if self.student == "attacked" and not changed:
            raise SettingError("student", "attacked", "a model has nothing to learn from itself; set shrink or noise")
        if self.retain_weight:
            raise SettingError("retain_weight", self.retain_weight, "the only loss is on the model's answers; set it 0")

    def objective(self) -> Objective:
        """Return the divergence from what the attacked model answers."""
        return Imitation(Divergence("forward_kl"), self.loss_on)

    def teacher_role(self) -> str:
        """Return the role of the model that is imitated."""
        return "start"

    def step_flops(self, ctx: Context) -> dict[str, float]:
        """Return the FLOPs of a step of one student, and of the attacked model beside it."""
        return super().step_flops(ctx) | {"teacher": flops.forward(ctx.model, self.batch, ctx.row_length)}

    def starts(self, ctx: Context, nodes: Sequence[Node], mesh: Mesh) -> list[Params]:
        """Return the weights that the students start from: each one's, or one tree for all."""
        if self.student == "attacked":
            return super().starts(ctx, nodes, mesh)

        @functools.cache
        def drawn(seed: int) -> Params:
            return draw_weights(ctx.model, mesh, jax.random.key(seed_for(seed, "init", self.kind)))

        job = self.train_job(ctx, nodes)
        return [drawn(job.seeds[member.stream]) for member in job.members]
