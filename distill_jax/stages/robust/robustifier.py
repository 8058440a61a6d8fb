"""What makes an unlearning method robust in training: the method with another gradient, or with other inputs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

from distill_jax.config import SettingError, Settings
from distill_jax.losses.head_loss import HeadLoss
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages.methods.method import RetainingMethod, UnlearningMethod
from distill_jax.train.gradient_rules import GradientRule
from distill_jax.train.step import Batch, Term
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Robustifier(UnlearningMethod):
    """A method that does what another does, but for what a subclass says.

    Attributes:
      name: the value of the setting `robust`.
      method: the other.
    """

    method: UnlearningMethod

    takes_adapters: ClassVar[bool] = False

    @classmethod
    def own_settings(cls) -> tuple[str, ...]:
        """Return the names of the settings that it reads, besides those of the method."""
        return tuple(field.name for field in dataclasses.fields(cls) if field.name != "method")

    @classmethod
    def around(cls, method: UnlearningMethod, stage: Settings) -> Self:
        """Return it around a method, with a stage's settings.

        Raises:
          ValueError: if it cannot be right with this method.
        """
        made = cls(method, **{name: getattr(stage, name) for name in cls.own_settings()})
        if reason := made.why_not():
            raise SettingError("robust", cls.name, f"not with method = {method.name!r}, {reason}")
        return made

    def why_not(self) -> str:
        """Return why it cannot be right with its method; "" if it can."""
        return ""

    def read_settings(self) -> tuple[str, ...]:
        """Return the names of all settings that decide it."""
        return (*self.method.read_settings(), *self.own_settings())

    @property
    def needs_frozen(self) -> bool:
        """Whether the model that training starts from is run beside the one that trains."""
        return self.method.needs_frozen

    def reads(self) -> dict[str, str]:
        """Return {part of the batch: data set}."""
        return self.method.reads()

    def check_model(self, cfg: TransformerConfig) -> None:
        """Raise ValueError if the model is not one to which the method can be applied."""
        self.method.check_model(cfg)

    def head_losses(self) -> tuple[HeadLoss, ...]:
        """Return the method's losses of the head."""
        return self.method.head_losses()

    def teacher_outputs(self, cfg: TransformerConfig, teacher: Params, batch: Batch) -> PyTree:
        """Return what the method needs of the starting model."""
        return self.method.teacher_outputs(cfg, teacher, batch)

    def teacher_sets(self) -> int:
        """Return how many sets of rows the starting model reads."""
        return self.method.teacher_sets()

    def trainable(self, cfg: TransformerConfig) -> Params | None:
        """Return 0/1 masks like the parameters, 1 where they move; None if all do."""
        return self.method.trainable(cfg)

    def gradient_rule(self) -> GradientRule | None:
        """Return how the gradient is made of those of the terms."""
        return self.method.gradient_rule()

    def loss_terms(
        self, cfg: TransformerConfig, chunk: int, params: Params, batch: Batch, teacher_outputs: PyTree
    ) -> dict[str, Term]:
        """Return the method's terms."""
        return self.method.loss_terms(cfg, chunk, params, batch, teacher_outputs)

    def step_flops(self, cfg: TransformerConfig, rows: int, length: int, lora_rank: int) -> dict[str, float]:
        """Return the FLOPs of a step of one member by cause, for a batch of so many rows of each kind."""
        return self.method.step_flops(cfg, rows, length, lora_rank)

    def rest(self) -> tuple[str, ...]:
        """Return the method's terms but "forget"."""
        return tuple(part for part in self.method.parts if part != "forget")


def forget_flops(method: UnlearningMethod, flops: dict[str, float]) -> float:
    """Return the FLOPs of the forget term of a method with so many a step; that of DPO reads two sets of rows."""
    sets = method.student_reads() if isinstance(method, RetainingMethod) else method.parts
    return flops["student"] * sum(name != "retain" for name in sets) / len(sets)
