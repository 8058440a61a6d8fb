"""A head's loss from hidden states and weights, a block of positions and of the vocabulary at a time.

Logits [B, T, V] exist nowhere. Of each block of positions the log-sum-exps of both heads come first, by a pass over
the vocabulary with a running maximum; then the loss and, in the same pass, its gradients: the loss ends a step, so its
gradients are its cotangent, a number, times what can be computed while the logits are there (as Liger's fused losses
do, arXiv:2410.10989). A divergence whose derivatives by log p do not sum to a known number takes one pass more.

On a mesh each device computes its rows of the vocabulary for all positions of its group, as `models.head.unembed`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from distill_jax.losses.cross_entropy import Sum
from distill_jax.losses.head_loss import Head, HeadInputs
from distill_jax.losses.vocabulary_block import BlockLoss
from distill_jax.losses.vocabulary_passes import PlainPasses, Positions
from distill_jax.sharding.mesh import axes_of, manual_mesh
from distill_jax.types import PyTree

if TYPE_CHECKING:
    from distill_jax.losses.vocabulary_kernels import KernelPasses

Passes: TypeAlias = "PlainPasses | KernelPasses"

_NOWHERE: tuple[str, ...] = ()
Gradients = tuple[jax.Array | None, jax.Array | None]  # by hidden states and weights


@dataclasses.dataclass(frozen=True)
class Blockwise:
    """How a loss is computed: everything but arrays.

    Attributes:
      mesh: over whose devices it is mapped; None for a single device, or where the compiler partitions it.
      rows, vocab: mesh axes over which batch rows and the vocabulary lie.
    """

    loss: BlockLoss
    passes: Passes
    mesh: Mesh | None
    rows: tuple[str, ...]
    vocab: tuple[str, ...]

    @property
    def shared(self) -> tuple[str, ...]:
        """The axes over which a group of devices shares both its positions and its vocabulary."""
        return tuple(a for a in self.rows if a in self.vocab)

    def run(self, inputs: HeadInputs, wanted: tuple[bool, bool]) -> PyTree:
        """Return the loss and its `wanted` derivatives, by hidden states and by weights."""
        local = functools.partial(self._local, wanted)
        if self.mesh is None:
            return local(inputs)
        rows, vocab = P(self.rows or None), P(self.vocab or None)
        head: PyTree = (rows, vocab)
        specs = {"teacher": Head(*head), "token": rows, "uniform": None}
        by = tuple(spec if want else None for want, spec in zip(wanted, head, strict=True))
        in_specs: PyTree = (Head(*head), specs[self.loss.comparison.target], rows)
        mapped = jax.shard_map(
            local, mesh=self.mesh, in_specs=(HeadInputs(*in_specs),), out_specs=(P(), by), check_vma=False
        )
        return mapped(inputs)

    def _local(self, wanted: tuple[bool, bool], inputs: HeadInputs) -> PyTree:
        """Return this device's loss, summed over all of them, and its derivatives."""
        student, target, weight = inputs
        size, dtype, width = len(student.weights), student.hidden.dtype, student.hidden.shape[-1]
        loss = dataclasses.replace(self.loss, size=size, width=width)
        block = self.passes.block_rows(size, width)
        weights = _filled(student.weights.astype(dtype), block)
        teacher = None
        if isinstance(target, Head):
            teacher = _filled(target.weights.astype(target.hidden.dtype), block)
            target = target.hidden
        at_hand = self.passes.positions(width, 0 if teacher is None else teacher.shape[-1], dtype.itemsize)
        cut = functools.partial(_cut, self._share(at_hand, weight.size))

        def add(carry: PyTree, slices: PyTree) -> PyTree:
            hidden, target, weight = jax.tree.map(self._gathered, slices)
            if loss.comparison.target == "token" and self.vocab:
                target = target - size * jax.lax.axis_index(self.vocab)
            head = Head(hidden, weights)
            positions = self._positions(loss, head, target, teacher)._replace(weight=weight)
            if not any(wanted):
                value, _ = self.passes.sums(loss, head, positions)
                return (carry[0] + jnp.sum(value * weight), None), None
            if loss.gradient_sum is None:
                total = self._summed(self.passes.sums(loss, head, positions)[1])
                positions = positions._replace(gradient_sum=total)
            value, by_hidden, by_weights = self.passes.gradients(loss, head, positions, carry[1])
            return (carry[0] + jnp.sum(value * weight), by_weights), self._scattered(by_hidden).astype(dtype)

        slices = jax.tree.map(cut, (student.hidden, target, weight))
        start: PyTree = jnp.zeros(()), jnp.zeros(weights.shape, jnp.float32) if wanted[1] else None
        (value, by_weights), by_hidden = jax.lax.scan(add, start, slices)
        everywhere = tuple(dict.fromkeys(self.rows + self.vocab))
        value = jax.lax.psum(value, everywhere) if everywhere else value
        return value, (
            _uncut(by_hidden, student.hidden.shape) if wanted[0] else None,
            self._over_rows(by_weights[:size]).astype(student.weights.dtype) if wanted[1] else None,
        )

    def _share(self, at_hand: int, positions: int) -> int:
        """Return how many of this device's positions are at hand at a time."""
        group = jax.lax.axis_size(self.shared) if self.shared else 1
        return min(max(at_hand // group, 1), positions)

    def _positions(self, loss: BlockLoss, head: Head, target: PyTree, teacher: jax.Array | None) -> Positions:
        known = Positions(self._joined(self.passes.log_sum_exp(loss, head)), gradient_sum=loss.gradient_sum or 0.0)
        if teacher is None:
            return known._replace(token=target)
        other = Head(target, teacher)
        return known._replace(teacher=other, teacher_lse=self._joined(self.passes.log_sum_exp(loss, other)))

    def _gathered(self, x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x, self.shared, tiled=True) if self.shared else x

    def _scattered(self, x: jax.Array) -> jax.Array:
        others = tuple(a for a in self.vocab if a not in self.shared)
        x = jax.lax.psum(x, others) if others else x
        return jax.lax.psum_scatter(x, self.shared, tiled=True) if self.shared else x

    def _over_rows(self, x: jax.Array) -> jax.Array:
        others = tuple(a for a in self.rows if a not in self.shared)
        return jax.lax.psum(x, others) if others else x

    def _summed(self, x: jax.Array) -> jax.Array:
        return jax.lax.psum(x, self.vocab) if self.vocab else x

    def _joined(self, lse: jax.Array) -> jax.Array:
        """Return the log-sum-exp over the devices' parts of the vocabulary."""
        if not self.vocab:
            return lse
        highest = jax.lax.pmax(lse, self.vocab)
        return highest + jnp.log(jax.lax.psum(jnp.exp(lse - highest), self.vocab))


def _filled(weights: jax.Array, block: int) -> jax.Array:
    return jnp.pad(weights, ((0, -len(weights) % block), (0, 0)))


def _cut(width: int, x: jax.Array) -> jax.Array:
    """Cut [B, T, ...] into [K, width, ...], filling up with zeros."""
    flat = x.reshape(-1, *x.shape[2:])
    filled = jnp.pad(flat, [(0, -len(flat) % width)] + [(0, 0)] * (flat.ndim - 1))
    return filled.reshape(-1, width, *flat.shape[1:])


def _uncut(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return x.reshape(-1, shape[-1])[: shape[0] * shape[1]].reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(how: Blockwise, inputs: HeadInputs) -> jax.Array:
    value: jax.Array = how.run(inputs, (False, False))[0]
    return value


def _forward(how: Blockwise, inputs: PyTree) -> PyTree:
    wanted = inputs.student.hidden.perturbed, inputs.student.weights.perturbed
    is_primal: Callable[[object], bool] = lambda x: hasattr(x, "perturbed")  # noqa: E731
    arrays: PyTree = jax.tree.map(lambda x: x.value, inputs, is_leaf=is_primal)
    return how.run(arrays, wanted)


def _backward(how: Blockwise, gradients: Gradients, cotangent: PyTree) -> PyTree:
    del how
    if isinstance(cotangent, SymbolicZero):
        cotangent = jnp.zeros(())
    by: PyTree = [None if g is None else (cotangent * g).astype(g.dtype) for g in gradients]
    nothing: PyTree = None
    return (HeadInputs(Head(*by), nothing, nothing),)


_total.defvjp(_forward, _backward, symbolic_zeros=True)


def blockwise(loss: BlockLoss, passes: Passes, inputs: HeadInputs) -> Sum:
    """Sum a loss over the masked positions; the weight is their number.

    Gradients reach the student's hidden states and weights; the target gets none.
    """
    mesh, rows, vocab = manual_mesh(), _NOWHERE, _NOWHERE
    if mesh is not None:
        count = len(inputs.mask)
        vocab = axes_of(mesh, "logits", len(inputs.student.weights))
        rows = axes_of(mesh, "batch", count) or axes_of(mesh, "rows", count)
    comparison = loss.comparison
    if comparison.target == "uniform":
        inputs = inputs._replace(target=None)
    loss = dataclasses.replace(loss, vocab=len(inputs.student.weights))
    scale = comparison.sign * comparison.divergence.scale
    return scale * _total(Blockwise(loss, passes, mesh, rows, vocab), inputs), jnp.sum(inputs.mask)
