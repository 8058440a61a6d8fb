"""What one run of a compiled program reads from and writes to a chip's HBM, by part of the model.

Every instruction outside a fusion reads its operands and writes its result; where a fusion slices an operand, or
updates a slice in place, only the slice counts. What the compiler keeps in on-chip memory does not. A kernel counts as
if it read and wrote each operand and result once.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from distill_jax.perf import hlo

PARTS = ("attention", "mlp", "norms", "embedding", "head", "optimizer", "copies", "other")
_FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "iota", "opt-barrier", "broadcast"),
}
_APPLIES = {"fusion", "reduce", "scatter", "sort", "all-reduce", "reduce-scatter", "map", "select-and-scatter"}
_SLICES = ("dynamic-slice", "slice", "gather")
_COPIES = ("copy", "copy-start", "transpose")
_MOVES = (*_COPIES, "dynamic-slice", "dynamic-update-slice", "slice", "concatenate", "pad")
_LOOKED_THROUGH = ("bitcast", "copy-done", "get-tuple-element")
_RENAMES = {"parameter", "bitcast", "copy"}

Table = Mapping[str, hlo.Instruction]
Uses = Mapping[str, Sequence[hlo.Instruction]]


def traffic_by_part(module: hlo.Module, entry: str) -> dict[str, int]:
    """Return the bytes of one run by `PARTS`."""
    times, _ = hlo.runs(module, entry)
    lines = [one for lines in module.values() for one in lines]
    inside = {c for one in lines if one.opcode in _APPLIES or one.opcode.endswith("-start") for c in hlo.called(one)}
    traffic = dict.fromkeys(PARTS, 0)
    for name in times.keys() - inside:
        table, uses = {one.name: one for one in module.get(name, ())}, _uses(module.get(name, ()))
        for one in table.values():
            if moved := times[name] * _moved(module, table, one):
                traffic[part(module, table, uses, one)] += moved
    return traffic


def part(module: hlo.Module, table: Table, uses: Uses, one: hlo.Instruction) -> str:
    """Return the part of the model that an instruction outside a fusion is of.

    A fusion is of its root's part, or if that is none, of the part that makes most of the bytes inside it. What is
    brought on the chip ahead of its use is of the user's part, what is written back of the maker's; any other copy is
    a copy, whoever needs it.
    """
    if one.opcode in _COPIES:
        near = [] if one.opcode == "transpose" else _other_end(table, uses, one)
        return next(filter(None, (_named(module, x) for x in near if x.opcode not in _COPIES)), "copies")
    if named := _named(module, one):
        return named
    roots = [line.opcode for line in _body(module, one) if line.root] or [one.opcode]
    return "copies" if roots[0] in _MOVES else "other"


def part_of_name(op_name: str) -> str:
    """Return the part of the model that an operation's path of modules and scopes names; "" if it names none.

    The path of a layer's product is `jit(train_step)/vmap(transpose(jvp(objective)))/Transformer/…/layers/mlp/…`; of
    what the objective computes outside the model, `…(objective)/…`.
    """
    names = re.findall(r"[\w.]+", op_name)
    if any(name.endswith("_norm") for name in names):
        return "norms"  # those of queries and keys too, which lie inside the attention
    for name in ("attention", "mlp"):
        if name in names:
            return name
    if "Transformer" in names:  # a look-up of many rows is a gather, of few a product with one-hot rows
        return "embedding" if names[-1] in ("gather", "scatter-add", "dot_general") else ""
    return "head" if "objective" in names else "optimizer" if "optimizer" in names else ""


def _named(module: hlo.Module, one: hlo.Instruction) -> str:
    """Return the part that an instruction's own name tells, or the names of what is inside it; "" if none does."""
    if own := part_of_name(one.op_name):
        return own
    made: collections.Counter[str] = collections.Counter()
    for line in _body(module, one):
        made[part_of_name(line.op_name)] += 0 if line.opcode == "parameter" else sum(hlo.sizes(line.result))
    del made[""]
    return max(made, key=made.__getitem__, default="")


def _body(module: hlo.Module, one: hlo.Instruction) -> Sequence[hlo.Instruction]:
    return module.get(hlo.called(one)[0], []) if one.opcode == "fusion" else []


