"""The one mesh, and where each logical axis of a tensor lies on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("population", "data", "fsdp", "tensor")

# Logical axis -> mesh axes. An axis that is not listed, or does not divide, is replicated.
RULES: dict[str, tuple[str, ...]] = {
    "population": ("population",),
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}


def make_mesh(members: int, *, spread: bool = False, fsdp: int = 1, tensor: int = 1, devices: Any = None) -> Mesh:
    """Lay the devices out for a population: as many population rows as divide, the rest of them for data.

    Args:
      members: P; padded by the caller to a multiple of the population axis (see `padded`).
      spread: give the population all rows whatever P is, so that a member's arithmetic is the same bit for bit
        however many others it trains with.
      fsdp, tensor: sizes of these axes; their product must divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % (fsdp * tensor):
        raise ValueError(f"{len(devices)} devices do not divide into fsdp = {fsdp} × tensor = {tensor}")
    free = len(devices) // (fsdp * tensor)
    population = free if spread or members >= free else math.gcd(members, free)
    grid = np.array(devices).reshape(population, free // population, fsdp, tensor)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def padded(members: int, mesh: Mesh) -> int:
    """Return the smallest multiple of the population axis that holds this many members."""
    rows = mesh.shape["population"]
    return -(-members // rows) * rows


def spec(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> P:
    """Return the partition of one tensor from its logical axes; what does not divide stays whole."""
    chosen: list[Any] = []
    for name, size in zip(axes, shape, strict=True):
        on = tuple(a for a in RULES.get(name or "", ()) if mesh.shape[a] > 1)
        chosen.append(on if on and size % math.prod(mesh.shape[a] for a in on) == 0 else None)
    return P(*chosen)


def shardings(mesh: Mesh, logical: Any, tree: Any, lead: tuple[str, ...] = ()) -> Any:
    """Return a tree of NamedShardings for arrays (or shapes) whose logical axes are `lead` plus the tree's."""
    is_spec = lambda x: isinstance(x, P)  # noqa: E731
    flat_axes = jax.tree.leaves(logical, is_leaf=is_spec)
    flat, treedef = jax.tree.flatten(tree)
    named = [
        NamedSharding(mesh, spec(mesh, lead + tuple(axes), leaf.shape))
        for axes, leaf in zip(flat_axes, flat, strict=True)
    ]
    return jax.tree.unflatten(treedef, named)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a tensor that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Return the sharding of a batch [G, B, ...]: rows over the data and fsdp axes when they divide."""
    return NamedSharding(mesh, spec(mesh, (None, "batch"), (1, rows)))


def over_members(f: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Map f(member, shared) over the members' leading axis P.

    On accelerators one batched program; on CPU, where XLA's batched products are slow, members run one after
    another on each device. A member gives the same numbers either way, up to the order of summation.
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(f, in_axes=(0, None), spmd_axis_name="population")

    def one_by_one(members, shared):
        return jax.lax.map(lambda member: f(member, shared), members)

    if mesh.shape["population"] == 1:
        return one_by_one
    return jax.shard_map(
        one_by_one, mesh=mesh, in_specs=(P("population"), P()), out_specs=P("population"), check_vma=False
    )
