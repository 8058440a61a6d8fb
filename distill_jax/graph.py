"""The experiment as a graph of nodes: identities, order, and execution in a run directory.

`workdir/nodes/<name>-<identity>/{config.json, metrics.jsonl, ledger.json, result.json, checkpoints/, DONE}`; DONE is
written last, and nothing else marks completion. A node's identity is the hash of its name, its settings, the model,
the data and its inputs' identities: a setting that changes gives new identities to what depends on it, and to
nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import graphlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_jax.config import ConfigError, check, identity, nearest
from distill_jax.data.records import verify
from distill_jax.io.files import read_json, write_json
from distill_jax.io.metrics import Progress
from distill_jax.models.transformer import TransformerConfig
from distill_jax.sharding.distributed import barrier, chief
from distill_jax.stages import VERBS
from distill_jax.stages.context import Context, Node, RunSettings

DATA = "data"


def build(experiment: Any, workdir: Path) -> dict[str, Node]:
    """Turn an experiment's stages into nodes, inputs before what uses them.

    Args:
      experiment: has `model` (TransformerConfig), `data` (its settings) and `stages` (name -> settings).

    Raises:
      ConfigError: if a stage names an input that is missing, of the wrong kind, or part of a circle.
    """
    stages: Mapping[str, Any] = experiment.stages
    check(DATA not in stages, f"stages.{DATA}: the prepared data has this name; give the stage another")
    wiring = {name: _inputs(name, settings, stages) for name, settings in stages.items()}
    try:
        order = list(graphlib.TopologicalSorter({n: i.values() for n, i in wiring.items()}).static_order())
    except graphlib.CycleError as error:
        circle = " <- ".join(error.args[1])
        raise ConfigError(f"stages form a circle: {circle}; every stage must start from an earlier one") from error
    nodes = {DATA: _node(DATA, "prepare", experiment.data, {}, {"data": experiment.data}, workdir)}
    # Declared order where the graph leaves a choice, so that a run reads like its config.
    for name in sorted(order, key=_depth_first(stages, wiring)):
        settings, inputs = stages[name], wiring[name]
        basis = {
            "model": experiment.model,
            "precision": experiment.precision,
            "data": nodes[DATA].identity,
            "inputs": {role: nodes[source].identity for role, source in inputs.items()},
        }
        nodes[name] = _node(name, settings.VERB, settings, inputs, basis, workdir)
    return nodes


def _inputs(name: str, settings: Any, stages: Mapping[str, Any]) -> dict[str, str]:
    found = {role: getattr(settings, role) for role in settings.INPUTS if getattr(settings, role)}
    optional = getattr(settings, "OPTIONAL", ())
    for role in settings.INPUTS:
        check(role in found or role in optional, f"stages.{name}.{role} is empty: name the stage it is")
    for role, source in found.items():
        where = f"stages.{name}.{role} = {source!r}"
        check(source in stages, f"{where}: no such stage{nearest(source, stages)}")
        leaves = stages[source].VERB
        if role == "cache":
            check(leaves == "cache", f"{where}: a {leaves} stage holds no hidden states; name a cache stage")
            for shared in ("teacher", "data"):
                mine, theirs = getattr(settings, shared), getattr(stages[source], shared)
                check(mine == theirs, f"{where} has {shared} = {theirs!r}, the student {mine!r}; they must be one")
        else:
            check(leaves not in ("relearn", "cache"), f"{where}: a {leaves} stage leaves no model to start from")
    return found


def _depth_first(stages: Mapping[str, Any], wiring: Mapping[str, Mapping[str, str]]) -> Any:
    declared = {name: i for i, name in enumerate(stages)}

    def depth(name: str) -> int:
        return 1 + max((depth(source) for source in wiring[name].values()), default=0)

    return lambda name: (depth(name), declared[name])


def _node(name: str, verb: str, settings: Any, inputs: dict[str, str], basis: Any, workdir: Path) -> Node:
    plain = {k: v for k, v in dataclasses.asdict(settings).items() if k not in inputs}
    known_by = identity({"name": name, "verb": verb, "settings": plain, **basis})
    return Node(name, verb, settings, inputs, known_by, workdir / "nodes" / f"{name}-{known_by}")


def experiment_identity(nodes: Mapping[str, Node]) -> str:
    """Return the hash of all the nodes' identities."""
    return identity({name: node.identity for name, node in nodes.items()})


