"""Losses of a head: what is computed of logits, and the same as a divergence that needs no logits in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax

from distill_jax.losses.cross_entropy import Sum, cross_entropy
from distill_jax.losses.distillation import WHOLE_VOCABULARY, Divergence


class Head(NamedTuple):
    """A model's final hidden states [B, T, D] and the matrix [V, D] that makes logits of them."""

    hidden: jax.Array
    weights: jax.Array


class HeadInputs(NamedTuple):
    """What a loss of a head reads.

    Attributes:
      target: a teacher's head, which gets no gradient, or the next tokens int32 [B, T]; None if the loss reads none.
      mask: fp32 [B, T], 1 where a position counts.
    """

    student: Head
    target: Head | jax.Array | None
    mask: jax.Array


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A loss as a divergence of the student's distribution from a target's.

    Attributes:
      target: what the distribution q is: a teacher's, all of it on one token, or uniform.
      sign: 1 to approach q, -1 to leave it.
    """

    target: Literal["teacher", "token", "uniform"]
    divergence: Divergence = dataclasses.field(default_factory=Divergence)
    sign: float = 1.0


@dataclasses.dataclass(frozen=True)
class HeadLoss:
    """A loss of a head.

    Attributes:
      of_logits: (logits, target, mask) -> (sum, weight); the target is a teacher's logits or tokens, and left out where
        there is none.
      comparison: the same loss as a divergence; None if it is none.
    """

    of_logits: Callable[..., Sum]
    comparison: Comparison | None = None

    @property
    def needs_logits(self) -> str:
        """Why the loss cannot be computed a block of the vocabulary at a time; "" if it can."""
        if self.comparison is None:
            return "the loss is a function of all logits"
        name = self.comparison.divergence.name
        return f"divergence = {name!r} compares tokens of the whole vocabulary" if name in WHOLE_VOCABULARY else ""


CROSS_ENTROPY = HeadLoss(cross_entropy, Comparison("token"))


def from_teacher(divergence: Divergence) -> HeadLoss:
    """Return the loss that is a divergence from a teacher."""
    return HeadLoss(divergence, Comparison("teacher", divergence))


def from_uniform(divergence: Divergence) -> HeadLoss:
    """Return the loss that is a divergence from the uniform distribution."""
    return HeadLoss(divergence.from_uniform, Comparison("uniform", divergence))
