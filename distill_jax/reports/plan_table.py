"""A plan as text: a table of stages, then for each program its traffic, its seconds and its warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax.sharding import Mesh

from distill_jax.experiment.planned_stage import PlannedStage
from distill_jax.models import transformer
from distill_jax.perf.prices import Prices
from distill_jax.perf.slices import GIB, Slice, find
from distill_jax.sharding.mesh import parameter_table
from distill_jax.stages.context import Context

SIZES = ("stage", "members", "parameters", "arguments", "temporaries", "code", "GiB a chip", "fits")
TIMES = ("TFLOP a step", "step s", "bound by", "MFU at most", "steps", "chip-hours")


def table(stages: Sequence[PlannedStage], prices: Prices) -> str:
    """Return the plan of a slice as text."""
    where = find(stages[0].slice)
    sizes = [heading.replace("a chip", "a device") for heading in SIZES] if where.chip.devices > 1 else SIZES
    lines = [[*sizes, *TIMES, prices.currency], *map(_line, stages)]
    total = [_total([stage.chip_hours for stage in stages]), _total([stage.cost for stage in stages])]
    lines.append(["all", *[""] * (len(lines[0]) - 3), *total])
    programs: dict[str, list[PlannedStage]] = {}
    for stage in stages:
        if stage.steps:
            programs.setdefault(stage.program, []).append(stage)
    details = [line for same in programs.values() for line in _details(same)]
    return "\n".join([_slice_line(where), *_columns(lines), *details, _price_line(where, prices)])


def parameters(ctx: Context, mesh: Mesh) -> str:
    """Return where every parameter of a model lies on a mesh."""
    rows, notes = parameter_table(mesh, transformer.logical_axes(ctx.model), ctx.weights(mesh))
    return "\n".join([*_columns(rows), *notes])


def parts_line(traffic: Mapping[str, int]) -> str:
    """Return traffic by part, the largest first."""
    shares = sorted(traffic.items(), key=lambda share: -share[1])
    return ", ".join(f"{part} {_number(moved / 1e9)} GB" for part, moved in shares if moved)


def _slice_line(where: Slice) -> str:
    chip = where.chip
    each = f"{chip.flops / 1e12:.0f} TFLOP/s, HBM {chip.hbm / GIB:.2f} GiB at {chip.bandwidth / 1e9:.0f} GB/s"
    two = f", {chip.devices} devices" if chip.devices > 1 else ""
    count = f"{where.slices} slices, " if where.slices > 1 else ""
    network = f", between slices {chip.network / 1e9:.3g} GB/s" if where.slices > 1 else ""
    shape = f"{where.name}: {count}{where.chips} chips ({where.topology}{' each' if count else ''})"
    return f"{shape}, each {each}, interconnect {where.interconnect / 1e9:.0f} GB/s{network}{two}"


def _price_line(where: Slice, prices: Prices) -> str:
    price = prices.chip_hour.get(where.generation)
    if price is None:
        table_has = f"the table has {', '.join(prices.chip_hour)}"
        return f"No price of a {where.generation} chip-hour is known: {table_has}; give one with --prices=FILE."
    return f"{price:.2f} {prices.currency} a chip-hour ({prices.date}). {prices.note}".rstrip()


def _line(stage: PlannedStage) -> list[str]:
    if not stage.steps:
        return [stage.stage, *["-"] * 11, "0", "0", "0"]
    gib = [_gib(stage.hbm[kind]) if kind in stage.hbm else "-" for kind in ("arguments", "temporaries", "code")]
    spare = abs(stage.hbm_capacity - stage.hbm_bytes) / GIB
    fits = f"yes, {spare:.1f} left" if stage.fits else f"NO, {spare:.1f} over"
    ceiling = "-" if stage.mfu_ceiling is None else f"{100 * stage.mfu_ceiling:.0f} %"
    sizes = [stage.stage, str(stage.members), f"{stage.parameters:,}", *gib, _gib(stage.hbm_bytes), fits]
    times = [_number(stage.flops_per_step / 1e12), _number(stage.step_seconds), stage.bound, ceiling, str(stage.steps)]
    return [*sizes, *times, _number(stage.chip_hours), _number(stage.cost)]


def _details(same: Sequence[PlannedStage]) -> list[str]:
    stage = same[0]
    spent = ", ".join(f"{k} {v:.3g}" for k, v in stage.seconds.items())
    mesh = " × ".join(f"{k} {v}" for k, v in stage.mesh.items() if v > 1) or "one device"
    lines = [f"{', '.join(s.stage for s in same)} on {mesh}, remat = {stage.remat}", f"  seconds a step: {spent}"]
    if stage.hbm:
        through = f"{_number(stage.hbm_traffic / 1e9)} GB: {parts_line(stage.traffic_by_part)}"
        lines += [f"  received by a chip in a step: {_moved(stage.collectives)}"]
        if "network" in stage.seconds:
            lines += [f"  and over the network between slices: {_moved(stage.network)}"]
        lines += [f"  through HBM in a step: {through}"]
    return lines + [f"  warning: {text}" for text in stage.warnings]


def _moved(collectives: Mapping[str, Mapping[str, int]]) -> str:
    each = [f"{kind} {sums['bytes'] / 1e9:.3g} GB in {sums['count']}" for kind, sums in sorted(collectives.items())]
    return ", ".join(each) or "nothing"


def _total(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _number(sum(known) if len(known) == len(values) else None)


def _number(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _gib(size: float) -> str:
    """Write bytes in GiB, of tiny models in digits that say something."""
    return f"{size / GIB:.2f}" if size >= GIB / 10 else f"{size / GIB:.2g}"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<", *">" * (len(width) - 1)]
    return [
        "  ".join(f"{cell:{side}{w}}" for cell, side, w in zip(row, sides, width, strict=True)).rstrip() for row in rows
    ]
