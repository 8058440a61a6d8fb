"""A sweep as one graph in which equal nodes are one, computed by any number of workers."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from distill_jax.config import ConfigError, Interrupted, check, identity, nearest
from distill_jax.data.label_errors import label_lines
from distill_jax.data.records import load_manifest
from distill_jax.experiment import graph
from distill_jax.experiment.config_file import load_experiment
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.experiment.sweep_points import STAGES, Point
from distill_jax.io import attempts
from distill_jax.io.files import Digests
from distill_jax.io.leases import Leases
from distill_jax.io.metrics import Progress
from distill_jax.io.node import ROWS
from distill_jax.sharding.distributed import announced, preempted
from distill_jax.stages.context import Context, Node
from distill_jax.units import span

POLL_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class SweepShard:
    """All nodes of a sweep that share model, data and run settings, and so one process's surroundings.

    Attributes:
      experiment: of one of its points.
      nodes: name -> node, equal ones once; a name is its directory's.
    """

    experiment: CheckedExperiment
    nodes: dict[str, Node]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep as graphs of shared nodes.

    Attributes:
      points: the settings of each point, without its stages.
      asked: for each point, the names of the nodes it asks for.
      shards: what is computed; most sweeps have one.
    """

    name: str
    description: str
    points: list[Point]
    asked: list[list[str]]
    shards: list[SweepShard]

    def marker(self) -> dict[str, str]:
        """Return what all workers in one directory must have in common."""
        nodes = sorted(name for shard in self.shards for name in shard.nodes)
        experiment = self.shards[0].experiment.name
        return {"experiment": experiment, "sweep": self.name, "points": identity(nodes), "code": code_identity()}

    @property
    def done(self) -> bool:
        """Whether every node is complete."""
        return all(node.done for shard in self.shards for node in shard.nodes.values())

    def asked_of(self, shard: SweepShard) -> list[list[str]]:
        """Return what is asked of one of the shards."""
        return [names for names in self.asked if set(names) <= set(shard.nodes)]

    def of_point(self, index: int) -> Sweep:
        """Return the sweep with the nodes of one point only."""
        check(0 <= index < len(self.points), f"--index={index}: the sweep has points 0 to {len(self.points) - 1}")
        names = self.asked[index]
        shards = [
            SweepShard(shard.experiment, graph.lineage(names, shard.nodes))
            for shard in self.shards
            if set(names) <= set(shard.nodes)
        ]
        return dataclasses.replace(self, points=[self.points[index]], asked=[names], shards=shards)


def load(name: str, points: Sequence[Point], module: ModuleType, config: Any, workdir: Path, text: str = "") -> Sweep:
    """Turn points into a sweep.

    Args:
      text: what the sweep is about, for its report.
      module, config: the base config, of which every point changes some settings.

    Raises:
      ConfigError: if a point sets what the config does not have or asks for a stage that is not there.
    """
    check(bool(points), f"the sweep {name} has no points")
    shards: dict[str, SweepShard] = {}
    asked: list[list[str]] = []
    files = Digests()
    for point in points:
        experiment = load_experiment(module, _changed(config, point))
        experiment.data.with_content_hash(files)  # which refuses data files that are not there
        nodes = graph.build(experiment, workdir)
        wanted = point.get(STAGES) or tuple(experiment.stages)
        fix_hint = 'give a tuple of names, such as ("reference",)'
        check(isinstance(wanted, tuple | list), f"the sweep {name} asks for stages {wanted!r:.80}; {fix_hint}")
        for stage in wanted:
            if stage not in nodes:
                raise ConfigError(f"the sweep {name} asks for stage {stage!r}: no such stage{nearest(stage, nodes)}")
        surroundings = (experiment.model, experiment.data, experiment.run, experiment.precision)
        shard = shards.setdefault(identity(surroundings), SweepShard(experiment, {}))
        for node in graph.lineage(wanted, nodes).values():
            unique = _unique(node, nodes)
            shard.nodes.setdefault(unique.name, unique)
        asked.append([_name(nodes[stage]) for stage in wanted])
    with_peers = [SweepShard(shard.experiment, graph.with_peers(shard.nodes)) for shard in shards.values()]
    settings = [{key: value for key, value in point.items() if key != STAGES} for point in points]
    return Sweep(name, text, settings, asked, with_peers)


