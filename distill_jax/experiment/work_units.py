"""A sweep as units of work that an engine places on machines: what each computes, waits for, and needs of a machine.

A unit is a population, or the part of one that --pack allows, so that what one worker would train together is trained
together here too. Units are numbered LEVEL.INDEX by the graph alone, finished or not, so every process of one command
line gives a unit the same name.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

from distill_jax.config import check, nearest
from distill_jax.experiment import graph
from distill_jax.experiment.sweep_graph import Sweep, SweepShard
from distill_jax.experiment.unit_plan import Planner
from distill_jax.io.node import Node
from distill_jax.perf.slices import Slice
from distill_jax.stages.context import Context
from distill_jax.units import size_text


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a unit needs of the machines that it runs on.

    Attributes:
      cpus, gpus: of each host.
      slice: of TPUs; None for none.
      memory: bytes of all hosts together, without which a step cannot be taken or saved.
      plan: what of a device of the slice or a GPU is used; "" if nothing was planned.
      gpu: type of the GPUs, of `perf.gpus`; "" for any.
    """

    cpus: int = 1
    gpus: int = 0
    slice: Slice | None = None
    memory: int = 0
    plan: str = ""
    gpu: str = ""

    @property
    def hosts(self) -> int:
        """On how many hosts it runs, with a process on each."""
        return self.slice.hosts if self.slice else 1

    def __str__(self) -> str:
        parts, plan = [f"{self.cpus} CPU{'s' * (self.cpus > 1)}"], f" ({self.plan})" if self.plan else ""
        if self.gpus:
            parts.append(f"{self.gpus} {self.gpu or 'GPU'}{'s' * (self.gpus > 1 and not self.gpu)}{plan}")
        if self.slice:
            hosts = f" of {self.hosts} hosts" if self.hosts > 1 else ""
            parts.append(f"{self.slice.name}{hosts}{plan}")
        return ", ".join([*parts, *([size_text(self.memory)] if self.memory else [])])


@dataclasses.dataclass(frozen=True)
class WorkUnit:
    """A part of a sweep that one process computes once what it starts from is there.

    Attributes:
      name: LEVEL.INDEX; a unit of level 0 waits for nothing.
      nodes: names of their directories.
      needs: names of the units that must be done before.
      stages: what the nodes are called in their experiments, for people.
    """

    name: str
    nodes: tuple[str, ...]
    needs: tuple[str, ...]
    stages: str
    resources: Resources
    done: bool

    @property
    def level(self) -> int:
        """How many units must be done one after another before this one."""
        return int(self.name.split(".")[0])

    @property
    def index(self) -> int:
        """Which of its level it is."""
        return int(self.name.split(".")[1])


def work_units(
    sweep: Sweep, resources: Resources | None = None, max_nodes: int = 0, planner: Planner | None = None
) -> list[WorkUnit]:
    """Cut a sweep into units, each after those that it needs.

    Args:
      resources: of a unit that computes on devices; the data are made on a CPU.
      max_nodes: of a unit; 0 for whole populations.
      planner: finds the devices of each unit that is not done; those of `resources` when left out.

    Raises:
      ConfigError: if a step of one needs more memory than the slice has.
    """
    owners: dict[str, WorkUnit] = {}  # directory -> the unit that computes it
    counts: collections.Counter[int] = collections.Counter()
    for shard in sweep.shards:
        ctx = _context(shard)
        for group in _in_order(shard, max_nodes):
            fresh = [node for node in group if node.directory.name not in owners]  # shards may share their data
            if not fresh:
                continue
            sources = {source for node in fresh for source in node.inputs.values()}
            sources |= set() if fresh[0].name == graph.DATA else {graph.DATA}
            needs = sorted({owners[shard.nodes[name].directory.name].name for name in sources}, key=_number)
            level = 1 + max((int(name.split(".")[0]) for name in needs), default=-1)
            done = all(node.done for node in fresh)
            unit = WorkUnit(
                name=f"{level}.{counts[level]}",
                nodes=tuple(node.directory.name for node in fresh),
                needs=tuple(needs),
                stages=_stages(fresh),
                resources=_resources(ctx, fresh, resources or Resources(), None if done else planner),
                done=done,
            )
            counts[level] += 1
            owners |= dict.fromkeys(unit.nodes, unit)
    return sorted(dict.fromkeys(owners.values()), key=lambda unit: _number(unit.name))


def of_unit(sweep: Sweep, name: str, max_nodes: int = 0) -> Sweep:
    """Return the sweep with the nodes of one unit only, and those that they start from.

    Raises:
      ConfigError: if there is no such unit, or what it starts from is not finished here.
    """
    units = {unit.name: unit for unit in work_units(sweep, max_nodes=max_nodes)}
    check(name in units, f"--unit={name}: the sweep has no such unit{nearest(name, units)}")
    for shard in sweep.shards:
        wanted = [key for key, node in shard.nodes.items() if node.directory.name in units[name].nodes]
        if len(wanted) == len(units[name].nodes):
            nodes = graph.lineage(wanted, shard.nodes)
            missing = [key for key, node in nodes.items() if key not in wanted and not node.done]
            fix_hint = "run the units before it, and give all machines one work directory"
            check(not missing, f"--unit={name}: {missing[:1]} is not finished in the work directory; {fix_hint}")
            return dataclasses.replace(sweep, shards=[SweepShard(shard.experiment, nodes)])
    raise AssertionError(name)


def preview(units: Sequence[WorkUnit]) -> str:
    """Return a line a unit: its name, stages and resources, and which units it waits for."""
    lines = []
    for unit in units:
        waits = f", after {' '.join(unit.needs)}" if unit.needs else ""
        lines.append(f"{unit.name:7}{unit.stages}: {'finished' if unit.done else f'{unit.resources}{waits}'}")
    return "\n".join(lines)


def _in_order(shard: SweepShard, max_nodes: int) -> Iterator[list[Node]]:
    """Yield a shard's populations in the order in which one worker would take them."""
    groups, done = graph.pack(list(shard.nodes.values())), set[str]()
    while group := next(iter(graph.ready(groups, done)), None):
        group = group[: max_nodes or len(group)]
        yield group
        done |= {node.name for node in group}


def _context(shard: SweepShard) -> Context:
    rows = shard.nodes[graph.DATA].directory / "rows"
    return Context.not_run(shard.experiment.model, shard.nodes, rows, shard.experiment.run)


def _resources(ctx: Context, nodes: Sequence[Node], asked: Resources, planner: Planner | None) -> Resources:
    if nodes[0].name == graph.DATA:
        return Resources(asked.cpus)
    if planner and (fit := planner.fit(ctx, nodes)):
        asked = dataclasses.replace(asked, slice=fit.slice, gpus=fit.gpus, plan=fit.reason)
    job = nodes[0].settings.train_job(ctx, nodes)
    least = graph.least_memory(ctx, job) if job else 0
    if asked.slice:
        alone = graph.least_memory(ctx, nodes[0].settings.train_job(ctx, nodes[:1])) if job else 0
        there = asked.slice.devices * asked.slice.device_hbm
        need = f"a step needs at least {size_text(alone)}, and {asked.slice.name} has {size_text(there)}"
        check(alone <= there, f"stages.{nodes[0].stage}: {need}; name a larger --slice")
    return dataclasses.replace(asked, memory=least)


def _stages(nodes: Sequence[Node]) -> str:
    counts = collections.Counter(node.stage for node in nodes)
    return ", ".join(stage + (f" × {count}" if count > 1 else "") for stage, count in counts.items())


def _number(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split(".")))
