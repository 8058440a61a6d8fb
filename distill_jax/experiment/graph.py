"""The experiment as a graph of nodes: identities, order, and execution in a run directory.

`workdir/nodes/<name>-<identity>/{config.json, metrics.jsonl, ledger.json, result.json, checkpoints/, DONE}`; DONE is
written last, and nothing else marks completion. A node's identity is the hash of its name, its settings, the model,
the data and its inputs' identities: a setting that changes gives new identities to what depends on it, and to
nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import graphlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TextIO

import jax

from distill_jax.backend import release_freed_memory
from distill_jax.config import ConfigError, check, check_name, identity, nearest
from distill_jax.data.records import special_tokens, verify
from distill_jax.experiment.ancestry import ancestry
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.io.files import write_json
from distill_jax.io.metrics import Progress
from distill_jax.io.node import ROWS
from distill_jax.io.presence import Presence
from distill_jax.io.storage import check_processes, make_directory, sync
from distill_jax.io.trackers import TrackedNode, check_trackers, tracking
from distill_jax.io.work_plan import PlannedNode
from distill_jax.models import attention
from distill_jax.models.head import loss_way
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import memory
from distill_jax.perf.clock import Clock
from distill_jax.perf.memory import FILL
from distill_jax.perf.timings_file import read_timings, write_timings
from distill_jax.sharding.distributed import agreed, barrier, is_primary
from distill_jax.stages.choose_remat import choose_policy
from distill_jax.stages.context import Context, Node, RunSettings
from distill_jax.stages.prepare import Prepare
from distill_jax.stages.stage import Stage
from distill_jax.stages.train_job import TrainJob
from distill_jax.units import size_text

DATA = "data"


def build(experiment: CheckedExperiment, workdir: Path) -> dict[str, Node]:
    """Turn an experiment's stages into nodes, inputs before what uses them.

    Raises:
      ConfigError: if a stage's name cannot be a directory's, or an input is missing, of the wrong kind, or part of a
        circle.
    """
    stages = experiment.stages
    for name in stages:
        check_name("stages", name)
    check(DATA not in stages, f"stages.{DATA}: the prepared data has this name; give the stage another")
    wiring = {name: _inputs(name, stage, stages) for name, stage in stages.items()}
    order = _in_declared_order(wiring)
    prepare = Prepare(experiment.data)
    nodes = {DATA: _node(DATA, prepare, {}, {"data": prepare.fingerprint_fields()}, workdir)}
    for name in order:
        stage, inputs = stages[name], wiring[name]
        basis = {
            "model": experiment.model,
            "precision": experiment.precision,
            "data": nodes[DATA].identity,
            "inputs": {role: nodes[source].identity for role, source in inputs.items()},
        }
        nodes[name] = _node(name, stage, inputs, basis, workdir)
    return with_peers(nodes)


def with_peers(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Tell every node how many of these may train as one population with it."""
    peers = {node.name: len(group) for group in pack(list(nodes.values())) for node in group}
    return {name: dataclasses.replace(node, peers=peers[name]) for name, node in nodes.items()}


def _inputs(name: str, stage: Stage, stages: Mapping[str, Stage]) -> dict[str, str]:
    try:
        inputs = stage.inputs()
        for role, source in inputs.items():
            if source not in stages:
                raise ValueError(f"{role} = {source!r}: no such stage{nearest(source, stages)}")
        stage.check_inputs({role: stages[source] for role, source in inputs.items()})
    except ValueError as error:
        raise stage.refusal(name, error) from error
    return inputs


