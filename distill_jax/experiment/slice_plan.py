"""Plan: compile an experiment's stages for a TPU slice that is not there, and say what they take.

`distill-jax plan --config=FILE.py[:preset] --slice=v5e-16` hands each stage's own step, on the mesh that `run` would
make, to the XLA compiler for TPUs (libtpu). Memory per chip is the compiler's; FLOPs are counted from shapes; traffic
is read from the compiled program (perf/hlo.py). The seconds of a step are the largest of compute / peak, HBM traffic /
bandwidth and interconnect traffic / bandwidth: a floor, as if each ran at its peak and hid the others. Evaluation,
checkpoints, compilation and waiting for data are not in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from distill_jax.config import ConfigError, check, nearest
from distill_jax.experiment import graph
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.io.files import read_json, write_json
from distill_jax.io.metrics import Progress
from distill_jax.models import transformer
from distill_jax.perf import flops, hlo, memory
from distill_jax.perf.collectives import collectives
from distill_jax.perf.slices import CHIPS, GIB, SLICES, Slice, find
from distill_jax.perf.traffic import traffic_by_part
from distill_jax.sharding.mesh import parameter_table
from distill_jax.stages.context import Context, Node
from distill_jax.stages.train_job import TrainJob

PRICES = Path(__file__).parents[1] / "perf" / "prices.json"
MAX_CHIPS = 256  # of the slices that --slice=auto tries

Row = dict[str, Any]
Groups = Sequence[Sequence[Node]]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler said of one program.

    Attributes:
      hbm: bytes per chip by kind; {} if the compiler refused the program for its size.
      needed: bytes per chip in all.
      collectives: {kind: {"count", "bytes"}} a step.
      traffic: HBM bytes a step by part of the model; loops: those whose length could not be read.
      seconds: of compiling.
      warnings: the partitioner's.
    """

    hbm: dict[str, int]
    needed: int
    collectives: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    traffic: dict[str, int] = dataclasses.field(default_factory=dict)
    loops: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Work:
    """A group of stages that train as one population, lowered for a slice."""

    nodes: list[Node]
    members: int
    flops: float
    executed: float
    mesh: Any
    lowered: Any
    notes: tuple[str, ...]


def run(
    experiment: CheckedExperiment,
    name: str,
    prices: Mapping[str, Any],
    *,
    stages: Sequence[str] = (),
    say: Say = print,
    verbose: bool = False,
) -> list[Row]:
    """Plan an experiment and return one row a stage.

    Args:
      name: of the slice, or "auto" for the cheapest that fits.
      prices: as `load_prices` gives them.
      stages: the stages to plan, with what trains in one population with them; all when left out.

    Raises:
      ConfigError: for an unknown slice, a mesh that it cannot hold, or if libtpu is missing.
    """
    where = None if name == "auto" else find(name)
    check(
        importlib.util.find_spec("libtpu") is not None,
        "plan needs the TPU compiler, which is not installed: pip install 'distill-jax[plan]' (0.5 GB, no TPU needed)",
    )
    nodes = graph.build(experiment, Path("plan"))  # nothing is written there
    ctx = Context(experiment.model, nodes, Path(), Progress(0, 0.0, 0.0, None), experiment.run)
    for stage in stages:
        check(stage in nodes, f"--stages={stage}: no such stage{nearest(stage, nodes)}")
    groups = [g for g in graph.pack(list(nodes.values())) if not stages or {n.name for n in g} & set(stages)]
    planned = any(_job(ctx, group) for group in groups)
    check(planned, "none of these stages takes steps that are compiled for a slice: there is nothing to plan")
    rows = on_slice(ctx, groups, where, prices, say, verbose) if where else cheapest(ctx, groups, prices, say)
    say(table(rows, prices))
    return rows


