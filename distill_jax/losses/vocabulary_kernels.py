"""Passes over a vocabulary as kernels for TPUs (Pallas): logits exist in on-chip memory alone.

A kernel has n positions at hand and runs over the grid (blocks of the vocabulary, parts of the positions), so that a
block of weights is read from HBM once for all n. Hidden states, and what is summed of each position, stay on chip; the
weights' gradient is read and written a block at a time. What belongs to a position lies along lanes, as [8, n] rows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from distill_jax.losses.distillation import LOG_ZERO
from distill_jax.losses.head_loss import Head
from distill_jax.losses.vocabulary_block import BlockLoss, add_log_sum_exp
from distill_jax.losses.vocabulary_passes import Positions

LANES = 128
ROWS = 8  # sublanes of a tile
LSE, TEACHER_LSE, WEIGHT, SUM = range(4)  # rows of what a kernel reads of a position
MIB = 2**20

Ref = Any  # of a block in on-chip memory
Places = slice | pl.Slice


@dataclasses.dataclass(frozen=True)
class KernelPasses:
    """The passes as kernels.

    Attributes:
      on_chip: bytes of the memory that a kernel may fill.
      part: positions whose block of logits exists at a time; rows: of that block, at most.
      interpret: whether the kernels are run by JAX, on any backend.
    """

    on_chip: int
    part: int = 512
    rows: int = 640
    interpret: bool = False

    def positions(self, width: int, teacher_width: int, itemsize: int) -> int:
        """Return n at hand for hidden states of these widths, a power of two: all fit beside the blocks.

        Of a position there are states of both models and the fp32 gradient; of a row two copies of its weights and,
        read and written, of their fp32 gradient; and a dozen blocks of logits.
        """
        width, teacher_width = (-(-w // LANES) * LANES for w in (width, teacher_width))
        states, rows = itemsize * (width + teacher_width), self._rows(width)
        blocks = rows * (16 * width + 2 * states) + 12 * 4 * self.part * rows
        return 2 ** max(int(math.log2(max(self.on_chip - blocks, 1) / (4 * width + states + 64))), 7)

    def block_rows(self, size: int, width: int) -> int:
        """Return rows of a block for a vocabulary of this size, a multiple of 128 that wastes little at its end."""
        sizes = range(LANES, min(self._rows(width), -(-size // LANES) * LANES) + 1, LANES)
        return min(sizes, key=lambda rows: -(-size // rows) * (rows + 16))  # short blocks keep the units less busy

    def _rows(self, width: int) -> int:
        """Return the most rows of a block: fewer of wide ones."""
        return max(min(self.rows, self.on_chip // (80 * width) // LANES * LANES), LANES)

    def log_sum_exp(self, loss: BlockLoss, head: Head) -> jax.Array:
        """Return the log-sum-exp [n] of logits over this device's rows."""
        return self._call(_log_sum_exp, loss, head)[0][0, : len(head.hidden)]

    def sums(self, loss: BlockLoss, student: Head, positions: Positions) -> tuple[jax.Array, jax.Array]:
        """Return each position's divergence in these rows, and the sum of its derivatives by log p; both [n]."""
        out = self._call(_sums, loss, student, positions)[0]
        return out[0, : len(student.hidden)], out[1, : len(student.hidden)]

    def gradients(
        self, loss: BlockLoss, student: Head, positions: Positions, by_weights: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Return the divergence [n], its derivatives by the hidden states, fp32 [n, D], and the new `by_weights`."""
        n = len(student.hidden)
        value, by_hidden, *new = self._call(_gradients, loss, student, positions, by_weights)
        return value[0, :n], by_hidden[:n], new[0] if new else None

    def _call(
        self,
        kernel: Kernel,
        loss: BlockLoss,
        student: Head,
        positions: Positions | None = None,
        by_weights: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Run a kernel over blocks of the vocabulary and parts of the positions."""
        part = min(self.part, -(-len(student.hidden) // LANES) * LANES)
        n, rows = -(-len(student.hidden) // part) * part, self.block_rows(loss.size, loss.width)
        heads = [student] if positions is None or positions.teacher is None else [student, positions.teacher]
        read = [] if positions is None else _read(positions)
        operands: list[jax.Array] = [*(_longer(x, n, 1) for x in read)]
        in_specs = [_resident((ROWS, n)) for _ in read]
        for head in heads:
            operands += [_longer(head.hidden, n, 0), head.weights]
            in_specs += [_resident((n, head.weights.shape[1])), _of_rows(rows, head.weights)]
        state = [(ROWS, n), (n, loss.width)] if kernel is _gradients else [(ROWS, n)]
        shapes, out_specs = [jax.ShapeDtypeStruct(s, jnp.float32) for s in state], [_resident(s) for s in state]
        aliases = {}
        if by_weights is not None:
            aliases = {len(operands): len(shapes)}
            operands.append(by_weights)
            in_specs.append(_of_rows(rows, by_weights))
            out_specs.append(_of_rows(rows, by_weights))
            shapes.append(jax.ShapeDtypeStruct(by_weights.shape, by_weights.dtype))
        grid = Grid(loss, len(read), len(heads), part, rows)
        out: list[jax.Array] = pl.pallas_call(
            functools.partial(kernel, grid),
            grid=(len(student.weights) // rows, n // part),
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=shapes,
            input_output_aliases=aliases,
            cost_estimate=_cost(n * len(student.weights) * loss.width, operands, shapes),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=self.on_chip + 8 * MIB
            ),
            interpret=self.interpret,
            name=f"vocabulary{kernel.__name__}",
        )(*operands)
        return out


def _cost(products: int, operands: Sequence[jax.Array], shapes: Sequence[jax.ShapeDtypeStruct]) -> pl.CostEstimate:
    """Return what a kernel costs: every operand is read once, and every result written once."""
    arrays: list[jax.Array | jax.ShapeDtypeStruct] = [*operands, *shapes]
    moved = sum(x.size * x.dtype.itemsize for x in arrays)
    return pl.CostEstimate(flops=2 * products, transcendentals=0, bytes_accessed=moved)


def _resident(shape: tuple[int, ...]) -> pl.BlockSpec:
    return pl.BlockSpec(shape, lambda j, i: (0, 0), pipeline_mode=pl.Buffered(1))


def _of_rows(rows: int, x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec((rows, x.shape[1]), lambda j, i: (j, 0))


def _longer(x: jax.Array, length: int, axis: int) -> jax.Array:
    extra = length - x.shape[axis]
    return jnp.pad(x, [(0, extra if a == axis else 0) for a in range(x.ndim)]) if extra else x


def _read(positions: Positions) -> list[jax.Array]:
    """Return what a kernel reads of the positions: fp32 [8, n], and the token int32 [8, n] where it is the target."""
    shape = positions.lse.shape
    rows: list[jax.Array | float | None] = [None] * ROWS
    rows[LSE], rows[TEACHER_LSE] = positions.lse, positions.teacher_lse
    rows[WEIGHT], rows[SUM] = positions.weight, positions.gradient_sum
    token = [] if positions.token is None else [jnp.broadcast_to(positions.token, (ROWS, *shape))]
    return [jnp.stack([jnp.broadcast_to(0.0 if row is None else row, shape) for row in rows]), *token]


@dataclasses.dataclass(frozen=True)
class Grid:
    """What a kernel is compiled for: the loss, how many refs of what it gets, and the sizes of a block of logits."""

    loss: BlockLoss
    read: int
    heads: int
    part: int
    rows: int

    def block(self, refs: Sequence[Ref]) -> tuple[_Block, Sequence[Ref]]:
        """Return the inputs of a step and the refs that are left: what is added to, and the results."""
        end = self.read + 2 * self.heads
        return _Block(self, refs[: self.read], refs[self.read : end]), refs[end:]


Kernel = Callable[..., None]  # (grid, *refs)


@dataclasses.dataclass(frozen=True)
class _Block:
    """Where a kernel stands: a block of the vocabulary, and a part of the positions."""

    grid: Grid
    read: Sequence[Ref]
    heads: Sequence[Ref]  # hidden states and weights, the student's first

    @property
    def first(self) -> jax.Array:
        return pl.program_id(0) * self.grid.rows

    @property
    def here(self) -> Places:
        return pl.ds(pl.multiple_of(pl.program_id(1) * self.grid.part, LANES), self.grid.part)

    def hidden(self, which: int) -> jax.Array:
        hidden: jax.Array = self.heads[2 * which][self.here, :]
        return hidden

    def raw(self, which: int) -> jax.Array:
        return self.grid.loss.raw_logits(self.heads[2 * which + 1][...], self.hidden(which))

    def of_position(self, row: int) -> jax.Array:
        values: jax.Array = self.read[0][row : row + 1, self.here]
        return values

    def distributions(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return log q, log p and the student's raw logits of the block."""
        loss, raw = self.grid.loss, self.raw(0)
        log_p = loss.log_probabilities(loss.scaled(raw), self.of_position(LSE), self.first)
        if self.grid.heads > 1:
            scaled = loss.scaled(self.raw(1))
            return loss.log_probabilities(scaled, self.of_position(TEACHER_LSE), self.first), log_p, raw
        if self.grid.read > 1:
            return loss.of_token(raw, self.read[1][:1, self.here], self.first), log_p, raw
        return loss.of_uniform(raw, self.first), log_p, raw


def _log_sum_exp(grid: Grid, *refs: Ref) -> None:
    block, (out,) = grid.block(refs)
    loss, part = grid.loss, grid.part
    here = block.here

    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        out[:1, here] = jnp.full((1, part), LOG_ZERO, jnp.float32)
        out[1:2, here] = jnp.zeros((1, part), jnp.float32)

    scaled = loss.log_probabilities(loss.scaled(block.raw(0)), 0.0, block.first)
    highest, total = add_log_sum_exp((out[:1, here], out[1:2, here]), scaled)
    last = pl.program_id(0) == pl.num_programs(0) - 1
    out[:1, here] = jnp.where(last, highest + jnp.log(total), highest)
    out[1:2, here] = total


def _sums(grid: Grid, *refs: Ref) -> None:
    block, (out,) = grid.block(refs)
    loss, part = grid.loss, grid.part
    log_q, log_p, _ = block.distributions()
    value, total = loss.value_and_sum(log_q, log_p)
    _add(out, slice(0, 1), block.here, value.reshape(1, part))
    _add(out, slice(1, 2), block.here, total.reshape(1, part))


def _gradients(grid: Grid, *refs: Ref) -> None:
    block, rest = grid.block(refs)
    so_far, (out, by_hidden, *by_weights) = (rest[0], rest[1:]) if len(rest) > 2 else (None, rest)
    log_q, log_p, raw = block.distributions()
    value, by_raw = grid.loss.value_and_gradient(log_q, log_p, raw, block.of_position(SUM))
    _add(out, slice(0, 1), block.here, value.reshape(1, grid.part))
    weights = block.heads[1][...]
    by_raw = (by_raw * block.of_position(WEIGHT)).astype(weights.dtype)
    _add(by_hidden, block.here, slice(None), _product(by_raw, weights, 0))
    if so_far is not None:
        first = pl.program_id(1) == 0
        before = jax.lax.cond(first, lambda: so_far[...], lambda: by_weights[0][...])
        by_weights[0][...] = before + _product(by_raw, block.hidden(0), 1)


def _add(out: Ref, rows: Places, columns: Places, value: jax.Array) -> None:
    """Add to what blocks of the vocabulary before this one left; the first one finds nothing."""
    first = pl.program_id(0) == 0

    @pl.when(first)
    def _() -> None:
        out[rows, columns] = value

    @pl.when(jnp.logical_not(first))
    def _() -> None:
        out[rows, columns] += value


def _product(by_raw: jax.Array, other: jax.Array, contracted: int) -> jax.Array:
    dimensions = (((contracted,), (0,)), ((), ()))
    return jax.lax.dot_general(by_raw, other, dimensions, preferred_element_type=jnp.float32)
