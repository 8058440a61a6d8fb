"""Attack: fine-tuning with an attacker's choices of optimiser, batch, data, what trains and where it starts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from distill_jax.config import SettingError
from distill_jax.data.data_config import DataConfig
from distill_jax.losses.cross_entropy import Sum, cross_entropy
from distill_jax.losses.head_loss import Comparison
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.stages.compiled_step import Objective
from distill_jax.stages.context import Context, Node, seed_for
from distill_jax.stages.methods.method import OutputMethod
from distill_jax.stages.perturb import damage
from distill_jax.stages.relearn import Relearn
from distill_jax.stages.train_job import TrainJob

RETAIN = "retain"


@dataclasses.dataclass(frozen=True)
class HeldRecall(OutputMethod):
    """Cross-entropy of the facts to bring back, and what holds the model on data to retain."""

    name: ClassVar[str] = "recall"
    label: ClassVar[str] = "recall, held on retain data"
    comparison: ClassVar[Comparison | None] = Comparison("token")

    def forget_loss(self, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> Sum:
        """Return (sum, weight) of the cross-entropy."""
        return cross_entropy(logits, targets, mask)


@dataclasses.dataclass(frozen=True)
class Attack(Relearn):
    """Attack a model by fine-tuning; what `Relearn` is for claims, this is for the catalogue of attacks.

    Attributes:
      rows: of the data set that the attacker has, other ones for each seed; 0 for all.
      retain_weight: of a second loss, on as many rows of "retain"; 0 for none.
      hold: what that loss is: "cross_entropy" of the text, or "kl" to the attacked model's outputs.
      shrink, noise: the attacker starts from (1 - shrink) W + noise N, N Xavier-uniform on every matrix W.
    """

    rows: int = 0
    retain_weight: float = 0.0
    hold: str = "cross_entropy"
    shrink: float = 0.0
    noise: float = 0.0

    kind: ClassVar[str] = "attack"
    removable: ClassVar[bool] = False  # whether the attacked model is as it was without what trained

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows", "retain_weight", "noise"):
            if getattr(self, name) < 0:
                raise SettingError(name, getattr(self, name), "must not be negative; 0 for none")
        if not 0 <= self.shrink < 1:
            raise SettingError("shrink", self.shrink, "must be at least 0 and below 1, where nothing is left")
        if self.lora_rank and (self.shrink or self.noise):
            raise ValueError("shrink and noise change the weights that adapters leave as they are; set lora_rank = 0")
        if not self.retain_weight and self.hold != Attack.hold:
            raise SettingError("hold", self.hold, f"does nothing without retain_weight; leave it at {Attack.hold!r}")
        self.objective()  # which checks its own settings

    def objective(self) -> Objective:
        """Return the next token's cross-entropy, beside one on data to retain if that has a weight."""
        return HeldRecall(self.hold, self.loss_on) if self.retain_weight else super().objective()

    def member_coefficients(self) -> dict[str, float]:
        """Return {loss term: what multiplies it}."""
        return {"forget": 1.0, "retain": self.retain_weight} if self.retain_weight else {}

    def teacher_role(self) -> str:
        """Return the role of the model whose outputs on data to retain are held."""
        return "start" if self.retain_weight and self.hold == "kl" else ""

    def step_flops(self, ctx: Context) -> dict[str, float]:
        """Return the FLOPs of a step of one attacker, and of the attacked model if that runs beside it."""
        if not self.retain_weight:
            return super().step_flops(ctx)
        attack = 2 * flops.train_step(ctx.model, self.batch, ctx.row_length, lora_rank=self.lora_rank)
        teacher = {"teacher": flops.forward(ctx.model, self.batch, ctx.row_length)} if self.teacher_role() else {}
        return {"attack": attack} | teacher

    def rows_per_step(self) -> int:
        """Return the rows that one attacker reads in a step, those to retain among them."""
        return self.batch * (2 if self.retain_weight else 1)

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError if the data lack a set that is read."""
        super().validate(model, data)
        if self.retain_weight:
            data.check_set("retain_weight", RETAIN)

    def train_job(self, ctx: Context, nodes: Sequence[Node]) -> TrainJob:
        """Return what one attack runs: every learning rate with every seed as one population."""
        job = super().train_job(ctx, nodes)
        members = [dataclasses.replace(m, coefficients=self.member_coefficients()) for m in job.members]
        shown = str(job.reads)
        return dataclasses.replace(
            job,
            members=members,
            reads={"forget": shown, "retain": RETAIN} if self.retain_weight else shown,
            rows={shown: self.rows} if self.rows else {},
        )

    def starts(self, ctx: Context, nodes: Sequence[Node], mesh: Mesh) -> list[Params]:
        """Return the weights that all attackers start from."""
        starts = super().starts(ctx, nodes, mesh)
        if not (self.shrink or self.noise):
            return starts
        key, kept = jax.random.key(seed_for(self.seed, "attack", self.shrink, self.noise)), np.float32(1 - self.shrink)
        moved = jax.jit(functools.partial(damage, key=key, kept=kept, noise_scale=np.float32(self.noise)))
        return [moved(params) for params in starts]
