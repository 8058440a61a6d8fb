"""Passes over a vocabulary in plain JAX, a block of it at a time: for any backend.

Rows of the head are [J v, D], J blocks of v of which the last may hold padding; n positions are in hand.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.losses.distillation import LOG_ZERO
from distill_jax.losses.head_loss import Head
from distill_jax.losses.vocabulary_block import BlockLoss, add_log_sum_exp
from distill_jax.types import PyTree


class Positions(NamedTuple):
    """What a pass reads of n positions besides the student's head.

    Attributes:
      lse: of the student's logits over the whole vocabulary, [n].
      teacher, teacher_lse: the teacher's head [n, D] and [J v, D], and its log-sum-exp [n]; None for another target.
      token: this device's row that is the next token, int32 [n]; None for another target.
      weight: what the divergence is multiplied with, [n]; gradient_sum: of the derivatives of the divergence by log p
        over the whole vocabulary, [n] or a number. Gradients need both.
    """

    lse: jax.Array
    teacher: Head | None = None
    teacher_lse: jax.Array | None = None
    token: jax.Array | None = None
    weight: jax.Array | float = 0.0
    gradient_sum: jax.Array | float = 0.0


@dataclasses.dataclass(frozen=True)
class PlainPasses:
    """The passes as scans over blocks of the vocabulary.

    Attributes:
      most: n at a time, at most; rows: v at a time, at most.
    """

    most: int = 8192
    rows: int = 8192

    def positions(self, width: int, teacher_width: int, itemsize: int) -> int:
        """Return n at a time, of all devices that share a vocabulary together."""
        del width, teacher_width, itemsize
        return self.most

    def block_rows(self, size: int, width: int) -> int:
        """Return v for a vocabulary of this size: blocks as equal as they can be."""
        del width
        return -(-size // -(-size // self.rows))

    def log_sum_exp(self, loss: BlockLoss, head: Head) -> jax.Array:
        """Return the log-sum-exp [n] of logits over this device's rows."""

        def add(carry: PyTree, block: PyTree) -> PyTree:
            first, rows = block
            scaled = loss.scaled(loss.raw_logits(rows, head.hidden))
            return add_log_sum_exp(carry, loss.log_probabilities(scaled, 0.0, first)), None

        n = len(head.hidden)
        start = jnp.full(n, LOG_ZERO), jnp.zeros(n)
        highest, total = jax.lax.scan(add, start, self._blocks(loss, head.weights))[0]
        lse: jax.Array = highest + jnp.log(total)
        return lse

    def sums(self, loss: BlockLoss, student: Head, positions: Positions) -> tuple[jax.Array, jax.Array]:
        """Return each position's divergence in these rows, and the sum of its derivatives by log p; both [n]."""

        def add(carry: PyTree, block: PyTree) -> PyTree:
            log_q, log_p, _ = self._distributions(loss, student, positions, block)
            value, gradient_sum = loss.value_and_sum(log_q, log_p)
            return (carry[0] + value, carry[1] + gradient_sum), None

        n = len(student.hidden)
        sums: PyTree = jax.lax.scan(add, (jnp.zeros(n), jnp.zeros(n)), self._paired(loss, student, positions))[0]
        return sums

    def gradients(
        self, loss: BlockLoss, student: Head, positions: Positions, by_weights: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Return the divergence [n], and of its weighted sum the derivatives.

        Args:
          by_weights: fp32 [J v, D], to which those by the weights are added; None leaves them out.

        Returns:
          the divergence [n]; the derivatives by the hidden states, fp32 [n, D]; the new `by_weights`.
        """

        def add(carry: PyTree, block: PyTree) -> PyTree:
            value, by_hidden, by_weights = carry
            first, rows, _ = block
            log_q, log_p, raw = self._distributions(loss, student, positions, block)
            of_block, by_raw = loss.value_and_gradient(log_q, log_p, raw, positions.gradient_sum)
            by_raw = (by_raw * positions.weight).astype(student.hidden.dtype)
            by_hidden += _product(by_raw, rows, 0)
            if by_weights is not None:  # in place
                new = jax.lax.dynamic_slice_in_dim(by_weights, first, len(rows)) + _product(by_raw, student.hidden, 1)
                by_weights = jax.lax.dynamic_update_slice_in_dim(by_weights, new, first, 0)
            return (value + of_block, by_hidden, by_weights), None

        n, width = student.hidden.shape
        start = jnp.zeros(n), jnp.zeros((n, width)), by_weights
        out: PyTree = jax.lax.scan(add, start, self._paired(loss, student, positions))[0]
        return out

    def _blocks(self, loss: BlockLoss, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = self.block_rows(loss.size, loss.width)
        return jnp.arange(0, len(weights), rows), weights.reshape(-1, rows, weights.shape[1])

    def _paired(self, loss: BlockLoss, student: Head, positions: Positions) -> PyTree:
        first, rows = self._blocks(loss, student.weights)
        teacher = None if positions.teacher is None else self._blocks(loss, positions.teacher.weights)[1]
        return first, rows, teacher

    def _distributions(
        self, loss: BlockLoss, student: Head, positions: Positions, block: PyTree
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        first, rows, teacher_rows = block
        raw = loss.raw_logits(rows, student.hidden)
        log_p = loss.log_probabilities(loss.scaled(raw), positions.lse, first)
        if positions.teacher is not None:
            scaled = loss.scaled(loss.raw_logits(teacher_rows, positions.teacher.hidden))
            assert positions.teacher_lse is not None
            return loss.log_probabilities(scaled, positions.teacher_lse, first), log_p, raw
        if positions.token is not None:
            return loss.of_token(raw, positions.token, first), log_p, raw
        return loss.of_uniform(raw, first), log_p, raw


def _product(by_raw: jax.Array, other: jax.Array, contracted: int) -> jax.Array:
    """Return the fp32 product of [v, n] with [v, D] or [n, D] over the axis that they share."""
    dimensions = (((contracted,), (0,)), ((), ()))
    return jax.lax.dot_general(by_raw, other, dimensions, preferred_element_type=jnp.float32)
