"""`model.remat = "auto"`: the policy with the least recomputation that fits the devices, as their compiler says.

What is chosen does not change the numbers but for the order of sums, and is no part of a node's identity, which has
"auto"; `execution.json` beside the node says what it was. A run that continues takes it from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from distill_jax.io.files import read_json, write_json
from distill_jax.io.node import EXECUTION
from distill_jax.models.remat import AUTO, policies
from distill_jax.perf import memory
from distill_jax.sharding.distributed import agreed, barrier, is_primary
from distill_jax.stages.compiled_step import CompileKey, compiled_step
from distill_jax.types import PyTree
from distill_jax.units import size_text

if TYPE_CHECKING:
    from distill_jax.stages.context import Context, Node
    from distill_jax.stages.train_job import TrainJob


@dataclasses.dataclass(frozen=True)
class Choice:
    """A step whose policy is decided.

    Attributes:
      fits: whether it needs no more than the room that it was given.
      needed: bytes of a device by the compiler's account; None if they are more than there are.
    """

    key: CompileKey
    fits: bool
    needed: int | None = None

    @property
    def policy(self) -> str:
        """The policy's name."""
        return self.key.model.remat


def resolve(key: CompileKey, mesh: Mesh, inputs: Sequence[PyTree], room: float | None = None) -> Choice:
    """Return the first candidate that fits, else the last, which then does not.

    Args:
      inputs: (state, teacher, batch, base) of the step, arrays or shapes with shardings.
      room: bytes of a device; `memory.FILL` of what programs may take there when left out.
    """
    room = _room(mesh) if room is None else room
    choice = Choice(key, False)
    for policy in policies(key.model.remat):
        candidate = key.with_remat(policy)
        needed = needed_bytes(candidate, mesh, inputs, room)
        # Devices of several hosts need not have the same free, and must compile the same programs.
        choice = Choice(candidate, bool(agreed(int(needed is not None and needed <= room))), needed)
        if choice.fits:
            break
    return choice


def _room(mesh: Mesh) -> float:
    """Return the bytes of a device that a step may need."""
    return memory.FILL * memory.capacity(mesh.devices.flat[0])


def resolved_step(
    key: CompileKey, mesh: Mesh, inputs: Sequence[PyTree], room: float | None = None
) -> tuple[jax.stages.Wrapped, str]:
    """Return a step's function and its policy, found out if the key's is "auto"; arguments as of `resolve`."""
    if key.model.remat == "auto":
        key = resolve(key, mesh, inputs, room).key
    return compiled_step(key, mesh), key.model.remat


def least_bytes(traced: jax.stages.Traced, mesh: Mesh, inputs: Sequence[PyTree]) -> float:
    """Return the bytes of a device without which a traced step cannot run, of which the compiler need not be asked."""
    return memory.least_bytes(*inputs, stacked=memory.stacked_bytes(traced.jaxpr.jaxpr, mesh.size))


def needed_bytes(key: CompileKey, mesh: Mesh, inputs: Sequence[PyTree], room: float) -> int | None:
    """Return the bytes of a device that a step needs; None, mostly uncompiled, if that is more than there can be."""
    traced = compiled_step(key, mesh).trace(*inputs)
    if least_bytes(traced, mesh, inputs) > room:
        return None
    try:
        return memory.needed_bytes(traced.lower().compile())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def choose_policy(ctx: Context, job: TrainJob, mesh: Mesh, room: float | None = None) -> Choice:
    """Return the choice for a job, made once a run for the same room; arguments as of `resolve`."""
    room = _room(mesh) if room is None else room
    inputs = job.shapes(ctx, mesh)
    leaves, tree = jax.tree.flatten(inputs)
    memo: tuple[Any, ...] = (job.key, mesh, room, tree, *leaves)
    if memo not in ctx.chosen_remat:
        ctx.chosen_remat[memo] = resolve(job.key, mesh, inputs, room)
    choice: Choice = ctx.chosen_remat[memo]
    return choice


def with_chosen_policy(ctx: Context, job: TrainJob, mesh: Mesh) -> TrainJob:
    """Return the job as it is run: with a policy where its own is "auto", recorded with its nodes and said."""
    if job.key.model.remat != "auto":
        return job
    nodes = list({m.node.directory: m.node for m in job.members}.values())
    policy, reason = _recorded(nodes), "as it began"
    if policy is None:
        choice = choose_policy(ctx, job, mesh)
        there = f"{size_text(memory.capacity(mesh.devices.flat[0]))} a device"
        needs = "more than" if choice.needed is None else f"{size_text(choice.needed)} of"
        policy, reason = choice.policy, f"which takes {needs} {there}"
    ctx.progress.say(f'{nodes[0].name}: model.remat = "auto" is "{policy}" here, {reason}')
    for node in nodes if is_primary() else ():
        write_json(node.directory / EXECUTION, {"remat": policy})
    return job.with_remat(policy)


def _recorded(nodes: Sequence[Node]) -> str | None:
    """Return the policy with which all nodes began, the same on every process; None if they did not begin with one."""
    records = [node.directory / EXECUTION for node in nodes]
    policies = [read_json(record)["remat"] if record.exists() else None for record in records]
    barrier("what was chosen")  # it is written next
    same = policies[0] in AUTO and len(set(policies)) == 1
    index = agreed(AUTO.index(policies[0]) if same else -1)
    return AUTO[index] if index >= 0 else None
