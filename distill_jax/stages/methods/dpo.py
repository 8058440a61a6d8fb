"""DPO with refusals: prefer a refusal to the answer of each forget question, more than the starting model does."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from distill_jax.config import SettingError
from distill_jax.losses.cross_entropy import Sum
from distill_jax.losses.preference import Documents, dpo
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages.methods.method import DocumentMethod, start_head
from distill_jax.train.batch import PackedRows
from distill_jax.train.step import Batch
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class DPO(DocumentMethod):
    """-(2 / β) log σ(β ((log p - log p_start)(refusal) - (log p - log p_start)(answer))) over documents.

    Rafailov et al., arXiv:2305.18290, eq. 7; as IdkDPO in arXiv:2404.05868. What is ours: a refusal takes the place of
    an answer token by token, cut to its length or its last token repeated, and the answer's last token, its end, stays.
    So both have the same length and lie at the same places of a packed row.

    Attributes:
      beta: β.
      refusal_ids: the refusal's tokens.
    """

    beta: float = 0.1
    refusal_ids: tuple[int, ...] = ()

    name: ClassVar[str] = "dpo"
    label: ClassVar[str] = "DPO with refusals"
    in_words: ClassVar[str] = "prefers a refusal to the answer on what is to be forgotten"
    reads_start: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "refusal_ids", tuple(self.refusal_ids))
        if not self.beta > 0:
            raise SettingError("beta", self.beta, "must be positive")
        if not self.refusal_ids or min(self.refusal_ids) < 0:
            raise SettingError("refusal_ids", self.refusal_ids, "give the tokens that are preferred to an answer")
        if self.loss_on != "answer":
            raise SettingError("loss_on", "all", "a refusal takes the place of an answer; set it to 'answer'")

    def check_model(self, cfg: TransformerConfig) -> None:
        """Raise ValueError if the model has no such tokens."""
        if max(self.refusal_ids) >= cfg.vocab:
            raise SettingError("refusal_ids", self.refusal_ids, f"must be below model.vocab = {cfg.vocab}")

    def refused(self, rows: PackedRows) -> PackedRows:
        """Return the rows with the refusal in place of every answer but its last token."""
        answer = rows.answer > 0
        goes_on = answer[:, 1:] & (rows.segments[:, 1:] == rows.segments[:, :-1])
        replaced = answer & jnp.pad(goes_on, ((0, 0), (0, 1)))
        first = answer & ~jnp.pad(answer[:, :-1] & goes_on, ((0, 0), (1, 0)))
        index = jnp.arange(answer.shape[1])
        place = index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)
        refusal = jnp.asarray(self.refusal_ids, jnp.int32)[jnp.minimum(place, len(self.refusal_ids) - 1)]
        return rows._replace(tokens=jnp.where(replaced, refusal, rows.tokens))

    def student_reads(self) -> tuple[str, ...]:
        """Return the names of the rows that the model that trains reads in a step."""
        return (*super().student_reads(), "refusal")

    def start_reads(self) -> tuple[str, ...]:
        """Return the names of the rows that the starting model reads in a step."""
        return (*super().start_reads(), "refusal")

    def named_rows(self, batch: Batch, name: str) -> PackedRows:
        """Return the rows of a name."""
        return self.refused(batch["forget"]) if name == "refusal" else super().named_rows(batch, name)

    def forget_sum(
        self, cfg: TransformerConfig, chunk: int, params: Params, rows: PackedRows, teacher_outputs: PyTree
    ) -> Sum:
        """Return (sum, weight) over documents."""

        def advantage(rows: PackedRows, name: str) -> tuple[jax.Array, Documents]:
            nll, documents = self.nll(cfg, chunk, params, rows)
            return self.start_nll(cfg, chunk, rows, start_head(teacher_outputs, name)) - nll, documents

        won, _ = advantage(self.refused(rows), "refusal")
        lost, documents = advantage(rows, "forget")
        return dpo(won, lost, documents, self.beta)
