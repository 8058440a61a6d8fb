"""One stage of a plan: what it takes of a slice, with the keys of the plan's JSON file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from distill_jax.experiment.lowered_group import LoweredGroup
from distill_jax.io.node import Node
from distill_jax.perf.compile_for import ProgramAnalysis
from distill_jax.perf.roofline import step_floors
from distill_jax.perf.slices import Slice
from distill_jax.types import JsonObject


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """What a stage takes of a slice. Its fields are the keys of the JSON file.

    Attributes:
      chips: of the slice, or of all slices; with two devices a chip, what is said of a chip's memory and traffic is
        said of a device.
      mesh: {axis: devices}; {} for a stage that takes no steps.
      population: the stages that train together, this one among them; members: of all of them.
      program: hash, equal where the compiled program is.
      hbm: bytes of a chip by kind, by the compiler; {} if it refused the program, and then hbm_bytes is what it needed.
      flops_per_step: from shapes; flops_executed: with what is computed twice.
      remat: the policy of what is computed twice, a key of `models.remat.POLICIES`.
      hbm_traffic: bytes a step; traffic_by_part: the same by part of the model (`perf.traffic.PARTS`).
      collectives: {kind: {"count", "bytes"}} that a chip receives in a step over its slice's interconnect.
      network: the same over the data-centre network; {} where there is one slice.
      seconds: floors of a step by "compute", "memory", "interconnect", and of several slices "network"; step_seconds:
        the largest; None if nothing fits.
      mfu_ceiling: the share of the slice's peak that flops_per_step are of step_seconds.
      chip_hours: the stage's part; cost: their price; None if it does not fit, or has no known price.
    """

    stage: str
    verb: str
    slice: str
    chips: int
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    population: Sequence[str] = ()
    members: int = 0
    program: str = ""
    parameters: int = 0
    fits: bool = True
    hbm_bytes: int = 0
    hbm_capacity: int = 0
    hbm: Mapping[str, int] = dataclasses.field(default_factory=dict)
    flops_per_step: float = 0.0
    flops_executed: float = 0.0
    remat: str = ""
    hbm_traffic: int = 0
    traffic_by_part: Mapping[str, int] = dataclasses.field(default_factory=dict)
    collectives: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    network: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    step_seconds: float | None = 0.0
    mfu_ceiling: float | None = None
    bound: str = ""
    steps: int = 0
    chip_hours: float | None = 0.0
    cost: float | None = 0.0
    compile_seconds: float = 0.0
    warnings: Sequence[str] = ()

    def as_json(self) -> JsonObject:
        """Return it as the plan's file has it."""
        return dataclasses.asdict(self)


def idle_stage(node: Node, where: Slice) -> PlannedStage:
    """Return the entry of a stage that takes no steps."""
    return PlannedStage(node.name, node.verb, where.name, where.chips, hbm_capacity=int(where.device_hbm))


def planned_stages(
    group: LoweredGroup, where: Slice, analysis: ProgramAnalysis, price: float | None, parameters: int
) -> list[PlannedStage]:
    """Return the entries of the stages that train together.

    Args:
      price: of a chip-hour; None if it is not known.
      parameters: of one model.
    """
    first = group.nodes[0]
    seconds = step_floors(group.executed, analysis, where)
    fits = bool(analysis.hbm) and analysis.needed <= where.device_hbm
    step_seconds = max(seconds.values())
    # Stages that train together share the chips equally.
    hours = step_seconds * first.settings.steps * where.chips / 3600 / len(group.nodes)
    shared = PlannedStage(
        stage="",
        verb=first.verb,
        slice=where.name,
        chips=where.chips,
        mesh=dict(group.mesh.shape),
        population=[node.name for node in group.nodes],
        members=group.members,
        parameters=parameters,
        fits=fits,
        hbm_bytes=analysis.needed,
        hbm_capacity=int(where.device_hbm),
        hbm=analysis.hbm,
        flops_per_step=group.flops,
        flops_executed=group.executed,
        remat=group.remat,
        hbm_traffic=sum(analysis.traffic.values()),
        traffic_by_part=analysis.traffic,
        collectives=analysis.collectives,
        network=analysis.network,
        seconds=seconds,
        step_seconds=step_seconds if fits else None,
        mfu_ceiling=group.flops / (where.chips * where.chip.flops * step_seconds) if fits else None,
        bound=max(seconds, key=seconds.__getitem__),
        steps=first.settings.steps,
        chip_hours=hours if fits else None,
        cost=hours * price if fits and price is not None else None,
        compile_seconds=round(analysis.seconds, 1),
        warnings=[*_warnings(analysis), *group.notes],
    )
    return [dataclasses.replace(shared, stage=node.name) for node in group.nodes]


def _warnings(analysis: ProgramAnalysis) -> list[str]:
    warnings = [*analysis.warnings]
    if analysis.hbm and analysis.hbm["aliased"] < 0.5 * analysis.hbm["outputs"]:
        warnings.append("the state is not donated: little of the outputs lies over the arguments")
    if analysis.unbounded_loops:
        warnings.append(f"{analysis.unbounded_loops} loops of unknown length counted once")
    return warnings
