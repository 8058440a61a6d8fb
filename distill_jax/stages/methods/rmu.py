"""RMU: steer a hidden state to a random vector on forget data, and hold it on retain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from distill_jax.config import SettingError
from distill_jax.losses.unlearning import squared_distance
from distill_jax.models import transformer
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.stages.methods.method import UnlearningMethod
from distill_jax.train.batch import PackedRows
from distill_jax.train.step import Batch, Term
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class RMU(UnlearningMethod):
    """Steer the state that enters `layer` to c·u on forget data and to the starting model's on retain data.

    Attributes:
      layer: l, from 1; only the down projections of a few layers before it move.
      steer: c, the length of the target; u is a random unit vector.
      train_layers: how many layers before `layer` train.
      seed: of u.
    """

    layer: int = 1
    steer: float = 6.5
    train_layers: int = 1
    seed: int = 0

    name: ClassVar[str] = "rmu"
    label: ClassVar[str] = "RMU"
    in_words: ClassVar[str] = "moves the hidden states of one layer on what is to be forgotten to a random direction"
    takes_adapters: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.train_layers <= self.layer:
            raise SettingError(
                "train_layers", self.train_layers, f"RMU trains between 1 and layer = {self.layer} layers"
            )

    @property
    def needs_frozen(self) -> bool:
        """Whether the model that training starts from is run beside the one that trains."""
        return True

    def check_model(self, cfg: TransformerConfig) -> None:
        """Raise ValueError if the model has no such layer."""
        if self.layer > cfg.layers:
            raise SettingError("layer", self.layer, f"must be at most model.layers = {cfg.layers}")

    def teacher_outputs(self, cfg: TransformerConfig, teacher: Params, batch: Batch) -> jax.Array:
        """Return the starting model's state that enters the layer, on retain data."""
        return self._entering(cfg, teacher, batch["retain"])

    def loss_terms(
        self, cfg: TransformerConfig, chunk: int, params: Params, batch: Batch, teacher_outputs: PyTree
    ) -> dict[str, Term]:
        """Return the terms "forget" and "retain"."""
        del chunk  # no logits
        direction = jax.random.uniform(jax.random.key(self.seed), (cfg.hidden,))
        target = self.steer * direction / jnp.linalg.norm(direction)

        def distance(rows: PackedRows, target: jax.Array) -> Term:
            valid = (rows.segments > 0).astype(jnp.float32)
            return Term(1.0, *squared_distance(self._entering(cfg, params, rows), target, valid))

        return {"forget": distance(batch["forget"], target), "retain": distance(batch["retain"], teacher_outputs)}

    def _entering(self, cfg: TransformerConfig, params: Params, rows: PackedRows) -> jax.Array:
        return transformer.residual_at(cfg, params, rows.tokens, rows.segments, self.layer)

    def trainable(self, cfg: TransformerConfig) -> Params:
        """Return 0/1 masks like the parameters: 1 on the down projections of `train_layers` layers before `layer`."""
        shapes = transformer.shapes(cfg)
        index = jnp.arange(cfg.layers)
        chosen = ((index >= self.layer - self.train_layers) & (index < self.layer)).astype(jnp.float32)

        def mask(path: Sequence[jax.tree_util.DictKey], leaf: jax.ShapeDtypeStruct) -> jax.Array:
            on = path[-1].key == "down"
            return chosen.reshape(-1, *[1] * (leaf.ndim - 1)) if on else jnp.zeros([1] * leaf.ndim)

        return jax.tree_util.tree_map_with_path(mask, shapes)

    def step_flops(self, cfg: TransformerConfig, rows: int, length: int, lora_rank: int) -> dict[str, float]:
        """Return the FLOPs of a step of one member by cause, for a batch of so many rows of each kind."""
        del lora_rank
        student = 2 * flops.train_step(cfg, rows, length, layers=self.layer)
        return {"student": student, "teacher": student / 6}
