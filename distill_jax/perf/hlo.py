"""Read a compiled program's text: its computations, their instructions, and how often each runs.

XLA's own cost analysis counts the body of a loop once. Here a loop counts as often as it runs: its bound is the
constant that its condition compares the counter with. A loop whose bound is not there counts once, and is reported.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re

_BYTES = {"pred": 1, "bf16": 2, "s4": 1, "u4": 1, "token": 0}
_ARRAY = re.compile(r"\b(pred|token|bf16|[suf]\d+|f8\w+|c\d+)\[([\d,]*)\](\{[^{}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
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

    @property
    def op_name(self) -> str:
        """The path of modules and scopes that JAX computed it in; "" if the compiler kept none."""
        metadata = _OP_NAME.search(self.rest)
        return metadata[1] if metadata else ""


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
        if match := _INSTRUCTION.match(line):
            root, name, value = match.groups()
            if opcode := _OPCODE.search(value):
                rest = value[opcode.end() :]
                operands = tuple(re.findall(r"%([\w.\-]+)", rest[: _closing(rest)]))
                instruction = Instruction(name, opcode[1], value[: opcode.start()], operands, rest, bool(root))
                module[here].append(instruction)
    return {name: [_sugared(module, one) for one in lines] for name, lines in module.items()}, entry


def _sugared(module: Module, one: Instruction) -> Instruction:
    """Return `async-start(…), calls=%c` as compiled text has it, under the name of what it starts: `slice-start(…)`."""
    if one.opcode != "async-start":
        return one
    started = next(line.opcode for name in called(one) for line in module[name] if line.root)
    return dataclasses.replace(one, opcode=f"{started}-start")


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
            for inner in called(one):
                visit(inner, count * trips)

    visit(entry, 1)
    return dict(times), unknown


def called(one: Instruction) -> list[str]:
    """Return the names of the computations that an instruction runs."""
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
