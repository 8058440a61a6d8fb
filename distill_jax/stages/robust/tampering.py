"""TAR: forget along the path of an attacker that fine-tunes the model back, at every step of unlearning."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distill_jax.config import SettingError
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.stages.methods.method import RetainingMethod
from distill_jax.stages.next_token import NextToken
from distill_jax.stages.robust.robustifier import Robustifier, forget_flops
from distill_jax.train.gradient_rules import GradientRule, TamperResistant
from distill_jax.train.step import Batch, Term
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Tampering(Robustifier):
    """Tampering-attack resistance to first order (Tamirisa et al., arXiv:2408.00761): see `TamperResistant`.

    The attacker descends the cross-entropy of forget rows in an order of their own. Ours: its steps have a fixed
    length, and every one of them counts alike, the model as it is among them.

    Attributes:
      tar_steps: K, the attacker's steps.
      tar_length: of each of them, all weights together.
    """

    tar_steps: int = 4
    tar_length: float = 0.1

    name: ClassVar[str] = "tar"
    label: ClassVar[str] = "TAR"

    def __post_init__(self) -> None:
        if self.tar_steps < 1:
            raise SettingError("tar_steps", self.tar_steps, "must be at least 1; for none leave robust empty")
        if not self.tar_length > 0:
            raise SettingError("tar_length", self.tar_length, "must be positive")

    def why_not(self) -> str:
        """Return why it cannot be right with its method; "" if it can."""
        if self.method.gradient_rule():
            return "whose gradient has a rule of its own"
        moves_all = isinstance(self.method, RetainingMethod)
        return "" if moves_all else "which moves a few weights, and so would the attacker against whom it is trained"

    def reads(self) -> dict[str, str]:
        """Return {part of the batch: data set}."""
        return super().reads() | {"attack": "forget"}

    def gradient_rule(self) -> GradientRule:
        """Return how the gradient is made of those of the terms."""
        return TamperResistant(self.tar_steps, self.tar_length, self.rest())

    def loss_terms(
        self, cfg: TransformerConfig, chunk: int, params: Params, batch: Batch, teacher_outputs: PyTree
    ) -> dict[str, Term]:
        """Return the method's terms, and the "attack" on them."""
        terms = super().loss_terms(cfg, chunk, params, batch, teacher_outputs)
        assert isinstance(self.method, RetainingMethod)
        learn = NextToken(self.method.loss_on)
        return terms | {"attack": learn.loss_terms(cfg, chunk, params, batch["attack"])["cross_entropy"]}

    def step_flops(self, cfg: TransformerConfig, rows: int, length: int, lora_rank: int) -> dict[str, float]:
        """Return the FLOPs of a step of one member by cause, for a batch of so many rows of each kind."""
        counted = super().step_flops(cfg, rows, length, lora_rank)
        attack = flops.train_step(cfg, rows, length) + forget_flops(self.method, counted)
        return counted | {"student": counted["student"] + self.tar_steps * attack}
