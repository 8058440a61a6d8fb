"""What an unlearning method is: the loss terms of a batch of forget and of retain data, and what reports call it."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, Self

import jax

from distill_jax.config import SettingError, Settings
from distill_jax.losses.cross_entropy import Sum, cross_entropy
from distill_jax.losses.distillation import Divergence
from distill_jax.losses.head_loss import CROSS_ENTROPY, Comparison, Head, HeadInputs, HeadLoss, from_teacher
from distill_jax.losses.preference import Documents
from distill_jax.models import transformer
from distill_jax.models.head import head_loss, head_nll, head_of, head_weights
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.stages.compiled_step import Objective
from distill_jax.stages.next_token import NextToken, hidden_and_mask
from distill_jax.train.batch import PackedRows
from distill_jax.train.step import Batch, Term
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class UnlearningMethod(Objective):
    """An unlearning method: its fields are the settings of `Unlearn` that it reads, taken from there by their names.

    `loss_terms` returns a term for each of its `parts`, "forget" and "retain", and the batch has rows of each. Their
    weights are the members' own, and so no settings of the method.

    Attributes:
      name: the value of the setting `method`.
      label: what reports call it; in_words: what it does to a model, for who has not read its paper.
      takes_adapters: whether adapters can train in place of the weights.
      needs_descent: whether the optimiser's step must be along the gradient.
      parts: the data sets that a step reads.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    in_words: ClassVar[str]
    takes_adapters: ClassVar[bool] = True
    needs_descent: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ("forget", "retain")

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Return the names of the settings that it reads."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def of(cls, stage: Settings) -> Self:
        """Return the method with a stage's settings."""
        return cls(**{name: getattr(stage, name) for name in cls.settings()})

    def read_settings(self) -> tuple[str, ...]:
        """Return the names of all settings that decide it."""
        return self.settings()

    @property
    def needs_frozen(self) -> bool:
        """Whether the model that training starts from is run beside the one that trains."""
        return False

    def check_model(self, cfg: TransformerConfig) -> None:
        """Raise ValueError if the model is not one to which the method can be applied."""

    def reads(self) -> dict[str, str]:
        """Return {part of the batch: data set}."""
        return {part: part for part in self.parts}

    @abc.abstractmethod
    def step_flops(self, cfg: TransformerConfig, rows: int, length: int, lora_rank: int) -> dict[str, float]:
        """Return the FLOPs of a step of one member by cause, for a batch of so many rows of each kind."""


@dataclasses.dataclass(frozen=True)
class RetainingMethod(UnlearningMethod):
    """A method with a loss on forget data, that holds the model on retain data.

    Attributes:
      hold: what the retain term is: "cross_entropy" of the text; or "kl", KL(start ‖ p), which holds the model to its
        outputs before unlearning.
      loss_on: "all" or "answer".
      reads_start: whether the forget loss compares with what the starting model says of forget data.
    """

    reads_start: ClassVar[bool] = False

    hold: str = "cross_entropy"
    loss_on: str = "all"

    def __post_init__(self) -> None:
        if self.hold not in ("cross_entropy", "kl"):
            raise SettingError("hold", self.hold, "choose 'cross_entropy' or 'kl'")

    @property
    def needs_frozen(self) -> bool:
        """Whether the model that training starts from is run beside the one that trains."""
        return self.hold == "kl" or self.reads_start

    def student_reads(self) -> tuple[str, ...]:
        """Return the names of the rows that the model that trains reads in a step."""
        return self.parts

    def start_reads(self) -> tuple[str, ...]:
        """Return the names of the rows that the starting model reads in a step."""
        return (("retain",) if self.hold == "kl" else ()) + (("forget",) if self.reads_start else ())

    def teacher_sets(self) -> int:
        """Return how many sets of rows the starting model reads."""
        return len(self.start_reads())

    def named_rows(self, batch: Batch, name: str) -> PackedRows:
        """Return the rows of a name."""
        rows: PackedRows = batch[name]
        return rows

    def teacher_outputs(self, cfg: TransformerConfig, teacher: Params, batch: Batch) -> PyTree:
        """Return the starting model's head and its hidden states by the name of the rows, if it is compared with."""
        if not self.needs_frozen:
            return None
        hidden = {name: hidden_of(cfg, teacher, self.named_rows(batch, name)) for name in self.start_reads()}
        return {"hidden": hidden, "head": head_weights(teacher)}

    def head_losses(self) -> tuple[HeadLoss, ...]:
        """Return the losses on forget and on retain data; of the first, that it is computed of logits."""
        return HeadLoss(cross_entropy), self._retain_loss()

    def _retain_loss(self) -> HeadLoss:
        return from_teacher(Divergence()) if self.hold == "kl" else CROSS_ENTROPY

    @abc.abstractmethod
    def forget_sum(
        self, cfg: TransformerConfig, chunk: int, params: Params, rows: PackedRows, teacher_outputs: PyTree
    ) -> Sum:
        """Return (sum, weight) of the loss on forget data."""

    def loss_terms(
        self, cfg: TransformerConfig, chunk: int, params: Params, batch: Batch, teacher_outputs: PyTree
    ) -> dict[str, Term]:
        """Return the terms of the batch's `parts`, "forget" and "retain"."""
        terms = {"forget": Term(1.0, *self.forget_sum(cfg, chunk, params, batch["forget"], teacher_outputs))}
        if "retain" in self.parts:
            terms["retain"] = self.held(cfg, chunk, params, batch["retain"], self.held_to(teacher_outputs, "retain"))
        return terms

    def held_to(self, teacher_outputs: PyTree, name: str) -> Head | None:
        """Return the starting model's head on rows of a name; None if the model is held to the text."""
        return start_head(teacher_outputs, name) if self.hold == "kl" else None

    def held(self, cfg: TransformerConfig, chunk: int, params: Params, rows: PackedRows, start: Head | None) -> Term:
        """Return the term that holds the model on rows, to what `held_to` returns for them."""
        if start is None:
            return NextToken(self.loss_on).loss_terms(cfg, chunk, params, rows)["cross_entropy"]
        hidden, mask = hidden_and_mask(cfg, params, rows, self.loss_on)
        inputs = HeadInputs(head_of(params, hidden), start, mask)
        return Term(1.0, *head_loss(cfg, chunk, self._retain_loss(), inputs))

    def step_flops(self, cfg: TransformerConfig, rows: int, length: int, lora_rank: int) -> dict[str, float]:
        """Return the FLOPs of a step of one member by cause, for a batch of so many rows of each kind."""
        student = len(self.student_reads()) * flops.train_step(cfg, rows, length, lora_rank=lora_rank)
        teacher = len(self.start_reads()) * flops.forward(cfg, rows, length)
        return {"student": student} | ({"teacher": teacher} if teacher else {})


