"""The one mesh, and where each logical axis of a tensor lies on it.

Devices that are wired together are a slice. Between slices there is only the data-centre network: the population lies
over slices as far as it divides, and the rows of a batch over those that are left, which are the axis SLICE; `fsdp` and
`tensor`, whose traffic is heavy, never leave a slice.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from distill_jax.types import PyTree

AXES = ("population", "data", "fsdp", "tensor")
SLICE = "slice"  # before these, of a mesh whose slices share a batch

# Logical axis -> mesh axes. An axis that is not listed, or does not divide, is replicated.
RULES: dict[str, tuple[str, ...]] = {
    "population": ("population",),
    "batch": (SLICE, "data", "fsdp"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    # Logits: the vocabulary over all chips that hold a part of every weight, and so their rows over data alone.
    "logits": ("tensor", "fsdp"),
    "rows": (SLICE, "data"),
}

# The mesh that `constrain` uses while a step is traced; nothing outside tracing reads it.
_tracing: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)
# Whether what is traced is one slice's own part, mapped over slices by `over_slices`.
_in_slice: contextvars.ContextVar[bool] = contextvars.ContextVar("in_slice", default=False)


def make_mesh(
    members: int,
    *,
    spread: bool = False,
    fsdp: int = 1,
    tensor: int = 1,
    slices: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Make the mesh for a population: as many population rows as divide, the rest of them for data.

    Args:
      members: P; padded by the caller to a multiple of the population axis (see `padded`).
      spread: give the population all rows whatever P is, so that a member's arithmetic is the same bit for bit
        however many others it trains with.
      fsdp, tensor: sizes of these axes; their product must divide the number of devices of a slice. fsdp = -1 takes
        all devices of a slice that tensor leaves.
      slices: into how many the devices are cut, in order; 0 as they say of themselves.
      devices: all of the run's, when left out.

    Raises:
      ValueError: if the devices do not divide.
    """
    by_slice = split_slices(jax.devices() if devices is None else devices, slices)
    each, total = len(by_slice[0]), len(by_slice)
    fsdp = max(each // tensor, 1) if fsdp == -1 else fsdp
    if each % (fsdp * tensor):
        what = f"{each} devices" if total == 1 else f"slices of {each} devices"
        raise ValueError(f"{what} do not divide into fsdp = {fsdp} × tensor = {tensor}")
    rows = each // (fsdp * tensor)
    population = total * rows if spread or members >= total * rows else math.gcd(members, total * rows)
    # Members need nothing of each other: they take the slow network first.
    apart = math.gcd(population, total)
    inside = population // apart
    grids = np.array([_grid((inside, rows // inside, fsdp, tensor), devices) for devices in by_slice])
    grid = grids.reshape(apart, total // apart, *grids.shape[1:]).swapaxes(0, 1)
    grid = grid.reshape(total // apart, population, *grids.shape[2:])
    axes: tuple[str, ...] = (SLICE, *AXES)
    if total == apart:
        grid, axes = grid[0], AXES
    return Mesh(grid, axes, axis_types=(AxisType.Auto,) * len(axes))


def split_slices(devices: Sequence[jax.Device], slices: int = 0) -> list[list[jax.Device]]:
    """Return the devices by slice.

    Args:
      slices: how many, if the devices do not say, in order; 0 for one then.

    Raises:
      ValueError: if they do not divide, or say otherwise.
    """
    by_index: dict[int, list[jax.Device]] = {}
    for device in devices:  # what a GPU calls a slice is a host
        of_slice = getattr(device, "slice_index", 0)  # a topology of one slice has none
        by_index.setdefault(of_slice if device.platform == "tpu" else 0, []).append(device)
    if len(by_index) > 1:
        if slices not in (0, len(by_index)):
            raise ValueError(f"slices = {slices}: these devices are in {len(by_index)} slices")
        if len({len(part) for part in by_index.values()}) > 1:
            raise ValueError(f"slices of unequal size: {[len(part) for part in by_index.values()]} devices")
        return [by_index[i] for i in sorted(by_index)]
    each, rest = divmod(len(devices), max(slices, 1))
    if rest or not each:
        raise ValueError(f"{len(devices)} devices do not divide into slices = {slices}")
    return [list(devices[i : i + each]) for i in range(0, len(devices), each)]


def _grid(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Return the devices of a slice in the shape of its axes.

    On a TPU the axes should follow the wires of the torus, and share one where none fits; elsewhere devices are in
    order.
    """
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return np.array(devices).reshape(shape)


def padded(members: int, mesh: Mesh) -> int:
    """Return the smallest multiple of the population axis that holds this many members."""
    rows = mesh.shape["population"]
    return -(-members // rows) * rows


def batch_devices(mesh: Mesh) -> int:
    """Return over how many devices the rows of a batch are divided."""
    return math.prod(mesh.shape.get(a, 1) for a in RULES["batch"])


def padded_rows(rows: int, mesh: Mesh) -> int:
    """Return the smallest number of rows that holds these and divides over the devices of a batch."""
    return -(-rows // batch_devices(mesh)) * batch_devices(mesh)


def spec(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int]) -> P:
    """Return the partition of one tensor from its logical axes; what does not divide stays whole."""
    return P(*(on if on and not bad else None for on, bad in _placed(mesh, axes, shape)))


def _placed(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int]) -> list[tuple[tuple[str, ...], bool]]:
    """Return for each dimension the mesh axes that its rule names, and whether it fails to divide by them."""
    out, left_out = [], (SLICE,) if _in_slice.get() else ()
    for name, size in zip(axes, shape, strict=True):
        on = tuple(a for a in RULES.get(name or "", ()) if mesh.shape.get(a, 1) > 1 and a not in left_out)
        out.append((on, size % math.prod(mesh.shape[a] for a in on) != 0))
    return out


def shardings(mesh: Mesh, logical: PyTree, tree: PyTree, lead: tuple[str, ...] = ()) -> PyTree:
    """Return a tree of NamedShardings for arrays (or shapes) whose logical axes are `lead` plus the tree's."""
    flat, treedef = jax.tree.flatten(tree)
    named = [
        NamedSharding(mesh, spec(mesh, lead + tuple(axes), leaf.shape))
        for axes, leaf in zip(_specs(logical), flat, strict=True)
    ]
    return jax.tree.unflatten(treedef, named)


def _specs(logical: PyTree) -> list[P]:
    return jax.tree.leaves(logical, is_leaf=_is_spec)


def _is_spec(node: object) -> bool:
    return isinstance(node, P)


def with_shardings(tree: PyTree, shardings: PyTree) -> PyTree:
    """Return arrays (or shapes) as shapes that carry the shardings of a tree of the same structure."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a tensor that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Return the sharding of a batch [G, B, ...]: rows over the data and fsdp axes when they divide."""
    return NamedSharding(mesh, spec(mesh, (None, "batch"), (1, rows)))


@contextlib.contextmanager
def tracing(mesh: Mesh) -> Iterator[None]:
    """Set the mesh that `constrain` uses while a function is traced."""
    token = _tracing.set(mesh)
    try:
        yield
    finally:
        _tracing.reset(token)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain an activation to its logical axes; a no-op outside `tracing`, or where the mesh has one device a row.

    Without it XLA may answer a weight sharded over `fsdp` by splitting the products' sums instead of gathering it.
    """
    mesh = _tracing.get()
    if mesh is None or mesh.size == mesh.shape["population"]:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(mesh, axes, x.shape)))


def gathers() -> bool:
    """Return whether weights are divided over `fsdp` where a step is traced."""
    mesh = _tracing.get()
    return mesh is not None and mesh.shape["fsdp"] > 1


def gather(w: jax.Array, *axes: str | None) -> jax.Array:
    """Return a weight whole over `fsdp`, and divided over `tensor` as it is stored; a no-op outside `tracing`.

    Gathering before the product costs the weight once over the interconnect. Left to itself XLA answers a weight that
    is divided over `fsdp` either by a ring of partial products, each of which reads and writes the whole result in HBM,
    or by sums of activations over all devices, which are far larger than the weight.

    Args:
      axes: logical, of the whole weight as it is stored. The gradient comes back in that layout.
    """
    return constrain(constrain(w, *axes), *(None if RULES.get(a or "") == ("fsdp",) else a for a in axes))


def splits(axis: str, size: int) -> bool:
    """Return whether `constrain` would cut a dimension of this size that lies on this logical axis."""
    mesh = _tracing.get()
    return mesh is not None and spec(mesh, (axis,), (size,)) != P(None)


def manual_mesh() -> Mesh | None:
    """Return the mesh to map over by hand while a computation is traced; None where a device computes alone.

    On a CPU members that lie on devices of their own are mapped already, by `over_members`.
    """
    mesh = _tracing.get()
    if mesh is None or (mesh.size == mesh.shape["population"] and first_device().platform == "cpu"):
        return None
    return mesh if mesh.size > 1 else None


def axes_of(mesh: Mesh, axis: str, size: int) -> tuple[str, ...]:
    """Return the mesh axes over which a dimension of this size lies; () if it stays whole."""
    ((on, bad),) = _placed(mesh, (axis,), (size,))
    return () if bad else on


def shard_count(axis: str, size: int) -> int:
    """Return over how many devices a dimension of this size lies where a computation is traced."""
    mesh = _tracing.get()
    return math.prod(mesh.shape[a] for a in axes_of(mesh, axis, size)) if mesh else 1


def first_device() -> jax.Device:
    """Return one of the devices that a computation is traced for, which need not be of this machine."""
    mesh = _tracing.get()
    device: jax.Device = mesh.devices.flat[0] if mesh else jax.devices()[0]
    return device


def over_shards(f: Callable[..., jax.Array], axes: Sequence[Sequence[str | None]], *arrays: jax.Array) -> jax.Array:
    """Call f(*arrays) on each device with its parts: for a kernel, which XLA cannot divide.

    Args:
      axes: the logical axes of each array; the result lies as the first.
    """
    mesh = manual_mesh()
    if mesh is None:
        return f(*arrays)
    specs = tuple(spec(mesh, a, x.shape) for a, x in zip(axes, arrays, strict=True))
    return jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)


MemberFunction = Callable[[PyTree, PyTree], PyTree]  # (member, shared) -> what is computed of the member


def over_members(f: MemberFunction, mesh: Mesh) -> MemberFunction:
    """Map f(member, shared) over the members' leading axis P.

    On accelerators one batched program; on CPU, where XLA's batched products are slow, members run one after
    another on each device. A member gives the same numbers either way, up to the order of summation.
    """
    one_axis = mesh.shape["population"] == mesh.size
    if mesh.devices.flat[0].platform != "cpu" or (mesh.shape["population"] > 1 and not one_axis):
        return jax.vmap(f, in_axes=(0, None), spmd_axis_name="population")

    def one_by_one(members: PyTree, shared: PyTree) -> PyTree:
        return jax.lax.map(lambda member: f(member, shared), members)

    if mesh.shape["population"] == 1:
        return one_by_one
    side_by_side = jax.shard_map(
        one_by_one, mesh=mesh, in_specs=(P("population"), P()), out_specs=P("population"), check_vma=False
    )

    def run(members: PyTree, shared: PyTree) -> PyTree:
        return (side_by_side if traced((members, shared)) else one_by_one)(members, shared)

    return run


def over_slices(f: Callable[[PyTree], PyTree], mesh: Mesh) -> Callable[[PyTree], PyTree]:
    """Return the sum of f(batch) over the slices of a mesh, each of which has its own rows of the batch [G, B, ...].

    Each slice reduces over its own wires first; only then is what every device has left, its part of a gradient,
    summed over the data-centre network.
    """
    slices = mesh.shape.get(SLICE, 1)
    if slices == 1:
        return f

    def one(batch: PyTree) -> PyTree:
        token = _in_slice.set(True)
        try:
            return f(batch)
        finally:
            _in_slice.reset(token)

    def apart(x: jax.Array) -> jax.Array:  # [slices, G, B / slices, ...]
        return jnp.moveaxis(x.reshape(x.shape[0], slices, -1, *x.shape[2:]), 1, 0)

    def together(x: jax.Array) -> jax.Array:
        at = P(SLICE, *[P.UNCONSTRAINED] * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, at)).sum(axis=0)

    def run(batch: PyTree) -> PyTree:
        return jax.tree.map(together, jax.vmap(one, spmd_axis_name=SLICE)(jax.tree.map(apart, batch)))

    return run


def traced(tree: PyTree) -> bool:
    """Return whether a computation on the tree is being compiled; not so where JAX_DEBUG_NANS looks for a NaN."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def parameter_table(mesh: Mesh, logical: PyTree, tree: PyTree) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return where every parameter lies, and a line for each dimension that stays whole against its rule.

    Args:
      logical: tree of logical axes, as the model gives it; tree: its arrays or shapes.

    Returns:
      rows of (name, shape, logical axes, mesh axes, bytes per device), the first a heading and the last the sum.
    """
    rows: list[tuple[str, ...]] = [("parameter", "shape", "logical axes", "mesh axes", "bytes per device")]
    notes, total = [], 0
    for axes, (path, leaf) in zip(_specs(logical), jax.tree_util.tree_leaves_with_path(tree), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = tuple(axes) + (None,) * (leaf.ndim - len(axes))
        placed = _placed(mesh, axes, leaf.shape)
        parts = math.prod(mesh.shape[a] for on, bad in placed if not bad for a in on)
        size = math.prod(leaf.shape) * leaf.dtype.itemsize // parts
        total += size
        for axis, extent, (on, bad) in zip(axes, leaf.shape, placed, strict=True):
            if bad:
                ways = " × ".join(f"{a} = {mesh.shape[a]}" for a in on)
                notes.append(f"{name}: {axis} {extent} does not divide by {ways}; every device holds all of it")
        where = [("+".join(on) if on and not bad else "-") for on, bad in placed]
        logical_names = ", ".join(axis or "-" for axis in axes)
        rows.append((name, " × ".join(map(str, leaf.shape)), logical_names, ", ".join(where), f"{size:,}"))
    rows.append(("all", "", "", "", f"{total:,}"))
    return rows, notes
