"""RepNoise: make what a model computes of forget data look like noise in every layer, and not only at its outputs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distill_jax.config import SettingError
from distill_jax.losses.noise_distance import mean_over_layers
from distill_jax.losses.preference import Documents
from distill_jax.models import transformer
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.stages.methods.method import RetainingMethod
from distill_jax.stages.robust.robustifier import Robustifier
from distill_jax.train.batch import PackedRows
from distill_jax.train.step import Batch, Term
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Noising(Robustifier):
    """Representation noising (Rosati et al., arXiv:2405.14577): add to a method β times a distance of states to noise.

    The distance is the squared MMD between the states of a forget document where it predicts what the loss counts, and
    N(0, σ² I): the mean over the residual streams that leave each layer, and over documents (`losses.noise_distance`).

    What is ours, and how the authors' code differs: its MMD is between the rows of a batch, each with all its tokens
    one vector, and as many drawn of noise, so that it depends on what else is in the batch, on padding and on
    microbatches; here each document is compared with the noise itself, in closed form, as the paper's derivation has it
    (the distribution of states given an input). Its states are the outputs of the MLPs, at tokens in which a harmful
    and a harmless answer differ. And the paper ascends the logarithm of the cross-entropy that every layer would have
    through the head; in its place stands whatever the method that this is put around does with forget data.

    Attributes:
      repnoise_weight: β.
      repnoise_scale: σ, the standard deviation of the noise.
    """

    repnoise_weight: float = 10.0
    repnoise_scale: float = 1.0

    name: ClassVar[str] = "repnoise"
    label: ClassVar[str] = "RepNoise"
    takes_adapters: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("repnoise_weight", "repnoise_scale"):
            if not getattr(self, name) > 0:
                raise SettingError(name, getattr(self, name), "must be positive; for no noise leave robust empty")

    def why_not(self) -> str:
        """Return why it cannot be right with its method; "" if it can."""
        if self.method.gradient_rule():
            return "whose gradient has a rule of its own"
        acts_on_outputs = isinstance(self.method, RetainingMethod)
        return "" if acts_on_outputs else "which steers the states that are to be noise"

    def loss_terms(
        self, cfg: TransformerConfig, chunk: int, params: Params, batch: Batch, teacher_outputs: PyTree
    ) -> dict[str, Term]:
        """Return the method's terms, and the distance to "noise"."""
        terms = super().loss_terms(cfg, chunk, params, batch, teacher_outputs)
        assert isinstance(self.method, RetainingMethod)
        rows: PackedRows = batch["forget"]
        states = transformer.residuals(cfg, params, rows.tokens, rows.segments)[:, :, :-1]
        documents = Documents(rows.segments[:, 1:], rows.target_mask(self.method.loss_on))
        distance = mean_over_layers(states, documents, self.repnoise_scale)
        return terms | {"noise": Term(self.repnoise_weight, *distance)}

    def step_flops(self, cfg: TransformerConfig, rows: int, length: int, lora_rank: int) -> dict[str, float]:
        """Return the FLOPs of a step of one member by cause, for a batch of so many rows of each kind."""
        counted = super().step_flops(cfg, rows, length, lora_rank)
        states = flops.train_step(cfg, rows, length, layers=cfg.layers, lora_rank=lora_rank)
        pairs = 3 * 2.0 * cfg.layers * rows * length**2 * cfg.hidden
        return counted | {"student": counted["student"] + states + pairs}
