"""Selective unlearning: leave out of the forget update what retain data use of every matrix."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distill_jax.config import SettingError
from distill_jax.stages.methods.wga import WGA
from distill_jax.train.gradient_rules import GradientRule, ProjectedOut


@dataclasses.dataclass(frozen=True)
class Selective(WGA):
    """WGA's ascent, projected off the main singular directions of the retain gradient: see `ProjectedOut`.

    After CIR (Sondej and Yang, arXiv:2509.11816) and RepSelect (arXiv:2606.17168), which collapse common directions of
    activations and of output gradients before they form the update of a matrix: as a matrix's gradient is the sum of
    their outer products, that is to project it on both sides. What is ours: the directions are those of the retain
    gradient of the same step, all matrices are treated so, the loss is WGA's, a retain term is minimised beside it, and
    it takes an optimiser whose step is along the gradient (`Unlearn.epsilon`): AdamW's scaling of each weight would
    turn the update back to what was taken out.

    Attributes:
      selective_rank: directions that are taken out on either side of a matrix, at most half of it.
    """

    selective_rank: int = 8

    name: ClassVar[str] = "selective"
    label: ClassVar[str] = "Selective"
    in_words: ClassVar[str] = "makes what is to be forgotten less likely along directions that retained data do not use"
    takes_adapters: ClassVar[bool] = False
    needs_descent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.selective_rank < 1:
            raise SettingError("selective_rank", self.selective_rank, "must be at least 1; for none use method = 'wga'")

    def gradient_rule(self) -> GradientRule:
        """Return how the gradient is made of those of the terms."""
        return ProjectedOut(self.selective_rank)
