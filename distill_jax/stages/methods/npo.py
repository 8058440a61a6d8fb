"""NPO: lower the likelihood of forget documents below that of the starting model, ever less the lower it is."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distill_jax.config import SettingError
from distill_jax.losses.cross_entropy import Sum
from distill_jax.losses.preference import npo
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages.methods.method import DocumentMethod, start_head
from distill_jax.train.batch import PackedRows
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class NPO(DocumentMethod):
    """-(2 / β) log σ(β (NLL - NLL_start)), NLL summed over a document (Zhang et al., arXiv:2404.05868).

    Attributes:
      beta: β; towards 0 it is gradient ascent.
    """

    beta: float = 0.1

    name: ClassVar[str] = "npo"
    label: ClassVar[str] = "NPO"
    in_words: ClassVar[str] = (
        "makes what is to be forgotten less likely than it was, more gently the further it has fallen"
    )
    reads_start: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise SettingError("beta", self.beta, "must be positive; for the limit at 0 use method = 'graddiff'")

    def forget_sum(
        self, cfg: TransformerConfig, chunk: int, params: Params, rows: PackedRows, teacher_outputs: PyTree
    ) -> Sum:
        """Return (sum, weight) over documents."""
        nll, documents = self.nll(cfg, chunk, params, rows)
        start = self.start_nll(cfg, chunk, rows, start_head(teacher_outputs, "forget"))
        return npo(nll, start, documents, self.beta)
