"""The next token's cross-entropy: what pretraining, fine-tuning and the attack minimise."""

from __future__ import annotations

import dataclasses

import jax

from distill_jax.losses.head_loss import CROSS_ENTROPY, HeadInputs, HeadLoss
from distill_jax.models import transformer
from distill_jax.models.head import head_loss, head_of
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages.compiled_step import Objective
from distill_jax.train.batch import PackedRows
from distill_jax.train.step import Term
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class NextToken(Objective):
    """Cross-entropy of every next token of a document, or of its answer's alone.

    Attributes:
      loss_on: "all" or "answer".
    """

    loss_on: str = "all"

    def head_losses(self) -> tuple[HeadLoss, ...]:
        """Return cross-entropy."""
        return (CROSS_ENTROPY,)

    def loss_terms(
        self, cfg: TransformerConfig, chunk: int, params: Params, batch: PackedRows, teacher_outputs: PyTree = None
    ) -> dict[str, Term]:
        """Return one term, "cross_entropy"."""
        # The head after the hidden states: where both have the embedding, gradients add up in the order of use.
        hidden, mask = hidden_and_mask(cfg, params, batch, self.loss_on)
        total = head_loss(cfg, chunk, CROSS_ENTROPY, HeadInputs(head_of(params, hidden), batch.tokens[:, 1:], mask))
        return {"cross_entropy": Term(1.0, *total)}


def hidden_and_mask(
    cfg: TransformerConfig, params: Params, rows: PackedRows, loss_on: str
) -> tuple[jax.Array, jax.Array]:
    """Return the final hidden states that predict a next token [B, T-1, D], and which predictions count [B, T-1]."""
    hidden = transformer.hidden_states(cfg, params, rows.tokens, rows.segments, rows.disturbance)
    return hidden[:, :-1], rows.target_mask(loss_on)
