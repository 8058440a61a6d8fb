"""Choose the slice on which stages cost least: ranked by an estimate from shapes alone, then by the compiler.

The estimate is a roofline's: a step takes at least its FLOPs at the peak, the bytes that no program can avoid at the
HBM's bandwidth, and the weights' way to the chips that need them. What a chip must hold rules out slices uncompiled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax

from distill_jax.config import ConfigError, check
from distill_jax.experiment.lowered_group import GroupStep, group_step, train_job
from distill_jax.experiment.planned_stage import PlannedStage
from distill_jax.experiment.slice_plan import Groups, SlicePlanner
from distill_jax.models.transformer import TransformerConfig
from distill_jax.perf import flops
from distill_jax.perf.slices import CHIPS, GIB, SLICES, Slice
from distill_jax.stages.context import Context, Node
from distill_jax.types import PyTree

MAX_CHIPS = 256
MAX_TRIED = 3  # slices on which the dearest stage fits; compiling takes minutes each
NEAR = 0.95  # of the cost of the best so far: what cannot be below is not compiled


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
        return max(self.groups, key=lambda group: group.seconds * group.steps)

    @property
    def cost(self) -> float:
        """The least cost of all groups."""
        return sum(map(self.cost_of, self.groups))

    def cost_of(self, group: GroupEstimate) -> float:
        """Return the least cost of one group."""
        return group.seconds * group.steps * self.where.chips / 3600 * self.price


def cheapest(planner: SlicePlanner, groups: Groups) -> list[PlannedStage]:
    """Return the plan for the slice on which the stages together cost least.

    In the order of the estimate, the stage that takes most of the time is compiled for up to MAX_TRIED slices on which
    it fits. A generation is left once it gets dearer with size, as are slices whose estimate is no cheaper than what
    was found. The rest of the stages is compiled for the cheapest of these alone.

    Raises:
      ConfigError: if no slice with a price fits.
    """
    training = [group for group in groups if train_job(planner.ctx, group)]
    tried = _tried(planner, training)
    for estimate, _ in sorted(tried, key=lambda pair: pair[1]):
        stages = planner.on_slice(groups, estimate.where)
        if all(stage.fits for stage in stages):
            return stages
        planner.say(f"{estimate.where.name}: does not fit")
    raise ConfigError(f"no slice of up to {MAX_CHIPS} chips with a price fits; shrink the batch or the loss_chunk")


def _tried(planner: SlicePlanner, groups: Groups) -> list[tuple[SliceEstimate, float]]:
    """Compile the dearest stage for the slices that the estimate ranks first; return those it fits, and their costs."""
    tried: list[tuple[SliceEstimate, float]] = []
    by_generation: dict[str, float] = {}  # the cost on its last slice
    dropped: set[str] = set()
    for estimate in ranked(planner, groups):
        where, least = estimate.where, min((cost for _, cost in tried), default=math.inf)
        if len(tried) == MAX_TRIED or estimate.cost >= NEAR * least:
            break
        if where.generation in dropped:
            continue
        stages = planner.on_slice([estimate.dearest.nodes], where)
        if not all(stage.fits for stage in stages):
            planner.say(f"{where.name}: does not fit")
            continue
        slower = sum(stage.cost or 0.0 for stage in stages) / estimate.cost_of(estimate.dearest)
        cost = slower * estimate.cost  # as if the other stages were as far from their estimates
        planner.say(f"{where.name}: fits, {cost:.2f} {planner.prices.currency}, estimated {estimate.cost:.2f}")
        if cost >= by_generation.get(where.generation, math.inf):
            dropped.add(where.generation)
        by_generation[where.generation] = cost
        tried.append((estimate, cost))
    return tried


def ranked(planner: SlicePlanner, groups: Groups) -> list[SliceEstimate]:
    """Return the slices that may hold the stages, the cheapest by the estimate first; of equal ones the smallest."""
    priced = {g: price for g, price in planner.prices.chip_hour.items() if g in CHIPS}
    check(bool(priced), f"--slice=auto: the price table has none of {', '.join(CHIPS)}")
    sizes = list(step_sizes(planner.ctx, groups))
    estimates = []
    for where in SLICES.values():
        if where.generation in priced and where.chips <= MAX_CHIPS:
            try:
                each = [estimate(planner.ctx, one, where) for one in sizes]
            except ConfigError as error:
                planner.say(f"{where.name}: {error}")
                continue
            estimates.append(SliceEstimate(where, each, priced[where.generation]))
    small = [e for e in estimates if e.hbm > e.where.device_hbm]
    if small:
        need = ", ".join(f"{e.where.name} ({e.hbm / GIB:.1f} GiB)" for e in small)
        planner.say(f"not compiled, as a device needs more than it has: {need}")
    fitting = [e for e in estimates if e.hbm <= e.where.device_hbm]
    least = min((e.cost for e in fitting), default=1.0) or 1.0
    fitting.sort(key=lambda e: (round(math.log(max(e.cost / least, 1.0)), 2), e.where.chips))
    planner.say("estimated: " + ", ".join(f"{e.where.name} {e.cost:.2f}" for e in fitting[:8]))
    return fitting


def step_sizes(ctx: Context, groups: Groups) -> Iterator[StepSizes]:
    """Yield what the groups' steps are made of, from their shapes on one device; equal steps are traced once."""
    alone = dataclasses.replace(ctx, run=dataclasses.replace(ctx.run, fsdp=1, tensor=1))
    executed: dict[tuple[object, ...], float] = {}
    for group in groups:
        step = group_step(alone, group, jax.devices("cpu")[:1])
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


def estimate(ctx: Context, sizes: StepSizes, where: Slice) -> GroupEstimate:
    """Return what a group needs of a slice at least.

    HBM: the state is read and written, the gradients written and read, the activations likewise, and every device
    reads the weights that it computes with, in two bytes, forward and backward, and a teacher's forward. Interconnect:
    weights that lie over several devices come to each for both passes, and their gradients go back.
    """
    job = train_job(ctx, sizes.nodes)
    assert job
    mesh = job.mesh(ctx, jax.devices("cpu")[:1] * where.devices)
    shape, padding = mesh.shape, job.padded_batch(mesh) / job.settings.batch
    parts, rows = shape["fsdp"] * shape["tensor"], shape["data"] * shape["fsdp"]
    members, tensor = shape["population"], shape["tensor"]
    weights = sizes.weights / members / tensor / 2  # fp32 masters, computed with in bfloat16
    frozen, activations = sizes.frozen / tensor, sizes.activations / members / rows
    moved = 2 * (sizes.state + sizes.weights) / members / parts + 2 * weights + frozen + 2 * activations
    received = (3 * weights + frozen) * (1 - 1 / shape["fsdp"])
    seconds = (
        padding * sizes.flops / where.devices / where.device_flops,
        moved / where.device_bandwidth,
        received / where.interconnect if received else 0.0,
    )
    held = (sizes.state + sizes.weights) / members / parts + sizes.frozen / parts + activations
    return GroupEstimate(sizes.nodes, held, max(seconds), sizes.steps)