def _other_end(table: Table, uses: Uses, copy: hlo.Instruction) -> Iterator[hlo.Instruction]:
    """Yield what uses a copy that goes on the chip, or what made one that leaves it; nothing of another copy."""
    source = table[copy.operands[0]].result if copy.operands[0] in table else ""
    goes, comes = (sum(hlo.sizes(x, hbm=True)[:1]) == 0 for x in (copy.result, source or copy.result))
    if goes and not comes:
        yield from (use for _, use in _through(copy.name, uses))
    elif comes and not goes and source:
        yield table[copy.operands[0]]


def _uses(lines: Iterable[hlo.Instruction]) -> Uses:
    uses = collections.defaultdict(list)
    for one in lines:
        for operand in one.operands:
            uses[operand].append(one)
    return uses


def _through(name: str, uses: Uses) -> Iterator[tuple[str, hlo.Instruction]]:
    """Yield what uses a value, with the name it uses it by, looking through what only renames it."""
    for use in uses.get(name, ()):
        if use.opcode in _LOOKED_THROUGH:
            yield from _through(use.name, uses)
        else:
            yield name, use


def _moved(module: hlo.Module, table: Table, one: hlo.Instruction) -> int:
    """Return the bytes that an instruction outside a fusion reads from and writes to HBM."""

    def size(name: str) -> int:
        return sum(hlo.sizes(table[name].result, hbm=True)) if name in table else 0

    result = sum(hlo.sizes(one.result, hbm=True))
    if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")):
        return 0
    if one.opcode in _SLICES:
        return 2 * result
    if one.opcode in ("slice-start", "dynamic-slice-start"):  # its type lists operands, slice and more
        n = len(one.operands)
        return hlo.sizes(one.result, hbm=True)[n] + (hlo.sizes(one.result)[n] if size(one.operands[0]) else 0)
    if one.opcode == "dynamic-update-slice":
        return 2 * size(one.operands[1])
    if one.opcode.endswith("-start"):  # its type lists operands and result
        return result
    if one.opcode != "fusion":
        return result + sum(map(size, one.operands))
    return sum(_inside(module, _body(module, one), [size(o) for o in one.operands], result))


def _inside(module: hlo.Module, lines: Sequence[hlo.Instruction], given: Sequence[int], result: int) -> Iterator[int]:
    """Yield what a fusion reads of each operand and what it writes."""
    body = _Body.of(lines)
    kept = 0  # results that are updated in place
    for one in lines:
        if one.opcode != "parameter":
            continue
        size = given[_index(one)]
        read = 0
        for table, use in _leaves(module, body, one.name):
            if use.opcode in _SLICES:
                read += sum(hlo.sizes(use.result))
            elif use.opcode == "dynamic-update-slice" and size and hlo.sizes(use.result) == hlo.sizes(one.result):
                update = sum(hlo.sizes(table[use.operands[1]].result))
                read, kept = read + 2 * update, kept + size
            elif use.opcode != "tuple":
                read += size
        yield min(read, size)
    yield max(result - kept, 0)


class _Body(NamedTuple):
    """The lines of a fusion by name, and what uses each."""

    table: Table
    uses: Uses

    @classmethod
    def of(cls, lines: Sequence[hlo.Instruction]) -> _Body:
        return cls({one.name: one for one in lines}, _uses(lines))


def _leaves(module: hlo.Module, body: _Body, name: str) -> Iterator[tuple[Table, hlo.Instruction]]:
    """Yield what uses a value in a fusion and in those inside it, each with the lines that it stands among.

    A copy inside a fusion is in registers: on tpu7x each operand is one, under another tiling.
    """
    for alias, use in _through(name, body.uses):
        inner = _body(module, use)
        if use.opcode == "copy" or (inner and {one.opcode for one in inner} <= _RENAMES):
            yield from _leaves(module, body, use.name)
        elif inner:
            within = _Body.of(inner)
            for one in inner:
                if one.opcode == "parameter" and use.operands[_index(one)] == alias:
                    yield from _leaves(module, within, one.name)
        else:
            yield body.table, use


def _index(parameter: hlo.Instruction) -> int:
    return int(parameter.rest.split(")")[0])