def _changed(config: Any, point: Point) -> Any:
    config = copy.deepcopy(config)
    for key, value in point.items():
        if key == STAGES:
            continue
        *sections, last = key.split(".")
        section = config
        for part in [*sections, last]:
            known = list(section) if hasattr(section, "keys") else []
            if part not in known:
                raise ConfigError(f"the sweep sets {key}: no such setting{nearest(part, known)}")
            if part is not last:
                section = section[part]
        try:
            section[last] = value
        except TypeError as error:
            raise ConfigError(f"the sweep sets {key} = {value!r}: {error}") from error
    return config


def _name(node: Node) -> str:
    return node.name if node.name == graph.DATA else node.directory.name


def _unique(node: Node, nodes: Mapping[str, Node]) -> Node:
    """Return the node under the name of its directory, as nodes of other points may have its stage's name."""
    inputs = {role: _name(nodes[source]) for role, source in node.inputs.items()}
    return dataclasses.replace(node, name=_name(node), inputs=inputs)


def code_identity() -> str:
    """Return the hash of this package's source files."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(str(path.relative_to(Path(__file__).parents[1])).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def run(sweep: Sweep, leases: Leases | None, max_nodes: int = 0, workers: int = 1, out: Any = None) -> None:
    """Compute, beside other workers, whatever of a sweep is missing, and return when all of it is there.

    Args:
      leases: None for a process that computes what process 0 of its worker has leased.
      max_nodes: in one population; 0 for as many as the devices' memory takes.
      workers: how many are known to work on it: packs are cut so that each gets a part.
    """
    for shard in sweep.shards:

        def groups(ctx: Context, shard: SweepShard = shard) -> Iterator[list[Node]]:
            ctx.progress.workers = workers
            nodes, portion = shard.nodes, functools.partial(_portion, ctx, max_nodes, workers)
            return leased(nodes, leases, portion, ctx.progress.say) if leases else followed(nodes, portion)

        graph.execute(shard.nodes, shard.experiment.model, shard.experiment.run, out, groups)


def leased(
    nodes: Mapping[str, Node],
    leases: Leases,
    portion: Callable[[list[Node]], int],
    say: Callable[[str], None] = print,
) -> Iterator[list[Node]]:
    """Yield groups of nodes that are ready and that this worker got a lease on, until all nodes are done.

    Each node is yielded in the directory of the attempt at it, which becomes the node's once the group has been run.

    Args:
      portion: how many nodes of a group may run as one population.

    Raises:
      Interrupted: if the worker was asked to stop while it waited for others.
    """
    last_message = -math.inf
    groups = graph.pack(list(nodes.values()))
    done: set[str] = set()
    while True:
        for node in nodes.values():
            if node.name not in done and node.done:
                done.add(node.name)
                _clear(node, leases)
        if len(done) == len(nodes):
            announced({"done": True})
            return
        taken = next(filter(None, (_take(group, leases, portion) for group in graph.ready(groups, done))), [])
        try:
            if taken:
                announced({"run": {attempt.name: attempt.directory.name for attempt in taken}})
                yield taken
                leases.confirm()
                for attempt in taken:
                    attempts.publish(attempt, nodes[attempt.name])
                continue
        finally:
            for attempt in taken:
                leases.release(attempts.home(nodes[attempt.name]))
        announced({"wait": True})
        _leave_if_preempted()
        if time.monotonic() - last_message > 60:
            last_message = time.monotonic()
            others = {leases.holder(attempts.home(node)) for node in nodes.values() if node.name not in done}
            say(f"waiting for {', '.join(sorted(others - {''}))}")
        time.sleep(POLL_SECONDS)


def _take(group: list[Node], leases: Leases, portion: Callable[[list[Node]], int]) -> list[Node]:
    taken: list[Node] = []
    limit = 1
    for node in group:
        if len(taken) == limit:
            break
        # Nodes that were interrupted at different steps cannot go on together without losing what they have.
        if taken and attempts.latest(node).checkpoints.steps() != taken[0].checkpoints.steps():
            continue
        if leases.take(attempts.home(node)):
            attempt = None if node.done else attempts.begin(node, leases.token(attempts.home(node)))
            if attempt is None or attempt.done:  # another worker finished it since we looked, or did all but say so
                if attempt:
                    attempts.publish(attempt, node)
                leases.release(attempts.home(node))
                continue
            taken.append(attempt)
            if len(taken) == 1:
                announced({"portion": [node.name for node in group]})
                limit = portion(group)  # which may ask the compiler, so not before there is something to run
    return taken


def followed(nodes: Mapping[str, Node], portion: Callable[[list[Node]], int]) -> Iterator[list[Node]]:
    """Yield the groups that process 0 of this worker has leased, as it yields them.

    Args:
      portion: as of `leased`; all processes ask it together, as it may ask all of their devices.

    Raises:
      Interrupted: if the worker was asked to stop while it waited for others.
    """
    while not (message := announced({})).get("done"):
        if group := message.get("portion"):
            portion([nodes[name] for name in group])
        elif taken := message.get("run"):
            homes = {name: attempts.home(nodes[name]) for name in taken}
            yield [dataclasses.replace(nodes[name], directory=homes[name] / taken[name]) for name in taken]
        else:
            _leave_if_preempted()


def _leave_if_preempted() -> None:
    if preempted():
        raise Interrupted("stopped while waiting for other workers")


def _clear(node: Node, leases: Leases) -> None:
    """Remove what a worker that was killed left of a finished node, unless somebody is at it."""
    home = attempts.home(node)
    if attempts.leftovers(node) and leases.take(home):
        attempts.clear(node, leases.token(home))
        leases.release(home)


def _portion(ctx: Context, max_nodes: int, workers: int, group: list[Node]) -> int:
    share = math.ceil(len(group) / workers)
    share = min(share, max_nodes) if max_nodes else share
    return graph.fitting(ctx, group[:share], workers)


def work(sweep: Sweep) -> list[dict[str, Any]]:
    """Return what each node takes: {"name", "verb", "done", "flops", "points"}, the last how many ask for it."""
    rows: dict[Path, dict[str, Any]] = {}
    for shard in sweep.shards:
        ctx = Context(shard.experiment.model, shard.nodes, shard.nodes[graph.DATA].directory / "rows", Progress(0, 0.0))
        lineages = [set(graph.lineage(names, shard.nodes)) for names in sweep.asked_of(shard)]
        for name, node in shard.nodes.items():
            users = sum(name in lineage for lineage in lineages)
            flops = graph.planned_flops(ctx, node)
            row = {"name": name, "verb": node.verb, "done": node.done, "flops": flops, "points": 0}
            rows.setdefault(node.directory, row)["points"] += users  # shards may have their data in common
    return list(rows.values())


def preview(sweep: Sweep) -> str:
    """Say what a sweep would run, what of it is finished, what it would cost and what sharing saves."""
    rows = work(sweep)
    lines = [
        f"{sweep.name}: {len(sweep.points)} points, {len(rows)} nodes, {sum(r['done'] for r in rows)} finished",
        "",
    ]
    head = ("verb", "nodes", "finished", "if every point ran alone", "FLOPs left, at most", "shared")
    table = [head]
    for verb in dict.fromkeys(row["verb"] for row in rows):
        of = [row for row in rows if row["verb"] == verb]
        alone, once = sum(r["flops"] * r["points"] for r in of), sum(r["flops"] for r in of)
        saved = f"{1 - once / alone:.0%}" if alone else "–"
        left = sum(r["flops"] for r in of if not r["done"])
        counts = (len(of), sum(r["done"] for r in of), sum(r["points"] for r in of))
        table.append((verb, *map(str, counts), f"{left:.3g}", saved))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    alone, once = sum(r["flops"] * r["points"] for r in rows), sum(r["flops"] for r in rows)
    left = sum(r["flops"] for r in rows if not r["done"])
    lines += ["", f"{once:.3g} FLOPs at most, where every point alone would take {alone:.3g}"]
    if alone:
        lines[-1] += f": sharing saves {1 - once / alone:.0%}"
    speed = _measured_speed(sweep)
    if speed:
        lines.append(
            f"left: {left:.3g} FLOPs at most, {span(left / speed)} of one device at the speed of what is finished"
        )
    else:
        lines.append(f"left: {left:.3g} FLOPs (evaluation is counted once the data exist)")
    prepared = [(shard.experiment.data, shard.nodes[graph.DATA]) for shard in sweep.shards]
    lines += label_lines(
        (data, load_manifest(node.sealed(ROWS).parent) if node.done else None) for data, node in prepared
    )
    return "\n".join(lines)


def _measured_speed(sweep: Sweep) -> float:
    """Return the FLOPs a second of a device for the finished nodes; 0.0 if there are none."""
    flops = seconds = 0.0
    for shard in sweep.shards:
        for node in shard.nodes.values():
            if node.done:
                spent = node.ledger()
                flops += sum(spent["flops"].values())
                seconds += sum(spent["device_seconds"].values())
    return flops / seconds if flops and seconds else 0.0
