"""What an unlearning method is: the loss terms of a batch of forget and of retain data, and what reports call it."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, Self

import jax

from distill_jax.config import Settings
from distill_jax.losses.cross_entropy import Sum
from distill_jax.losses.distillation import Divergence
from distill_jax.losses.head_loss import CROSS_ENTROPY, Comparison, HeadInputs, HeadLoss, from_teacher
from distill_jax.models import transformer
from distill_jax.models.head import head_loss, head_of, head_weights
from distill_jax.models.transformer import Params, TransformerConfig
from distill_jax.perf import flops
from distill_jax.stages.compiled_step import Objective
from distill_jax.stages.next_token import NextToken, hidden_and_mask
from distill_jax.train.batch import PackedRows
from distill_jax.train.step import Batch, Term
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class UnlearningMethod(Objective):
    """An unlearning method: its fields are the settings of `Unlearn` that it reads, taken from there by their names.

    `loss_terms` returns two terms, "forget" and "retain"; the batch is {"forget": rows, "retain": rows}. Their weights
    are the members' own, and so no settings of the method.

    Attributes:
      name: the value of the setting `method`.
      label: what reports call it.
      takes_adapters: whether adapters can train in place of the weights.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    takes_adapters: ClassVar[bool] = True

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Return the names of the settings that it reads."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def of(cls, stage: Settings) -> Self:
        """Return the method with a stage's settings."""
        return cls(**{name: getattr(stage, name) for name in cls.settings()})

    @property
    def needs_frozen(self) -> bool:
        """Whether the model that training starts from is run beside the one that trains."""
        return False

    def check_model(self, cfg: TransformerConfig) -> None:
        """Raise ValueError if the model is not one to which the method can be applied."""

    def step_flops(self, cfg: TransformerConfig, rows: int, length: int, lora_rank: int) -> dict[str, float]:
        """Return the FLOPs of a step of one member by cause, for a batch of so many rows of each kind."""
        student = {"student": 2 * flops.train_step(cfg, rows, length, lora_rank=lora_rank)}
        return student | ({"teacher": flops.forward(cfg, rows, length)} if self.needs_frozen else {})


@dataclasses.dataclass(frozen=True)
class OutputMethod(UnlearningMethod):
    """A method with a loss of the output distribution on forget data, that holds the one on retain data.

    Attributes:
      hold: what the retain term is: "cross_entropy" of the text; or "kl", KL(start ‖ p), which holds the model to its
        outputs before unlearning.
      loss_on: "all" or "answer".
      comparison: the forget loss as a divergence from next tokens or from the uniform distribution, which needs no
        logits in memory; None if it is none.
    """

    comparison: ClassVar[Comparison | None] = None

    hold: str = "cross_entropy"
    loss_on: str = "all"

    def __post_init__(self) -> None:
        if self.hold not in ("cross_entropy", "kl"):
            raise ValueError(f"hold = {self.hold!r}: choose 'cross_entropy' or 'kl'")

    @property
    def needs_frozen(self) -> bool:
        """Whether the model that training starts from is run beside the one that trains."""
        return self.hold == "kl"

    def teacher_outputs(self, cfg: TransformerConfig, teacher: Params, batch: Batch) -> PyTree:
        """Return the starting model's hidden states on retain data and its head, if it is held to them."""
        if self.hold != "kl":
            return None
        rows = batch["retain"]
        hidden = transformer.hidden_states(cfg, teacher, rows.tokens, rows.segments)[:, :-1]
        return {"hidden": hidden, "head": head_weights(teacher)}

    @abc.abstractmethod
    def forget_loss(self, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> Sum:
        """Return (sum, weight) of the loss on forget data, from logits [B, T, V] and next tokens [B, T]."""

    def head_losses(self) -> tuple[HeadLoss, ...]:
        """Return the losses on forget and on retain data."""
        retain = from_teacher(Divergence()) if self.hold == "kl" else CROSS_ENTROPY
        return HeadLoss(self.forget_loss, self.comparison), retain

    def loss_terms(
        self, cfg: TransformerConfig, chunk: int, params: Params, batch: Batch, teacher_outputs: PyTree
    ) -> dict[str, Term]:
        """Return the terms "forget" and "retain"."""
        rows: PackedRows = batch["forget"]
        # The head after the hidden states: where both have the embedding, gradients add up in the order of use.
        hidden, mask = hidden_and_mask(cfg, params, rows, self.loss_on)
        forget, _ = self.head_losses()
        loss = head_loss(cfg, chunk, forget, HeadInputs(head_of(params, hidden), rows.tokens[:, 1:], mask))
        retain = self._retain(cfg, chunk, params, batch["retain"], teacher_outputs)
        return {"forget": Term(1.0, *loss), "retain": retain}

    def _retain(
        self, cfg: TransformerConfig, chunk: int, params: Params, rows: PackedRows, teacher_outputs: PyTree
    ) -> Term:
        if self.hold != "kl":
            return NextToken(self.loss_on).loss_terms(cfg, chunk, params, rows)["cross_entropy"]
        hidden, mask = hidden_and_mask(cfg, params, rows, self.loss_on)
        student, start = head_of(params, hidden), head_of(teacher_outputs["head"], teacher_outputs["hidden"])
        return Term(1.0, *head_loss(cfg, chunk, self.head_losses()[1], HeadInputs(student, start, mask)))
