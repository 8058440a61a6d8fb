"""Stages that train as one population, lowered for devices that need not be there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from distill_jax.config import ConfigError
from distill_jax.models.remat import policies
from distill_jax.perf import flops
from distill_jax.stages.choose_remat import least_bytes
from distill_jax.stages.context import Context, Node
from distill_jax.stages.train_job import TrainJob
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class LoweredGroup:
    """A population's step for a mesh.

    Attributes:
      ctx: what it was lowered in.
      flops: of a step, counted from shapes; executed: of its products, with what rematerialisation computes again.
      remat: the policy of what that is.
      least_bytes: of a device, without which it cannot run.
    """

    ctx: Context
    nodes: Sequence[Node]
    members: int
    flops: float
    executed: float
    remat: str
    least_bytes: float
    mesh: Mesh
    lowered: jax.stages.Lowered
    notes: tuple[str, ...]


class GroupStep(NamedTuple):
    """A population's step on a mesh: its job, and what it takes."""

    job: TrainJob
    mesh: Mesh
    shapes: tuple[PyTree, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """What two steps have in common that are one program."""
        leaves, tree = jax.tree.flatten(self.shapes)
        return self.job.build(self.mesh), tree, *leaves

    @property
    def policies(self) -> tuple[str, ...]:
        """What its backward pass may compute again, the least first."""
        return policies(self.job.key.model.remat)

    def with_remat(self, policy: str) -> GroupStep:
        """Return the step that computes again what a policy says."""
        return self._replace(job=self.job.with_remat(policy))

    def trace(self) -> jax.stages.Traced:
        """Trace the step; equal steps are traced once."""
        return self.job.build(self.mesh).trace(*self.shapes)


def train_job(ctx: Context, group: Sequence[Node]) -> TrainJob | None:
    """Return what a group compiles; None if it takes no steps."""
    job: TrainJob | None = group[0].settings.train_job(ctx, group)
    return job


def group_step(ctx: Context, group: Sequence[Node], devices: Sequence[jax.Device]) -> GroupStep:
    """Return the step of a group that trains, on the mesh that `run` would make of the devices.

    Raises:
      ConfigError: if the devices do not make such a mesh.
    """
    job = train_job(ctx, group)
    assert job
    try:
        mesh = job.mesh(ctx, devices)
    except ConfigError as error:
        raise ConfigError(f"{group[0].name}: {error}") from error
    except NotImplementedError as error:
        raise ConfigError(f"{group[0].name}: {error}; change config.run.fsdp or config.run.tensor") from error
    return GroupStep(job, mesh, job.shapes(ctx, mesh))


class Lowering:
    """Lowers the groups of a plan; groups whose programs are equal are lowered once for a slice."""

    def __init__(self, ctx: Context, devices: Sequence[jax.Device]) -> None:
        """Lower for these devices."""
        self._ctx, self._devices = ctx, devices
        self._lowered: dict[tuple[object, ...], tuple[float, float, jax.stages.Lowered]] = {}

    def __call__(self, group: Sequence[Node]) -> Iterator[LoweredGroup]:
        """Trace and lower a group's step with each policy that it may have, that with the least recomputation first."""
        step = group_step(self._ctx, group, self._devices)
        for policy in step.policies:
            yield self._with(group, step.with_remat(policy))

    def _with(self, group: Sequence[Node], step: GroupStep) -> LoweredGroup:
        if step.key not in self._lowered:
            traced = step.trace()
            least = least_bytes(traced, step.mesh, step.shapes)
            self._lowered[step.key] = flops.executed(traced.jaxpr.jaxpr), least, traced.lower()
        executed, least, lowered = self._lowered[step.key]
        return LoweredGroup(
            ctx=self._ctx,
            nodes=list(group),
            members=len(step.job.members),
            flops=step.job.step_flops(),
            executed=executed,
            remat=step.job.key.model.remat,
            least_bytes=least,
            mesh=step.mesh,
            lowered=lowered,
            notes=tuple(filter(None, [step.job.padding_note(step.mesh)])),
        )
