"""UNDIAL: distil the starting model's own outputs on forget data, with the memorised token's logit lowered."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from distill_jax.config import SettingError
from distill_jax.losses.chunked import map_tokens
from distill_jax.losses.cross_entropy import Sum
from distill_jax.losses.unlearning import lowered_cross_entropy
from distill_jax.models.head import head_of, unembed
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages.methods.method import RetainingMethod, start_head
from distill_jax.stages.next_token import hidden_and_mask
from distill_jax.train.batch import PackedRows
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class UNDIAL(RetainingMethod):
    """CE(softmax(t - b · onehot(y)), p) over tokens, t the starting model's logits (Dong et al., arXiv:2402.10052).

    Attributes:
      lowering: b.
    """

    lowering: float = 10.0

    name: ClassVar[str] = "undial"
    label: ClassVar[str] = "UNDIAL"
    in_words: ClassVar[str] = (
        "lowers the one token that is to be forgotten, and leaves the rest of the model's distribution"
    )
    reads_start: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lowering > 0:
            raise SettingError("lowering", self.lowering, "must be positive, or nothing is forgotten")

    def forget_sum(
        self, cfg: TransformerConfig, chunk: int, params: Params, rows: PackedRows, teacher_outputs: PyTree
    ) -> Sum:
        """Return (sum, weight) over tokens."""
        hidden, mask = hidden_and_mask(cfg, params, rows, self.loss_on)
        student, start = head_of(params, hidden), start_head(teacher_outputs, "forget")

        def of_chunk(hidden: jax.Array, start_hidden: jax.Array, targets: jax.Array) -> jax.Array:
            logits = unembed(cfg, {"embedding": student.weights}, hidden)
            start_logits = unembed(cfg, {"embedding": start.weights}, start_hidden)
            return lowered_cross_entropy(logits, start_logits, targets, self.lowering)

        losses = map_tokens(of_chunk, chunk, student.hidden, start.hidden, rows.tokens[:, 1:])
        return jnp.sum(losses * mask), jnp.sum(mask)