def _in_declared_order(wiring: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the stages in the order in which a config declares them, each after its inputs.

    A run reads like its config then, and what a config checks first ends it before what it does last.
    """
    try:
        order = list(graphlib.TopologicalSorter({n: i.values() for n, i in wiring.items()}).static_order())
    except graphlib.CycleError as error:
        circle = " <- ".join(error.args[1])
        raise ConfigError(f"stages form a circle: {circle}; every stage must start from an earlier one") from error
    declared = {name: i for i, name in enumerate(wiring)}
    latest: dict[str, int] = {}
    for name in order:
        latest[name] = max([declared[name], *(latest[source] for source in wiring[name].values())])
    return sorted(order, key=latest.__getitem__)  # which leaves equals as they are: inputs first


def _node(name: str, stage: Stage, inputs: dict[str, str], basis: Mapping[str, Any], workdir: Path) -> Node:
    settings = {k: v for k, v in stage.fingerprint_fields().items() if k not in inputs}
    fingerprint = identity({"name": name, "verb": stage.kind, "settings": settings, **basis})
    return Node(name, stage.kind, stage, inputs, fingerprint, workdir / "nodes" / f"{name}-{fingerprint}")


def lineage(names: Iterable[str], nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Return the named nodes and all that they are made from, the data first."""
    needed = {DATA, *ancestry(names, nodes)}
    return {name: node for name, node in nodes.items() if name in needed}


def experiment_identity(nodes: Mapping[str, Node]) -> str:
    """Return the hash of all the nodes' identities."""
    return identity({name: node.identity for name, node in nodes.items()})


def pack(nodes: Sequence[Node]) -> list[list[Node]]:
    """Group nodes that may train as one population: one kind, one start, settings that differ only per member."""
    groups: dict[str, list[Node]] = {}
    for node in nodes:
        groups.setdefault(_population(node), []).append(node)
    return list(groups.values())


def _population(node: Node) -> str:
    """Return what all nodes have in common that may train with this one."""
    stage: Stage = node.settings
    free = stage.per_member_fields()
    if free is None:
        return node.name
    inputs = {role: node.inputs.get(role) for role in stage.roles() if role not in free}
    return json.dumps([stage.kind, stage.shared_fields(), inputs], sort_keys=True)


def ready(groups: Sequence[Sequence[Node]], done: Set[str]) -> list[list[Node]]:
    """Return what is left of packed groups and has its inputs done; groups of which nothing else is left come first."""
    complete: list[list[Node]] = []
    partial: list[list[Node]] = []
    for group in groups:
        left = [n for n in group if n.name not in done]
        # Every node reads the data node, which is no input by name.
        may = [n for n in left if set(n.inputs.values()) <= done and (n.name == DATA or DATA in done)]
        if may:
            (complete if len(may) == len(left) else partial).append(may)
    return complete + partial


def schedule(nodes: Mapping[str, Node], portion: Callable[[list[Node]], int] = len) -> Iterator[list[Node]]:
    """Yield the unfinished nodes in groups, each when its inputs are done; a group waits to be whole if it can.

    Args:
      portion: says how many of a group's nodes, from its first on, run at a time.
    """
    done = {node.name for node in nodes.values() if node.done}
    groups = pack([node for node in nodes.values() if node.name not in done])
    while group := next(iter(ready(groups, done)), None):
        chosen = group[: portion(group)]
        yield chosen
        done |= {n.name for n in chosen}


def execute(
    nodes: dict[str, Node],
    model: TransformerConfig,
    settings: RunSettings,
    out: TextIO | None = None,
    groups: Callable[[Context], Iterator[list[Node]]] | None = None,
) -> Context:
    """Run every node that is not done, and return the context for the report.

    Args:
      groups: chooses what to run next; in the order of `schedule` when left out.
    """
    check_trackers(settings.trackers)
    barrier("begin")  # so that all processes find the same nodes finished
    todo = [node for node in nodes.values() if not node.done]
    progress = Progress(len(nodes), 0.0, settings.progress_seconds, out if is_primary() else io.StringIO())
    ctx = Context(model, nodes, nodes[DATA].directory / "rows", progress, settings)
    check_memory(ctx, todo)
    finished = [name for name, node in nodes.items() if node.done]
    if finished:
        names = ", ".join(finished) if len(finished) <= 40 else f"{len(finished)} of {len(nodes)} nodes"
        progress.say(f"finished before, not computed again: {names}")
    if nodes[DATA].done:
        nodes[DATA].sealed(ROWS)
        if todo:
            verify_data(nodes[DATA])
    for node in [nodes[name] for name in finished] if is_primary() else ():
        node.tidy()
        try:
            node.sealed_under("")
        except ConfigError as error:  # refused where it is read: weights need not be computed again for a lost curve
            progress.say(f"warning: {error}")
    workdir = nodes[DATA].directory.parent.parent
    with Presence(workdir, _planned(ctx), writes=bool(todo) and is_primary()) as presence:
        for group in groups(ctx) if groups else schedule(nodes, lambda group: _at_a_time(ctx, group)):
            progress.stage = sum(node.done for node in nodes.values())
            progress.begin(", ".join(n.name for n in group), len(group))
            ctx.nodes = {**nodes, **{node.name: node for node in group}}  # a worker's own lie where it computes them
            if is_primary():
                for node in group:
                    _prepare_directory(node, ctx)
            barrier("a group's directories")
            if group[0].name != DATA:
                progress.flops_left = sum(planned_flops(ctx, n) for n in nodes.values() if not n.done)
            planned = sum(planned_flops(ctx, n) for n in group)
            _compute(ctx, group, presence)
            release_freed_memory()
            barrier("a group's results")
            progress.finish(planned, _summary(group))
    return ctx


def _planned(ctx: Context) -> list[PlannedNode]:
    nodes = ctx.nodes

    def inputs(node: Node) -> list[str]:
        needed = [nodes[source].directory.name for source in node.inputs.values()]
        return needed if node.name == DATA else [nodes[DATA].directory.name, *needed]

    return [
        PlannedNode(node.stage, node.directory.name, node.verb, inputs(node), planned_flops(ctx, node))
        for node in nodes.values()
    ]


def _compute(ctx: Context, group: list[Node], presence: Presence) -> None:
    """Run a group of nodes, on a clock that goes on from where those of earlier processes stood."""
    stage, directories = group[0].settings, [node.directory for node in group]
    rest = "idle" if stage.train_job(ctx, group) else "step"  # what takes no steps is at work all the time
    save = functools.partial(write_timings, directories) if is_primary() else None
    ctx.clock = Clock(rest, [read_timings(path) for path in directories], save)
    tracked = [TrackedNode(n.name, f"{n.stage}-{n.identity}", presence.workdir, n.directory) for n in group]
    names = ctx.run.trackers if is_primary() else ()
    with (
        presence.computing(directories, functools.partial(write_timings, directories, ctx.clock)),
        tracking(names, tracked, ctx.progress.say) as ctx.trackers,
    ):
        stage.run(ctx, group)


def verify_data(node: Node) -> None:
    """Hash the rows of a finished data node; ConfigError names what is missing or damaged."""
    try:
        verify(node.sealed(ROWS).parent)
    except (ValueError, KeyError) as error:
        text = str(error).split(";")[0]
        raise ConfigError(f"{text}; remove {node.directory} and run again to prepare the data anew") from error


def planned_flops(ctx: Context, node: Node) -> float:
    """Return a node's FLOPs at its most steps; those of evaluation are missing as long as there are no data."""
    return float(node.settings.estimate_flops(ctx))


def check_memory(ctx: Context, nodes: Sequence[Node]) -> None:
    """Refuse nodes that all devices together cannot hold, before anything is made or computed.

    Raises:
      ConfigError: naming the stage, what it needs at least, and what there is.
    """
    there = memory.installed(jax.local_devices()[0]) * jax.device_count()
    for node in nodes:
        job = node.settings.train_job(ctx, [node])
        if job is None:
            continue
        settings, least = job.settings, least_memory(ctx, job)
        fix_hint = (
            f"lower batch = {settings.batch}, raise microbatches = {settings.microbatches}, or take a smaller model"
        )
        need = f"a step needs at least {size_text(least)}, and the devices have {size_text(there)}"
        check(least <= there, f"stages.{node.stage}: {need}; {fix_hint}")


def check_mesh(nodes: Mapping[str, Node], model: TransformerConfig, settings: RunSettings) -> None:
    """Refuse devices that do not divide as the config says, if any node is to be computed on them.

    Raises:
      ConfigError: naming what does not divide, or a work directory to which several processes cannot write together.
    """
    if not all(node.done for node in nodes.values()):  # else there is only a report to draw
        check_processes(nodes[DATA].directory.parent.parent, jax.process_count())
        Context.not_run(model, dict(nodes), nodes[DATA].directory / "rows", settings).mesh()


def least_memory(ctx: Context, job: TrainJob) -> int:
    """Return the bytes, of all devices together, without which a job cannot take a step; from sizes alone.

    Raises:
      ConfigError: if a loss cannot be computed, or rows cannot attend, in the way that the config names.
    """
    attention.choose(ctx.model, ctx.row_length)
    settings, adapters = job.settings, job.settings.adapters()
    tokens = settings.batch // settings.microbatches * ctx.row_length
    ways = [loss_way(ctx.model, loss) for loss in settings.objective().head_losses()] or ["chunked"]
    shape = memory.TrainingShape(
        tokens,
        len(job.members),
        rank=adapters.lora_rank if adapters else 0,
        width=2 if settings.weights == "bfloat16" else 4,
        logits=min(tokens, ctx.run.loss_chunk or tokens) if "chunked" in ways else 0,
    )
    return memory.least_training(ctx.model, shape)


def _at_a_time(ctx: Context, group: list[Node]) -> int:
    count = agreed(fitting(ctx, group))
    if count < len(group):
        names = ", ".join(node.name for node in group)
        ctx.progress.say(f"{names}: {count} of {len(group)} fit into memory at a time")
    return count


def fitting(ctx: Context, group: Sequence[Node], workers: int = 1) -> int:
    """Return how many of a group's nodes, from its first on, fit as one population into the devices' memory.

    Args:
      workers: that share a device.
    """
    count = len(group)
    while count > 1 and (job := group[0].settings.train_job(ctx, group[:count])):
        mesh = job.mesh(ctx)
        device, shapes = mesh.devices.flat[0], job.shapes(ctx, mesh)
        free = memory.capacity(device) / workers
        # Far from the limit the answer is known without the compiler; near it, only the compiler knows.
        near = 100 * memory.least_bytes(*shapes) >= free
        saving = memory.saving_bytes(shapes[0], count, device.platform)
        if not near or choose_policy(ctx, job, mesh, FILL * free - saving).fits:
            break
        count = (count + 1) // 2
    return count


def _prepare_directory(node: Node, ctx: Context) -> None:
    make_directory(node.directory)
    sync(node.directory.parent)
    config = {
        "name": node.stage,
        "verb": node.verb,
        "identity": node.identity,
        "settings": node.settings.as_dict(),
        "inputs": {role: ctx.nodes[source].directory.name for role, source in node.inputs.items()},
        "model": dataclasses.asdict(ctx.model),
        "vocabulary": ctx.data_config.vocabulary,
        "data": ctx.nodes[DATA].directory.name,
        "special_tokens": special_tokens(ctx.data),
    }
    write_json(node.directory / "config.json", config)


def _summary(group: Sequence[Node]) -> str:
    texts = []
    for node in group:
        result = node.result()
        if "retain" in result:
            text = f"{node.name}: " if len(group) > 1 else ""
            retain, forget = ("–" if (x := result[key]) is None else f"{x:.2f}" for key in ("retain", "forget"))
            ends = " (diverged)" if result.get("diverged") else ""
            texts.append(f"{text}retain {retain} forget {forget} at step {result['steps']}{ends}")
    return "done  " + "; ".join(texts)
