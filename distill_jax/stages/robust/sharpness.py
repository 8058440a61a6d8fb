"""SAM: forget at the worst weights near by, so that a short way from the model nothing is remembered."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distill_jax.config import SettingError
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages.robust.robustifier import Robustifier, forget_flops
from distill_jax.train.gradient_rules import GradientRule, SharpnessAware


@dataclasses.dataclass(frozen=True)
class Sharpness(Robustifier):
    """Sharpness-aware minimisation of the forget loss (Fan et al., arXiv:2502.05374): see `SharpnessAware`.

    `optax.contrib.sam` perturbs by the gradient of the whole objective, the retain term's with it, and takes the
    perturbation for a step of the optimiser's own; this is one step with two gradients of the forget loss.

    Attributes:
      sam_radius: ρ, the length of the perturbation of all weights together.
    """

    sam_radius: float = 0.01

    name: ClassVar[str] = "sam"
    label: ClassVar[str] = "SAM"

    def __post_init__(self) -> None:
        if not self.sam_radius > 0:
            raise SettingError("sam_radius", self.sam_radius, "must be positive; for none leave robust empty")

    def why_not(self) -> str:
        """Return why it cannot be right with its method; "" if it can."""
        return "whose gradient has a rule of its own" if self.method.gradient_rule() else ""

    def gradient_rule(self) -> GradientRule:
        """Return how the gradient is made of those of the terms."""
        return SharpnessAware(self.sam_radius, self.rest())

    def step_flops(self, cfg: TransformerConfig, rows: int, length: int, lora_rank: int) -> dict[str, float]:
        """Return the FLOPs of a step of one member by cause, for a batch of so many rows of each kind."""
        flops = super().step_flops(cfg, rows, length, lora_rank)
        return flops | {"student": flops["student"] + forget_flops(self.method, flops)}
