"""What one run of a compiled program moves over the interconnect, and over the network between slices."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from distill_jax.perf import hlo

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

Collectives = dict[str, dict[str, int]]  # {kind: {"count", "bytes"}}


def collectives(module: hlo.Module, entry: str, slice_of: Sequence[int]) -> tuple[Collectives, Collectives]:
    """Return {kind: {"count", "bytes"}} of one run, of what stays in a slice and of what crosses slices.

    Bytes are what one chip receives. A ring moves (n - 1) / n of the gathered tensor among n chips, twice that for an
    all-reduce. What the compiler split into start, steps and end shares one channel and counts once. A collective
    whose groups have chips of several slices crosses them with all its bytes; a compiler for TPUs, whose program is
    that of one slice, makes it a transfer by the hosts.

    Args:
      slice_of: the slice of each device, in the order of the program's devices.
    """
    times, _ = hlo.runs(module, entry)
    by_channel: dict[tuple[str, str, bool], tuple[int, float]] = {}
    for name, count in times.items():
        for one in module.get(name, ()):
            kind, groups = _kind_and_groups(one, slice_of)
            if not kind:
                continue
            crosses = any(len({slice_of[i] for i in group}) > 1 for group in groups)
            channel = re.search(r"channel_id=(\d+)", one.rest)
            key = (kind, channel[1] if channel else f"{name}/{one.name}", crosses)
            new = (count, count * _received(kind, one, len(groups[0])))
            by_channel[key] = max(by_channel.get(key, (0, 0.0)), new, key=lambda x: x[1])
    inside: Collectives = {}
    across: Collectives = {}
    for (kind, _, crosses), (count, moved) in by_channel.items():
        so_far = (across if crosses else inside).setdefault(kind, {"count": 0, "bytes": 0})
        so_far["count"] += count
        so_far["bytes"] += round(moved)
    return inside, across


def _kind_and_groups(one: hlo.Instruction, slice_of: Sequence[int]) -> tuple[str, list[list[int]]]:
    """Return what an instruction moves among which devices; ("", []) if it is no collective."""
    kind = one.opcode.removesuffix("-start")
    if kind in KINDS:
        return kind, replica_groups(one.rest, len(slice_of))
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest) if kind == "recv" else None
    if not transfer:
        return "", []
    target = re.search(r'_xla_megascale_target="\{([\d,]+)\}x', one.rest)
    firsts = [slice_of.index(i) for i in sorted(set(slice_of))]  # a device of each slice
    return transfer[1].lower().replace("_", "-"), [firsts[: len(target[1].split(","))] if target else firsts]


def _received(kind: str, one: hlo.Instruction, group: int) -> float:
    size: float = sum(hlo.sizes(re.sub(r"\b[su]32\[\]", "token[]", one.result)))
    if one.opcode == "all-gather-start":  # its type lists the operand too
        size *= group / (group + 1)
    elif one.opcode in ("collective-permute-start", "collective-broadcast-start"):
        size /= 2
    if kind.startswith("collective"):
        return size
    if kind == "reduce-scatter":
        size *= group
    return size * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def replica_groups(rest: str, devices: int) -> list[list[int]]:
    """Return which devices take part in each group of a collective, by their numbers in the program."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))?\s*\{([^}]*)\}", rest):
        return _groups_of_axes(named[1], named[2] or "", named[3])
    if listed := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        return _ids(listed[3]).reshape(int(listed[1]), int(listed[2])).tolist()
    if explicit := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", rest):
        return [[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", explicit[1])]
    return [list(range(devices))]


def _groups_of_axes(mesh: str, order: str, along: str) -> list[list[int]]:
    """Return the groups along axes of a mesh, `'x'=2,'y'=4`; an axis `'y':(2)2` is the part of y of size 2 behind 2."""
    extent = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    ids = (_ids(order) if order else np.arange(math.prod(extent.values()))).reshape(-1)
    parts: list[int] = []  # the sizes of all axes, those taken in part cut into three
    taken: list[int] = []
    chosen = {name: (before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along)}
    for name, size in extent.items():
        if name in chosen:
            before, part = (int(x) for x in chosen[name]) if chosen[name][1] else (1, size)
            taken.append(len(parts) + 1)
            parts += [before, part, size // (before * part)]
        else:
            parts.append(size)
    kept = [i for i in range(len(parts)) if i not in taken]
    groups = ids.reshape(parts).transpose([*kept, *taken]).reshape(-1, math.prod(parts[i] for i in taken))
    return [list(map(int, group)) for group in groups]


def _ids(text: str) -> np.ndarray:
    """Return the devices in an order such as `[2,4]T(1,0)`: counted in a box of that shape, then transposed."""
    shape, _, axes = text.partition("T")
    counted = [int(n) for n in re.findall(r"\d+", shape)]
    ids = np.arange(math.prod(counted)).reshape(counted)
    return (ids.transpose([int(n) for n in re.findall(r"\d+", axes)]) if axes else ids).reshape(-1)
