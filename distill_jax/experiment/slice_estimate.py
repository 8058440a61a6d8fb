"""What stages need of a slice at least, from shapes alone: nothing is compiled, and no TPU compiler is needed.

A roofline: a step takes at least its FLOPs at the peak, the bytes that no program can avoid at the HBM's bandwidth, and
the weights' way to the devices that need them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh

from distill_jax.experiment.lowered_group import GroupStep, group_step, train_job
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops, memory
from distill_jax.perf.slices import Slice
from distill_jax.sharding.mesh import SLICE, batch_devices, padded
from distill_jax.stages.context import Context, Node
from distill_jax.stages.train_job import TrainJob
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
    traced: dict[tuple[object, ...], list[PolicySizes]] = {}
    for group in groups:
        step = step_on_one_device(ctx, group)
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


def step_on_one_device(ctx: Context, group: Sequence[Node]) -> GroupStep:
    """Return a group's step as it is on a single device, whose shapes are those of all devices together."""
    alone = dataclasses.replace(ctx, run=dataclasses.replace(ctx.run, fsdp=1, tensor=1, slices=0))
    return group_step(alone, group, jax.devices("cpu")[:1])


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
    parts = shape["fsdp"] * shape["tensor"]
    members, tensor, sharing = shape["population"], shape["tensor"], shape.get(SLICE, 1)
    weights = sizes.weights / members / tensor / 2  # fp32 masters, computed with in bfloat16
    frozen, held = sizes.frozen / tensor, _held(sizes, job, mesh)
    arguments, gradients, activations = held
    moved = 2 * (sizes.state + sizes.weights) / members / parts + 2 * weights + frozen + 2 * activations
    received = (3 * weights + frozen) * (1 - 1 / shape["fsdp"])
    policy = _first_that_may_fit(sizes.policies, where, arguments, gradients)
    seconds = (
        padding * policy.flops / where.devices / where.device_flops,
        moved / where.device_bandwidth,
        received / where.interconnect if received else 0.0,
        2 * (sharing - 1) / sharing * sizes.weights / members / parts / where.device_network,
    )
    return GroupEstimate(sizes.nodes, sum(held), max(seconds), sizes.steps)


def device_bytes(ctx: Context, sizes: StepSizes, devices: int) -> float:
    """Return what each of so many devices, wired together, must hold at least.

    Raises:
      ConfigError: if they do not make the config's mesh.
    """
    job = train_job(ctx, sizes.nodes)
    assert job
    return sum(_held(sizes, job, job.mesh(ctx, jax.devices("cpu")[:1] * devices)))


def _held(sizes: StepSizes, job: TrainJob, mesh: Mesh) -> tuple[float, float, float]:
    """Return the bytes of a device that a step's arguments take, its gradients, and what is kept of its layers."""
    rows, parts = mesh.shape["population"], mesh.shape["fsdp"] * mesh.shape["tensor"]
    share = padded(len(job.members), mesh) / rows / len(job.members)  # a device holds whole members
    arguments = sizes.state * share / parts + sizes.frozen / parts
    return arguments, sizes.weights * share / parts, sizes.activations * share / batch_devices(mesh)


def _first_that_may_fit(
    policies: Sequence[PolicySizes], where: Slice, arguments: float, gradients: float
) -> PolicySizes:
    """Return the policy with the least recomputation whose step may fit a device, else the last."""
    room = memory.FILL * where.device_hbm
    may_fit = (p for p in policies if arguments + max(gradients, p.stacked / where.devices) <= room)
    return next(may_fit, policies[-1])