def hidden_of(cfg: TransformerConfig, params: Params, rows: PackedRows) -> jax.Array:
    """Return the final hidden states that predict a next token, [B, T - 1, D], of undisturbed rows."""
    return transformer.hidden_states(cfg, params, rows.tokens, rows.segments)[:, :-1]


def start_head(teacher_outputs: PyTree, name: str) -> Head:
    """Return the starting model's head on rows of a name."""
    return head_of(teacher_outputs["head"], teacher_outputs["hidden"][name])


@dataclasses.dataclass(frozen=True)
class OutputMethod(RetainingMethod):
    """A method whose loss on forget data is a sum over tokens of a function of their logits.

    Attributes:
      comparison: the forget loss as a divergence from next tokens or from the uniform distribution, which needs no
        logits in memory; None if it is none.
    """

    comparison: ClassVar[Comparison | None] = None

    @abc.abstractmethod
    def forget_loss(self, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> Sum:
        """Return (sum, weight) of the loss on forget data, from logits [B, T, V] and next tokens [B, T]."""

    def head_losses(self) -> tuple[HeadLoss, ...]:
        """Return the losses on forget and on retain data."""
        return HeadLoss(self.forget_loss, self.comparison), self._retain_loss()

    def forget_sum(
        self, cfg: TransformerConfig, chunk: int, params: Params, rows: PackedRows, teacher_outputs: PyTree
    ) -> Sum:
        """Return (sum, weight) of the loss on forget data."""
        del teacher_outputs
        # The head after the hidden states: where both have the embedding, gradients add up in the order of use.
        hidden, mask = hidden_and_mask(cfg, params, rows, self.loss_on)
        forget, _ = self.head_losses()
        return head_loss(cfg, chunk, forget, HeadInputs(head_of(params, hidden), rows.tokens[:, 1:], mask))


@dataclasses.dataclass(frozen=True)
class DocumentMethod(RetainingMethod):
    """A method whose loss on forget data is a function of the likelihood of documents."""

    def nll(self, cfg: TransformerConfig, chunk: int, params: Params, rows: PackedRows) -> tuple[jax.Array, Documents]:
        """Return -log p of every next token of the model that trains [B, T - 1], and the documents these are of."""
        hidden, mask = hidden_and_mask(cfg, params, rows, self.loss_on)
        nll = head_nll(cfg, chunk, head_of(params, hidden), rows.tokens[:, 1:])
        return nll, Documents(rows.segments[:, 1:], mask)

    def start_nll(self, cfg: TransformerConfig, chunk: int, rows: PackedRows, start: Head) -> jax.Array:
        """Return -log p of every next token of the starting model, [B, T - 1], which gets no gradient."""
        return jax.lax.stop_gradient(head_nll(cfg, chunk, start, rows.tokens[:, 1:]))
