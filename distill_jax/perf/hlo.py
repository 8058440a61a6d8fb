"""Read a compiled program's text: what it moves over the interconnect and through HBM in one run.

XLA's own cost analysis counts the body of a loop once. Here a loop counts as often as it runs: its bound is the
constant that its condition compares the counter with. A loop whose bound is not there counts once, and is reported.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_BYTES = {"pred": 1, "bf16": 2, "s4": 1, "u4": 1, "token": 0}
_FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "iota", "opt-barrier", "broadcast"),
}
_ARRAY = re.compile(r"\b(pred|token|bf16|[suf]\d+|f8\w+|c\d+)\[([\d,]*)\](\{[^{}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    result: str  # its type
    operands: tuple[str, ...]
    rest: str  # all that follows the opcode
    root: bool


Module = dict[str, list[Instruction]]


def parse(text: str) -> tuple[Module, str]:
    """Return the computations of an HLO module by name, and the name of its entry."""
    module: Module = {}
    entry = here = ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            here = re.split(r"[\s(]", line.removeprefix("ENTRY ").lstrip("%"), maxsplit=1)[0]
            entry = here if line.startswith("ENTRY") else entry
            module[here] = []
            continue
        found = _INSTRUCTION.match(line)
        opcode = _OPCODE.search(found[3]) if found else None
        if found and opcode:
            rest = found[3][opcode.end() :]
            operands = tuple(re.findall(r"%([\w.\-]+)", rest[: _closing(rest)]))
            module[here].append(
                Instruction(found[2], opcode[1], found[3][: opcode.start()], operands, rest, bool(found[1]))
            )
    return module, entry


def _closing(rest: str) -> int:
    depth = 1
    for i, c in enumerate(rest):
        depth += (c == "(") - (c == ")")
        if not depth:
            return i
    return len(rest)


def runs(module: Module, entry: str) -> tuple[dict[str, int], int]:
    """Return how often each computation runs (a fusion's inside does not count), and how many loops have no bound."""
    times: dict[str, int] = collections.defaultdict(int)
    unknown = 0

    def visit(name: str, count: int) -> None:
        nonlocal unknown
        times[name] += count
        for one in module.get(name, ()):
            trips = 1
            if one.opcode == "while":
                bound = _trips(module, one)
                unknown += bound is None
                trips = bound or 1
            for called in _called(one):
                visit(called, count * trips)

    visit(entry, 1)
    return dict(times), unknown


def _called(one: Instruction) -> list[str]:
    branches = _BRANCHES.search(one.rest)
    return _CALLED.findall(one.rest) + (re.findall(r"%?([\w.\-]+)", branches[1]) if branches else [])


def _trips(module: Module, loop: Instruction) -> int | None:
    known = re.search(r"known_trip_count[^0-9]*(\d+)", loop.rest)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    lines = module.get(condition[1], []) if condition else []
    bounds = [int(m[1]) for one in lines if one.opcode == "constant" and (m := re.match(r"(\d+)\)", one.rest))]
    return max(bounds) if bounds else None


def sizes(result: str, *, hbm: bool = False) -> list[int]:
    """Return the bytes of each array of a type; with `hbm`, 0 for those the compiler put into another memory."""
    out = []
    for kind, dims, layout in _ARRAY.findall(result):
        digits = re.sub(r"\D", "", kind) if not kind.startswith("f8") else "8"
        width = _BYTES.get(kind, max(int(digits or 8) // 8, 1))
        count = math.prod(int(d) for d in dims.split(",") if d)
        elsewhere = hbm and re.search(r"S\([1-9]", layout)
        out.append(0 if elsewhere else width * count)
    return out


def collectives(module: Module, entry: str, devices: int) -> dict[str, dict[str, int]]:
    """Return {kind: {"count", "bytes"}} of one run; bytes are what one chip receives.

    A ring moves (n - 1) / n of the gathered tensor among n chips, twice that for an all-reduce. What the compiler
    split into start, steps and end shares one channel and counts once.
    """
    times, _ = runs(module, entry)
    seen: dict[tuple[str, str], tuple[int, float]] = {}
    for name, count in times.items():
        for one in module.get(name, ()):
            kind = one.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            channel = re.search(r"channel_id=(\d+)", one.rest)
            key = (kind, channel[1] if channel else f"{name}/{one.name}")
            new = (count, count * _received(kind, one, devices))
            seen[key] = max(seen.get(key, (0, 0.0)), new, key=lambda x: x[1])
    out: dict[str, dict[str, int]] = {}
    for (kind, _), (count, moved) in seen.items():
        so_far = out.setdefault(kind, {"count": 0, "bytes": 0})
        so_far["count"] += count
        so_far["bytes"] += round(moved)
    return out


def _received(kind: str, one: Instruction, devices: int) -> float:
    group = _group(one.rest, devices)
    whole: float = sum(sizes(re.sub(r"\b[su]32\[\]", "token[]", one.result)))
    if one.opcode == "all-gather-start":  # its type lists the operand too
        whole *= group / (group + 1)
    elif one.opcode in ("collective-permute-start", "collective-broadcast-start"):
        whole /= 2
    if kind.startswith("collective"):
        return whole
    if kind == "reduce-scatter":
        whole *= group
    return whole * (group - 1) / group * (2 if kind == "all-reduce" else 1)


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


def hbm_traffic(module: Module, entry: str) -> int:
    """Return the bytes that one run reads from and writes to one chip's HBM.

    Every instruction outside a fusion reads its operands and writes its result; where a fusion slices an operand, or
    updates a slice in place, only the slice counts. What the compiler keeps in on-chip memory does not.
    """
    times, _ = runs(module, entry)
    inside = {c for lines in module.values() for one in lines if _fused(one) for c in _called(one)}
    total = 0
    for name, count in times.items():
        if name not in inside:
            table = {one.name: one for one in module.get(name, ())}
            total += count * sum(_moved(module, table, one) for one in table.values())
    return total


def _fused(one: Instruction) -> bool:
    return one.opcode in (
        "fusion",
        "reduce",
        "scatter",
        "sort",
        "all-reduce",
        "reduce-scatter",
        "map",
        "select-and-scatter",
    )


def _moved(module: Module, table: dict[str, Instruction], one: Instruction) -> int:
    size = lambda name: sum(sizes(table[name].result, hbm=True)) if name in table else 0  # noqa: E731
    result = sum(sizes(one.result, hbm=True))
    if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")):
        return 0
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * result
    if one.opcode == "dynamic-update-slice":
        return 2 * size(one.operands[1])
    if one.opcode.endswith("-start"):  # its type lists operands and result
        return result
    if one.opcode != "fusion":
        return result + sum(map(size, one.operands))
    return sum(_inside(module.get(_called(one)[0], []), [size(o) for o in one.operands], result))


def _inside(lines: list[Instruction], given: list[int], result: int) -> Iterator[int]:
    """Yield what a fusion reads of each operand and what it writes."""
    table = {one.name: one for one in lines}
    uses = collections.defaultdict(list)
    for one in lines:
        for operand in one.operands:
            uses[operand].append(one)
    kept = 0  # results that are updated in place
    for one in lines:
        if one.opcode != "parameter":
            continue
        size = given[int(one.rest.split(")")[0])]
        read = 0
        for use in _through(one.name, uses):
            if use.opcode in ("dynamic-slice", "slice", "gather"):
                read += sum(sizes(use.result))
            elif use.opcode == "dynamic-update-slice" and size and sizes(use.result) == sizes(one.result):
                update = sum(sizes(table[use.operands[1]].result))
                read, kept = read + 2 * update, kept + size
            elif use.opcode != "tuple":
                read = size
        yield min(read, size)
    yield max(result - kept, 0)


def _through(name: str, uses: dict[str, list[Instruction]]) -> Iterator[Instruction]:
    """Yield what uses a value, looking through bitcasts."""
    for use in uses[name]:
        if use.opcode == "bitcast":
            yield from _through(use.name, uses)
        else:
            yield use