def pack(nodes: Sequence[Node]) -> list[list[Node]]:
    """Group nodes that may train as one population: same verb, same teacher, same settings but for the members'."""
    groups: dict[Any, list[Node]] = {}
    for node in nodes:
        free = getattr(node.settings, "MEMBER", None)
        if free is None:
            groups[node.name] = [node]
            continue
        fixed = {k: v for k, v in dataclasses.asdict(node.settings).items() if k not in free}
        groups.setdefault((node.verb, json.dumps(fixed, sort_keys=True)), []).append(node)
    return list(groups.values())


def schedule(nodes: Mapping[str, Node]) -> Iterator[list[Node]]:
    """Yield the unfinished nodes in groups, each when its inputs are done; a group waits to be whole if it can."""
    left = [node for node in nodes.values() if not node.done]
    done = {node.name for node in nodes.values() if node.done}
    while left:
        # Every node reads the data node, which is no input by name.
        ready = {n.name for n in left if set(n.inputs.values()) <= done and (n.name == DATA or DATA in done)}
        groups = [[n for n in group if n.name in ready] for group in pack(left)]
        whole = [g for g, all_of_it in zip(groups, pack(left), strict=True) if len(g) == len(all_of_it)]
        chosen = next(g for g in whole + groups if g)
        yield chosen
        done |= {n.name for n in chosen}
        left = [n for n in left if n.name not in done]


@contextlib.contextmanager
def claimed(workdir: Path, experiment: str) -> Iterator[None]:
    """Hold a work directory for one process and one experiment.

    Raises:
      ConfigError: if it belongs to another experiment, is in use, or cannot be written.
    """
    if not chief():  # one of a run's processes holds it for all
        yield
        return
    marker = workdir / "experiment.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "w")  # noqa: SIM115 - held until the run ends
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be written: {error.strerror}; choose another") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"--workdir={workdir} is in use by another run; wait for it or stop it") from error
        if marker.exists():
            try:
                theirs = read_json(marker)["experiment"]
            except (ValueError, KeyError) as error:
                raise ConfigError(f"{marker} is damaged; remove it to claim the directory anew") from error
            check(
                theirs == experiment,
                f"--workdir={workdir} belongs to experiment {theirs!r}, this is {experiment!r}; give it its own",
            )
        else:
            foreign = [p.name for p in workdir.iterdir() if p.name not in (".lock", "experiment.json")]
            check(not foreign, f"--workdir={workdir} holds other files ({foreign[:1]}); choose a new directory")
            write_json(marker, {"experiment": experiment})
        yield


def execute(nodes: dict[str, Node], model: TransformerConfig, settings: RunSettings, out: Any = None) -> Context:
    """Run every node that is not done, and return the context for the report."""
    barrier("begin")  # so that all processes find the same nodes finished
    todo = [node for node in nodes.values() if not node.done]
    progress = Progress(len(nodes), 0.0, settings.progress_seconds, out if chief() else io.StringIO())
    progress.stage = len(nodes) - len(todo)
    ctx = Context(model, nodes, nodes[DATA].directory / "rows", progress, settings)
    finished = [name for name, node in nodes.items() if node.done]
    if finished:
        progress.say(f"finished before, not computed again: {', '.join(finished)}")
    if todo and nodes[DATA].done:
        _verify_data(nodes[DATA], ctx.data)
    for group in schedule(nodes):
        progress.begin(", ".join(n.name for n in group), len(group))
        if chief():
            for node in group:
                _prepare_directory(node)
        barrier("a group's directories")
        if not progress.flops_left and group[0].name != DATA:
            progress.flops_left = sum(_plan(ctx, n) for n in todo if not n.done)
        planned = sum(_plan(ctx, n) for n in group)
        VERBS[group[0].verb].run(ctx, group)
        barrier("a group's results")
        progress.finish(planned, _summary(group))
    return ctx


def _verify_data(node: Node, rows: Path) -> None:
    try:
        verify(rows)
    except (ValueError, KeyError) as error:
        text = str(error).split(";")[0]
        raise ConfigError(f"{text}; remove {node.directory} and run again to prepare the data anew") from error


def _plan(ctx: Context, node: Node) -> float:
    return VERBS[node.verb].plan(ctx, node.settings)


def _prepare_directory(node: Node) -> None:
    node.directory.mkdir(parents=True, exist_ok=True)
    config = {
        "name": node.name,
        "verb": node.verb,
        "identity": node.identity,
        "settings": dataclasses.asdict(node.settings),
        "inputs": node.inputs,
    }
    write_json(node.directory / "config.json", config)


def _summary(group: Sequence[Node]) -> str:
    texts = []
    for node in group:
        result = node.result()
        if "retain" in result:
            text = f"{node.name}: " if len(group) > 1 else ""
            texts.append(f"{text}retain {result['retain']:.2f} forget {result['forget']:.2f} at step {result['steps']}")
    return "done  " + "; ".join(texts)
