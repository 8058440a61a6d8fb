"""MaxEnt: make the model's next-token distribution on forget data uniform."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from distill_jax.losses.cross_entropy import Sum
from distill_jax.losses.head_loss import Comparison
from distill_jax.losses.unlearning import max_entropy
from distill_jax.stages.methods.method import OutputMethod


@dataclasses.dataclass(frozen=True)
class MaxEnt(OutputMethod):
    """KL(uniform ‖ p) on forget data, and what holds the model on retain data."""

    name: ClassVar[str] = "maxent"
    label: ClassVar[str] = "MaxEnt"
    in_words: ClassVar[str] = "makes every next token equally likely on what is to be forgotten"
    comparison: ClassVar[Comparison | None] = Comparison("uniform")

    def forget_loss(self, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> Sum:
        """Return (sum, weight) of KL(uniform ‖ p)."""
        del targets
        return max_entropy(logits, mask)
