"""What one run of a compiled program moves over the interconnect."""

from __future__ import annotations

import math
import re

from distill_jax.perf import hlo

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


def collectives(module: hlo.Module, entry: str, devices: int) -> dict[str, dict[str, int]]:
    """Return {kind: {"count", "bytes"}} of one run; bytes are what one chip receives.

    A ring moves (n - 1) / n of the gathered tensor among n chips, twice that for an all-reduce. What the compiler
    split into start, steps and end shares one channel and counts once.
    """
    times, _ = hlo.runs(module, entry)
    by_channel: dict[tuple[str, str], tuple[int, float]] = {}
    for name, count in times.items():
        for one in module.get(name, ()):
            kind = one.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            channel = re.search(r"channel_id=(\d+)", one.rest)
            key = (kind, channel[1] if channel else f"{name}/{one.name}")
            new = (count, count * _received(kind, one, devices))
            by_channel[key] = max(by_channel.get(key, (0, 0.0)), new, key=lambda x: x[1])
    out: dict[str, dict[str, int]] = {}
    for (kind, _), (count, moved) in by_channel.items():
        so_far = out.setdefault(kind, {"count": 0, "bytes": 0})
        so_far["count"] += count
        so_far["bytes"] += round(moved)
    return out


def _received(kind: str, one: hlo.Instruction, devices: int) -> float:
    group = _group(one.rest, devices)
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


def _group(rest: str, devices: int) -> int:
    """Return how many chips take part in each group of a collective."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        extent = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part) if part else extent.get(name, 1) for name, part in parts)
    if listed := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
        return int(listed[2])
    if explicit := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(explicit[1].split(","))
    return devices
