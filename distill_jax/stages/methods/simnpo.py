"""SimNPO: lower the likelihood of forget documents, of a token on average, without a reference."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distill_jax.config import SettingError
from distill_jax.losses.cross_entropy import Sum
from distill_jax.losses.preference import simnpo
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages.methods.method import DocumentMethod
from distill_jax.train.batch import PackedRows
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class SimNPO(DocumentMethod):
    """-(2 / β) log σ(β NLL / length - δ), NLL and length of a document (Fan et al., arXiv:2410.07163).

    Attributes:
      length_beta: β.
      margin: δ.
    """

    length_beta: float = 4.5
    margin: float = 0.0

    name: ClassVar[str] = "simnpo"
    label: ClassVar[str] = "SimNPO"
    in_words: ClassVar[str] = "makes what is to be forgotten unlikely, more gently the further it has fallen"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.length_beta > 0:
            raise SettingError("length_beta", self.length_beta, "must be positive")

    def forget_sum(
        self, cfg: TransformerConfig, chunk: int, params: Params, rows: PackedRows, teacher_outputs: PyTree
    ) -> Sum:
        """Return (sum, weight) over documents."""
        del teacher_outputs
        nll, documents = self.nll(cfg, chunk, params, rows)
        return simnpo(nll, documents, self.length_beta, self.margin)
