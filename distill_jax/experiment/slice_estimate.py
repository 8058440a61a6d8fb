"""What stages need of a slice at least, from shapes alone: nothing is compiled, and no TPU compiler is needed.

A roofline: a step takes at least its FLOPs at the peak, the bytes that no program can avoid at the HBM's bandwidth, and
the weights' way to the devices that need them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax

from distill_jax.experiment.lowered_group import GroupStep, group_step, train_job
from distill_jax.models.transformer import TransformerConfig
from distill_jax.perf import flops
from distill_jax.perf.slices import Slice
from distill_jax.sharding.mesh import SLICE, batch_devices
from distill_jax.stages.context import Context, Node
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class StepSizes:
    """What a group's step is made of, whatever the slice, in bytes of all devices together as if each array lay once.

    Attributes:
      state: weights and moments of all members; weights: the weights alone.
      frozen: of the teacher and the base.
      activations: what enters each layer, kept from the forward pass for the backward.
      flops: executed in a step; steps: of the stage.
    """

    nodes: Sequence[Node]
    state: int
    weights: int
    frozen: int
    activations: int
    flops: float
    steps: int


@dataclasses.dataclass(frozen=True)
class GroupEstimate:
    """What a group needs of a slice at least: bytes of a device, and seconds of a step."""

    nodes: Sequence[Node]
    hbm: float
    seconds: float
    steps: int


@dataclasses.dataclass(frozen=True)
class SliceEstimate:
    """What stages need of a slice at least, and what they cost there at least."""

    where: Slice
    groups: Sequence[GroupEstimate]
    price: float

    @property
    def hbm(self) -> float:
        """Bytes that a device must hold."""
        return max(group.hbm for group in self.groups)

    @property
    def dearest(self) -> GroupEstimate:
        """The group that takes most of the time."""
        return max(self.groups, key=self.chip_hours)

    @property
    def cost(self) -> float:
        """The least cost of all groups."""
        return sum(map(self.chip_hours, self.groups)) * self.price

    def chip_hours(self, group: GroupEstimate) -> float:
        """Return the least chip-hours of one group."""
        return group.seconds * group.steps * self.where.chips / 3600


def step_sizes(ctx: Context, groups: Sequence[Sequence[Node]]) -> Iterator[StepSizes]:
    """Yield what the groups' steps are made of, from their shapes on one device; equal steps are traced once."""
    alone = dataclasses.replace(ctx, run=dataclasses.replace(ctx.run, fsdp=1, tensor=1, slices=0))
    executed: dict[tuple[object, ...], float] = {}
    for group in groups:
        step = group_step(alone, group, jax.devices("cpu")[:1])
        step = step.with_remat(step.policies[0])
        if step.key not in executed:
            executed[step.key] = flops.executed(step.trace().jaxpr.jaxpr)
        state, teacher, _, base = step.shapes
        yield StepSizes(
            group,
            state=_bytes(state),
            weights=_bytes(state.params),
            frozen=_bytes((teacher, base)),
            activations=_activations(ctx.model, step, ctx.row_length),
            flops=executed[step.key],
            steps=step.job.settings.steps,
        )


def _activations(cfg: TransformerConfig, step: GroupStep, length: int) -> int:
    rows = step.job.settings.batch // step.job.settings.microbatches
    width = jax.numpy.dtype(cfg.dtype).itemsize
    return len(step.job.members) * rows * length * cfg.hidden * cfg.layers * width


def _bytes(tree: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def estimate_group(ctx: Context, sizes: StepSizes, where: Slice) -> GroupEstimate:
    """Return what a group needs of a slice at least.

    HBM: the state is read and written, the gradients written and read, the activations likewise, and every device
    reads the weights that it computes with, in two bytes, forward and backward, and a teacher's forward. Interconnect:
    weights that lie over several devices come to each for both passes, and their gradients go back. Network:
    slices that share a batch add up their gradients.
    """
    job = train_job(ctx, sizes.nodes)
    assert job
    ctx = dataclasses.replace(ctx, run=dataclasses.replace(ctx.run, slices=where.slices))
    mesh = job.mesh(ctx, jax.devices("cpu")[:1] * where.devices)
    shape, padding = mesh.shape, job.padded_batch(mesh) / job.settings.batch
    parts, rows = shape["fsdp"] * shape["tensor"], batch_devices(mesh)
    members, tensor, sharing = shape["population"], shape["tensor"], shape.get(SLICE, 1)
    weights = sizes.weights / members / tensor / 2  # fp32 masters, computed with in bfloat16
    frozen, activations = sizes.frozen / tensor, sizes.activations / members / rows
    moved = 2 * (sizes.state + sizes.weights) / members / parts + 2 * weights + frozen + 2 * activations
    received = (3 * weights + frozen) * (1 - 1 / shape["fsdp"])
    seconds = (
        padding * sizes.flops / where.devices / where.device_flops,
        moved / where.device_bandwidth,
        received / where.interconnect if received else 0.0,
        2 * (sharing - 1) / sharing * sizes.weights / members / parts / where.device_network,
    )
    held = (sizes.state + sizes.weights) / members / parts + sizes.frozen / parts + activations
    return GroupEstimate(sizes.nodes, held, max(seconds), sizes.steps)
