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
from distill_jax.perf import flops, memory
from distill_jax.perf.slices import Slice
from distill_jax.sharding.mesh import SLICE, batch_devices
from distill_jax.stages.context import Context, Node
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class PolicySizes:
    """What a step computes and keeps with one policy of recomputation.

    Attributes:
      flops: executed in a step.
      stacked: bytes of all devices together that its loops' results take while most of them are there.
    """

    flops: float
    stacked: float


@dataclasses.dataclass(frozen=True)
class StepSizes:
    """What a group's step is made of, whatever the slice, in bytes of all devices together as if each array lay once.

    Attributes:
      state: weights and moments of all members; weights: the weights alone.
      frozen: of the teacher and the base.
      activations: what enters each layer, kept from the forward pass for the backward.
      policies: with each policy that it may have, the least recomputation first.
      steps: of the stage.
    """

    nodes: Sequence[Node]
    state: int
    weights: int
    frozen: int
    activations: int
    policies: Sequence[PolicySizes]
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
    traced: dict[tuple[object, ...], list[PolicySizes]] = {}
    for group in groups:
        step = group_step(alone, group, jax.devices("cpu")[:1])
        if step.key not in traced:
            traced[step.key] = [_policy_sizes(step.with_remat(policy)) for policy in step.policies]
        state, teacher, _, base = step.shapes
        yield StepSizes(
            group,
            state=_bytes(state),
            weights=_bytes(state.params),
            frozen=_bytes((teacher, base)),
            activations=_activations(ctx.model, step, ctx.row_length),
            policies=traced[step.key],
            steps=step.job.settings.steps,
        )


def _policy_sizes(step: GroupStep) -> PolicySizes:
    jaxpr = step.trace().jaxpr.jaxpr
    return PolicySizes(flops.executed(jaxpr), memory.stacked_bytes(jaxpr, 1))


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
    slices that share a batch add up their gradients. As in a run, the first policy of recomputation that may fit is
    taken.
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
    gradients, arguments = sizes.weights / members / parts, sizes.state / members / parts + sizes.frozen / parts
    policy = _first_that_may_fit(sizes.policies, where, arguments, gradients)
    seconds = (
        padding * policy.flops / where.devices / where.device_flops,
        moved / where.device_bandwidth,
        received / where.interconnect if received else 0.0,
        2 * (sharing - 1) / sharing * sizes.weights / members / parts / where.device_network,
    )
    return GroupEstimate(sizes.nodes, arguments + gradients + activations, max(seconds), sizes.steps)


def _first_that_may_fit(
    policies: Sequence[PolicySizes], where: Slice, arguments: float, gradients: float
) -> PolicySizes:
    """Return the policy with the least recomputation whose step may fit a device, else the last."""
    room = memory.FILL * where.device_hbm
    may_fit = (p for p in policies if arguments + max(gradients, p.stacked / where.devices) <= room)
    return next(may_fit, policies[-1])