def load_prices(path: str | None) -> dict[str, Any]:
    """Read a price table: {"currency", "date", "note", "chip_hour": {generation: price}}.

    Raises:
      ConfigError: if it cannot be read or lacks a part.
    """
    source = Path(path) if path else PRICES
    try:
        prices = read_json(source)
        check(set(prices) >= {"currency", "date", "chip_hour"}, f"{source} lacks currency, date or chip_hour")
        good = all(isinstance(p, int | float) and p >= 0 for p in prices["chip_hour"].values())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"--prices={source}: {error}") from error
    check(good, f"--prices={source}: chip_hour is a table of generation to price, such as {{'v5e': 1.2}}")
    return prices


def on_slice(
    ctx: Context, groups: Groups, where: Slice, prices: Mapping[str, Any], say: Say, verbose: bool = False
) -> list[Row]:
    """Compile the stages for one slice and return their rows; what does not fit together is divided as `run` does."""
    price = _price(where, prices)
    devices = topology(where)
    rows: list[Row] = []
    known: dict[str, Compiled] = {}
    shown = not verbose
    for i, group in enumerate(groups):

        def report(nodes: Sequence[Node], what: str, i: int = i) -> None:
            say(f"[{i + 1}/{len(groups)}] {', '.join(node.name for node in nodes)}: {what}")

        if not _job(ctx, group):
            rows += [_idle(node, where) for node in group]
            report(group, "no steps")
            continue
        left = list(group)
        while left:
            work, program = _fitting(ctx, left, where, devices, known, report)
            if not shown:
                shown = True
                say(_parameters(ctx, work.mesh))
            rows += _rows(ctx, work, where, price, known[program], program[:12])
            left = left[len(work.nodes) :]
    order = {name: i for i, name in enumerate(ctx.nodes)}
    return sorted(rows, key=lambda row: order[row["stage"]])


def _fitting(
    ctx: Context,
    nodes: Sequence[Node],
    where: Slice,
    devices: Any,
    known: dict[str, Compiled],
    report: Callable[[Sequence[Node], str], None],
) -> tuple[Work, str]:
    """Compile as many of the nodes, from the first on, as `run` would train together, and return them and a hash.

    Args:
      known: what is compiled, by hash of the program; this adds to it.
    """
    count = len(nodes)
    while True:
        work = lower(ctx, nodes[:count], devices)
        program = hashlib.sha256(work.lowered.as_text().encode()).hexdigest()
        again = program in known
        if not again:
            known[program] = compile_for(work.lowered, where.chips)
        made = known[program]
        divided = count > 1 and not (made.hbm and made.needed < graph.FILL * where.chip.hbm)
        how = "the same program as before" if again else f"compiled in {made.seconds:.0f} s"
        report(work.nodes, f"{how}{', too large together' if divided else ''}")
        if not divided:
            return work, program
        count = (count + 1) // 2


def cheapest(ctx: Context, groups: Groups, prices: Mapping[str, Any], say: Say) -> list[Row]:
    """Return the rows of the slice on which the stages together cost least.

    A generation's slices are tried from the smallest up. From the first that fits on, larger ones are tried while they
    get cheaper, as fewer rows a chip may need less HBM traffic, and are not yet within 5 % of what compute alone costs
    at its peak. A generation for which that is more than what was found is left out; so is, uncompiled, a slice that
    cannot even hold arguments and gradients.
    """
    training = [g for g in groups if _job(ctx, g)]
    best: list[Row] = []
    least = math.inf
    alone = dataclasses.replace(ctx, run=dataclasses.replace(ctx.run, fsdp=1, tensor=1))
    compute = 0.0
    for group in training:
        program, mesh, shapes = _program(alone, group, jax.devices("cpu")[:1])
        compute += flops.executed(program.build(mesh).trace(*shapes).jaxpr.jaxpr) * program.settings.steps
    priced = {g: price for g, price in prices["chip_hour"].items() if g in CHIPS}
    floor = {g: compute / CHIPS[g].flops / 3600 * price for g, price in priced.items()}
    for generation in sorted(floor, key=lambda g: floor[g]):
        if floor[generation] >= least:
            say(f"{generation}: compute alone costs {floor[generation]:.2f}, not compiled")
            continue
        before = math.inf
        for where in (s for s in SLICES.values() if s.generation == generation and s.chips <= MAX_CHIPS):
            try:
                devices = topology(where)
                need = max((memory.least_bytes(*_program(ctx, g[:1], devices)[2]) for g in training), default=0)
            except ConfigError as error:
                say(f"{where.name}: {error}")
                continue
            if need > where.chip.hbm:
                say(f"{where.name}: needs at least {need / GIB:.1f} GiB a chip, not compiled")
                continue
            rows = on_slice(ctx, groups, where, prices, say)
            if not all(row["fits"] for row in rows):
                say(f"{where.name}: does not fit")
                continue
            cost = sum(row["cost"] for row in rows)
            say(f"{where.name}: fits, {cost:.2f} {prices['currency']}")
            if cost < least:
                best, least = rows, cost
            if cost >= before or cost <= 1.05 * floor[generation]:
                break
            before = cost
    check(bool(best), f"no slice of up to {MAX_CHIPS} chips with a price fits; shrink the batch or the loss_chunk")
    return best


