"""WGA: ascend the forget data's cross-entropy, each token weighted by how sure of it the model still is."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from distill_jax.config import SettingError
from distill_jax.losses.cross_entropy import Sum
from distill_jax.losses.unlearning import weighted_ascent
from distill_jax.stages.methods.method import OutputMethod


@dataclasses.dataclass(frozen=True)
class WGA(OutputMethod):
    """Weighted gradient ascent: Σ p^α log p over tokens, p^α without a gradient (Wang et al., arXiv:2502.19301).

    A token that is forgotten weighs nothing, which bounds the ascent.

    Attributes:
      confidence_power: α; 0 is gradient ascent.
    """

    confidence_power: float = 1.0

    name: ClassVar[str] = "wga"
    label: ClassVar[str] = "WGA"
    in_words: ClassVar[str] = (
        "makes what is to be forgotten less likely, each token more gently the less sure of it the model is"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.confidence_power >= 0:
            raise SettingError("confidence_power", self.confidence_power, "must not be negative")

    def forget_loss(self, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> Sum:
        """Return (sum, weight) of p^α log p."""
        return weighted_ascent(logits, targets, mask, self.confidence_power)
