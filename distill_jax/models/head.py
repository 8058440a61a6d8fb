"""The head of a decoder: from its final hidden states to logits.

Axes: B batch, T length, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from distill_jax.config import check
from distill_jax.losses.blockwise import blockwise
from distill_jax.losses.chunked import map_tokens, over_tokens
from distill_jax.losses.cross_entropy import Sum, token_nll
from distill_jax.losses.head_loss import Head, HeadInputs, HeadLoss
from distill_jax.losses.on_chip import kernel_passes, why_no_kernels
from distill_jax.losses.vocabulary_block import BlockLoss
from distill_jax.losses.vocabulary_passes import PlainPasses
from distill_jax.sharding.mesh import constrain, first_device, splits
from distill_jax.types import PyTree

HeadWeights = dict[str, jax.Array]  # {"unembedding": [V, D]}, or the tied {"embedding": [V, D]}

LOSS_HEADS = ("auto", "chunked", "blockwise", "pallas")
LARGE_VOCABULARY = 16_384  # below it logits are small beside the layers


class HeadConfig(Protocol):
    """What a head reads of its decoder's config."""

    @property
    def vocab(self) -> int:
        """V."""

    @property
    def final_softcap(self) -> float:
        """The cap of logits; 0 for none."""

    @property
    def loss_head(self) -> str:
        """How losses are computed, one of `LOSS_HEADS`."""


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """Squash to (-cap, cap); the identity when cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def head_weights(params: PyTree) -> HeadWeights:
    """Return the part of a model's weights that `unembed` reads: {"unembedding"}, or the tied {"embedding"}."""
    name = "unembedding" if "unembedding" in params else "embedding"
    return {name: params[name]}


def by_vocabulary(params: PyTree) -> HeadWeights:
    """Return the head's weights, laid out as `unembed` wants them: by rows of the vocabulary.

    They are stored by columns, which suits the lookup. A loss over chunks calls this once, before its loop.
    """
    # The first constraint makes the gradient come back in the layout that is stored.
    by_column = {name: constrain(w, "vocab", "embed") for name, w in head_weights(params).items()}
    return {name: constrain(w, "logits", None) for name, w in by_column.items()}


def unembed(cfg: HeadConfig, params: PyTree, hidden: jax.Array) -> jax.Array:
    """Project hidden states [B, ..., D] on the head: fp32 logits [B, ..., V], softcapped.

    On a mesh every chip computes its part of the vocabulary for all rows of its group. Left to itself XLA computes all
    logits on every chip from its part of D and sums them over the chips, hundreds of times the traffic.
    """
    rows, between = ("rows" if splits("logits", cfg.vocab) else "batch"), (None,) * (hidden.ndim - 2)
    (stored,) = head_weights(params).values()
    weights = constrain(stored, "logits", None).astype(hidden.dtype)
    hidden = constrain(hidden, rows, *between, None)
    logits = jnp.einsum("...D,VD->...V", hidden, weights, preferred_element_type=jnp.float32)
    return softcap(constrain(logits, rows, *between, "logits"), cfg.final_softcap)


def head_of(params: PyTree, hidden: jax.Array) -> Head:
    """Return a model's head as losses read it, with final hidden states [B, T, D]."""
    (weights,) = by_vocabulary(params).values()
    return Head(hidden, weights)


def head_nll(cfg: HeadConfig, chunk: int, head: Head, targets: jax.Array) -> jax.Array:
    """Return -log p of the next tokens [B, T]; logits of `chunk` tokens exist at a time, 0 for all."""

    def of_chunk(hidden: jax.Array, targets: jax.Array) -> jax.Array:
        return token_nll(unembed(cfg, {"embedding": head.weights}, hidden), targets)

    return map_tokens(of_chunk, chunk, head.hidden, targets)


def head_loss(cfg: HeadConfig, chunk: int, loss: HeadLoss, inputs: HeadInputs) -> Sum:
    """Sum a loss of the student's head over the masked positions; the weight is their number.

    Args:
      chunk: tokens whose logits exist at a time, where they exist at all; 0 for all.

    Raises:
      ConfigError: if the config names a way in which this loss cannot be computed.
    """
    way = loss_way(cfg, loss)
    if way != "chunked":
        assert loss.comparison is not None
        passes = kernel_passes(first_device()) if way == "pallas" else _plain_passes(cfg, chunk)
        return blockwise(BlockLoss(loss.comparison, cfg.final_softcap), passes, inputs)
    student, target, mask = inputs

    def of_chunk(hidden: jax.Array, *rest: jax.Array) -> Sum:
        *targets, mask = rest
        if isinstance(target, Head):
            targets = [jax.lax.stop_gradient(unembed(cfg, {"embedding": target.weights}, targets[0]))]
        return loss.of_logits(unembed(cfg, {"embedding": student.weights}, hidden), *targets, mask)

    targets = () if target is None else (target.hidden if isinstance(target, Head) else target,)
    return over_tokens(of_chunk, chunk, student.hidden, *targets, mask)


def _plain_passes(cfg: HeadConfig, chunk: int) -> PlainPasses:
    """Return blocks of the vocabulary; on a GPU, which writes logits faster than it makes them again, all of it."""
    return PlainPasses(chunk, cfg.vocab) if chunk and first_device().platform == "gpu" else PlainPasses()


def loss_way(cfg: HeadConfig, loss: HeadLoss) -> str:
    """Return the way in which a loss is computed on the devices that are traced for, one of `LOSS_HEADS`.

    Raises:
      ConfigError: if the config names one that is impossible.
    """
    device = first_device()
    kernels = device.platform == "tpu" and not why_no_kernels(device)
    if cfg.loss_head == "auto":
        if loss.needs_logits or cfg.vocab < LARGE_VOCABULARY:
            return "chunked"
        return "pallas" if kernels else "blockwise" if device.platform == "gpu" else "chunked"
    reason = "" if cfg.loss_head == "chunked" else loss.needs_logits
    reason = reason or (why_no_kernels(device) if cfg.loss_head == "pallas" else "")
    check(not reason, f'model.loss_head = "{cfg.loss_head}": {reason}; set it to "auto" or "chunked"')
    return cfg.loss_head