def topology(where: Slice) -> list[Any]:
    """Return a slice's devices, for compiling only."""
    from jax.experimental import topologies

    with _native_stderr():
        made = topologies.get_topology_desc(
            platform="tpu",
            topology_name=where.topology,
            chip_config_name=where.chip.config,
            chips_per_host_bounds=where.chips_per_host,
            num_slices=1,
        )
    return list(made.devices)


def _job(ctx: Context, group: Sequence[Node]) -> TrainJob | None:
    job: TrainJob | None = group[0].settings.train_job(ctx, group)
    return job


def _program(ctx: Context, group: Sequence[Node], devices: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Return a group's program, the mesh that `run` would make of the devices, and what its step takes.

    Raises:
      ConfigError: if the devices do not make such a mesh.
    """
    program = _job(ctx, group)
    assert program
    try:
        mesh = program.mesh(ctx, devices)
    except ConfigError as error:
        raise ConfigError(f"{group[0].name}: {error}") from error
    except NotImplementedError as error:
        raise ConfigError(f"{group[0].name}: {error}; change config.run.fsdp or config.run.tensor") from error
    return program, mesh, program.shapes(ctx, mesh)


def lower(ctx: Context, group: Sequence[Node], devices: Sequence[Any]) -> Work:
    """Trace and lower a group's step."""
    program, mesh, shapes = _program(ctx, group, devices)
    traced = program.build(mesh).trace(*shapes)
    return Work(
        nodes=list(group),
        members=len(program.members),
        flops=program.step_flops(),
        executed=flops.executed(traced.jaxpr.jaxpr),
        mesh=mesh,
        lowered=traced.lower(),
        notes=tuple(filter(None, [program.padding_note(mesh)])),
    )


def compile_for(lowered: Any, chips: int) -> Compiled:
    """Compile a lowered step and read what it takes."""
    began = time.monotonic()
    with _native_stderr() as printed:
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = _refused(str(error))
            return Compiled({}, needed, seconds=time.monotonic() - began)
    m = compiled.memory_analysis()
    hbm = {
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "aliased": m.alias_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
    }
    module, entry = hlo.parse(compiled.as_text())
    return Compiled(
        hbm=hbm,
        needed=sum(hbm.values()) - 2 * hbm["aliased"],
        collectives=collectives(module, entry, chips),
        traffic=traffic_by_part(module, entry),
        loops=hlo.runs(module, entry)[1],
        seconds=time.monotonic() - began,
        warnings=tuple(_warnings(printed)),
    )


def _refused(message: str) -> int:
    """Return the bytes that the compiler says a program needs, from its refusal."""
    found = re.search(r"(?:required[^(]*\(|Used )([\d.]+)([KMGT])", message)
    if "RESOURCE_EXHAUSTED" not in message or not found:
        raise RuntimeError(message)
    return int(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[found[2]])


def _warnings(printed: Sequence[str]) -> Iterator[str]:
    rematerialised = sum("nvoluntary full rematerialization" in line for line in printed)
    if rematerialised:
        yield f"the partitioner replicated {rematerialised} tensors to change their layout"


@contextlib.contextmanager
def _native_stderr() -> Iterator[list[str]]:
    """Collect what native code writes to stderr: libtpu looks for a TPU and says at length that there is none."""
    lines: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += file.read().splitlines()


def _price(where: Slice, prices: Mapping[str, Any]) -> float:
    known = prices["chip_hour"]
    fix_hint = f"the price table has {', '.join(known)}; add it with --prices=FILE"
    check(where.generation in known, f"--slice={where.name}: no price for {where.generation}; {fix_hint}")
    return float(known[where.generation])


def _idle(node: Node, where: Slice) -> Row:
    zero = {"flops_per_step": 0.0, "step_seconds": 0.0, "steps": 0, "chip_hours": 0.0, "cost": 0.0}
    none = {"parameters": 0, "hbm_bytes": 0, "hbm_capacity": int(where.chip.hbm), "fits": True, "collectives": {}}
    return {"stage": node.name, "verb": node.verb, "slice": where.name, "chips": where.chips, **none, **zero}


def _rows(ctx: Context, work: Work, where: Slice, price: float, made: Compiled, program: str) -> list[Row]:
    chip, steps = where.chip, work.nodes[0].settings.steps
    moved = sum(kind["bytes"] for kind in made.collectives.values())
    moved_hbm = sum(made.traffic.values())
    seconds = {"compute": work.executed / where.chips / chip.flops}
    if made.hbm:
        seconds |= {"memory": moved_hbm / chip.bandwidth}
        seconds |= {"interconnect": moved / where.interconnect if moved else 0.0}
    fits = bool(made.hbm) and made.needed <= chip.hbm
    warnings = [*made.warnings, *work.notes]
    if made.hbm and made.hbm["aliased"] < 0.5 * made.hbm["outputs"]:
        warnings.append("the state is not donated: little of the outputs lies over the arguments")
    if made.loops:
        warnings.append(f"{made.loops} loops of unknown length counted once")
    hours = max(seconds.values()) * steps * where.chips / 3600
    shared = {
        "verb": work.nodes[0].verb,
        "slice": where.name,
        "chips": where.chips,
        "mesh": dict(work.mesh.shape),
        "population": [node.name for node in work.nodes],
        "members": work.members,
        "program": program,  # equal where the compiled program is
        "parameters": transformer.parameter_count(ctx.model),
        "fits": fits,
        "hbm_bytes": made.needed,
        "hbm_capacity": int(chip.hbm),
        "hbm": made.hbm,
        "flops_per_step": work.flops,
        "flops_executed": work.executed,
        "hbm_traffic": moved_hbm,
        "traffic_by_part": made.traffic,
        "collectives": made.collectives,
        "seconds": seconds,
        "step_seconds": max(seconds.values()) if fits else None,
        "mfu_ceiling": work.flops / (where.chips * chip.flops * max(seconds.values())) if fits else None,
        "bound": max(seconds, key=lambda k: seconds[k]),
        "steps": steps,
        # Stages that train together share the chips equally.
        "chip_hours": hours / len(work.nodes) if fits else None,
        "cost": hours / len(work.nodes) * price if fits else None,
        "compile_seconds": round(made.seconds, 1),
        "warnings": warnings,
    }
    return [{"stage": node.name, **shared} for node in work.nodes]


def _parameters(ctx: Context, mesh: Any) -> str:
    shape = ctx.weights(mesh)
    rows, notes = parameter_table(mesh, transformer.logical_axes(ctx.model), shape)
    return "\n".join([*_columns(rows), *notes])


def table(rows: Sequence[Row], prices: Mapping[str, Any]) -> str:
    """Return the rows as text: a table, then for each program its traffic, its seconds and its warnings."""
    where = find(rows[0]["slice"])
    heading = ["stage", "members", "parameters", "arguments", "temporaries", "code", "GiB a chip", "fits"]
    lines = [[*heading, "TFLOP a step", "step s", "bound by", "MFU at most", "steps", "chip-hours", prices["currency"]]]
    lines += [_line(row) for row in rows]
    all_fit = all(row["fits"] for row in rows)
    total = [_number(sum(row[k] for row in rows) if all_fit else None) for k in ("chip_hours", "cost")]
    lines.append(["all", *[""] * 12, *total])
    peak = (
        f"{where.chip.flops / 1e12:.0f} TFLOP/s, HBM {where.chip.hbm / GIB:.2f} GiB at {where.chip.bandwidth / 1e9:.0f}"
    )
    head = f"{where.name}: {where.chips} chips ({where.topology}), each {peak} GB/s, interconnect "
    out = [f"{head}{where.interconnect / 1e9:.0f} GB/s", *_columns(lines)]
    programs: dict[str, list[Row]] = {}
    for row in rows:
        if row["steps"]:
            programs.setdefault(row["program"], []).append(row)
    for same in programs.values():
        out += _details(same)
    price = f"{prices['chip_hour'][where.generation]:.2f} {prices['currency']} a chip-hour ({prices['date']})"
    return "\n".join([*out, f"{price}. {prices.get('note', '')}".rstrip()])


def _line(row: Row) -> list[str]:
    if not row["steps"]:
        return [row["stage"], *["-"] * 11, "0", "0", "0"]
    gib = [f"{row['hbm'][k] / GIB:.2f}" if row["hbm"] else "-" for k in ("arguments", "temporaries", "code")]
    spare = abs(row["hbm_capacity"] - row["hbm_bytes"]) / GIB
    fits = f"yes, {spare:.1f} left" if row["fits"] else f"NO, {spare:.1f} over"
    size = [row["stage"], str(row["members"]), f"{row['parameters']:,}", *gib, f"{row['hbm_bytes'] / GIB:.2f}", fits]
    ceiling = "-" if row["mfu_ceiling"] is None else f"{100 * row['mfu_ceiling']:.0f} %"
    time_taken = [_number(row["step_seconds"]), row["bound"], ceiling, str(row["steps"])]
    return [
        *size,
        _number(row["flops_per_step"] / 1e12),
        *time_taken,
        *(_number(row[k]) for k in ("chip_hours", "cost")),
    ]


def _number(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _details(same: Sequence[Row]) -> list[str]:
    row = same[0]
    moved = ", ".join(f"{k} {v['bytes'] / 1e9:.3g} GB in {v['count']}" for k, v in sorted(row["collectives"].items()))
    spent = ", ".join(f"{k} {v:.3g}" for k, v in row["seconds"].items())
    mesh = " × ".join(f"{k} {v}" for k, v in row["mesh"].items() if v > 1) or "one device"
    out = [f"{', '.join(r['stage'] for r in same)} on {mesh}", f"  seconds a step: {spent}"]
    if row["hbm"]:
        out.append(
            f"  received by a chip in a step: {moved or 'nothing'}; through HBM: {row['hbm_traffic'] / 1e9:.3g} GB"
        )
        shares = sorted(row["traffic_by_part"].items(), key=lambda part: -part[1])
        parts = ", ".join(f"{name} {moved / 1e9:.3g} GB" for name, moved in shares if moved)
        out.append(f"  through HBM by part: {parts or 'nothing'}")
    return out + [f"  warning: {text}" for text in row["warnings"]]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<", *">" * (len(width) - 1)]
    return [
        "  ".join(f"{cell:{side}{w}}" for cell, side, w in zip(row, sides, width, strict=True)).rstrip() for row in rows
    ]


def save(rows: Sequence[Row], path: str) -> None:
    """Write the rows as JSON."""
    write_json(Path(path), list(rows))
