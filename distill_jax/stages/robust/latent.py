"""Latent adversarial training: forget under the disturbance of the residual stream that best recalls the text."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from distill_jax.config import SettingError
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.stages.methods.method import RetainingMethod
from distill_jax.stages.next_token import NextToken
from distill_jax.stages.robust.robustifier import Robustifier
from distill_jax.train.batch import PackedRows
from distill_jax.train.step import Batch, Term
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Latent(Robustifier):
    """Latent adversarial training towards the forget text (Sheshadri et al., arXiv:2407.15549).

    To the residual stream of each token of forget data δ is added, ‖δ‖ ≤ ε, found by projected descent of the text's
    cross-entropy, K steps of length 2 ε / K along the token's own gradient; the forget loss is that under δ, which gets
    no gradient. Ours: at the entrance of the first layer alone, and each token in a ball of its own, so that neither
    packing nor pieces of a batch change it.

    Attributes:
      latent_radius: ε, as a share of the root mean square length of what enters the first layer.
      latent_steps: K.
    """

    latent_radius: float = 0.5
    latent_steps: int = 4

    name: ClassVar[str] = "latent"
    label: ClassVar[str] = "LAT"

    def __post_init__(self) -> None:
        if not self.latent_radius > 0:
            raise SettingError("latent_radius", self.latent_radius, "must be positive; for none leave robust empty")
        if self.latent_steps < 1:
            raise SettingError("latent_steps", self.latent_steps, "must be at least 1")

    def why_not(self) -> str:
        """Return why it cannot be right with its method; "" if it can."""
        acts_on_outputs = isinstance(self.method, RetainingMethod)
        return "" if acts_on_outputs else "which acts on states that the disturbance is part of"

    def loss_terms(
        self, cfg: TransformerConfig, chunk: int, params: Params, batch: Batch, teacher_outputs: PyTree
    ) -> dict[str, Term]:
        """Return the method's terms, that of forget data under the disturbance."""
        rows: PackedRows = batch["forget"]
        frozen = jax.lax.stop_gradient(params)
        disturbed = rows._replace(disturbance=jax.lax.stop_gradient(self.disturbance(cfg, chunk, frozen, rows)))
        return super().loss_terms(cfg, chunk, params, {**batch, "forget": disturbed}, teacher_outputs)

    def disturbance(self, cfg: TransformerConfig, chunk: int, params: Params, rows: PackedRows) -> jax.Array:
        """Return δ [B, T, D]."""
        assert isinstance(self.method, RetainingMethod)
        recall = NextToken(self.method.loss_on)
        radius = self.latent_radius * entering_length(cfg, params)

        def loss(delta: jax.Array) -> jax.Array:
            disturbed = rows._replace(disturbance=delta)
            return recall.loss_terms(cfg, chunk, params, disturbed)["cross_entropy"].total

        def step(_: int, delta: jax.Array) -> jax.Array:
            delta = delta - 2 * radius / self.latent_steps * unit(jax.grad(loss)(delta))
            return delta * jnp.minimum(1.0, radius / jnp.maximum(length(delta), 1e-12))

        return jax.lax.fori_loop(0, self.latent_steps, step, jnp.zeros((*rows.tokens.shape, cfg.hidden)))

    def step_flops(self, cfg: TransformerConfig, rows: int, length: int, lora_rank: int) -> dict[str, float]:
        """Return the FLOPs of a step of one member by cause, for a batch of so many rows of each kind."""
        counted = super().step_flops(cfg, rows, length, lora_rank)
        search = self.latent_steps * flops.train_step(cfg, rows, length)
        return counted | {"student": counted["student"] + search}


def length(x: jax.Array) -> jax.Array:
    """Return the length of each vector [..., 1]."""
    return jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))


def unit(x: jax.Array) -> jax.Array:
    """Return vectors of length 1 along x [..., D]; 0 where x is."""
    return x / jnp.maximum(length(x), 1e-30)


def entering_length(cfg: TransformerConfig, params: Params) -> jax.Array:
    """Return the root mean square length of embeddings as they enter the first layer."""
    scale = cfg.hidden**0.5 if cfg.scale_embedding else 1.0
    return scale * jnp.sqrt(jnp.mean(jnp.sum(params["embedding"].astype(jnp.float32) ** 2, axis=-1)))
