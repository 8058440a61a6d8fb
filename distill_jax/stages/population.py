"""What all training verbs do around their objective: feed, train, resume, evaluate, write down.

A verb says what a member is and what it minimises; this file runs the members of one or several nodes as one
population. Every node keeps its own files, so a node's record does not show with whom it ran.
"""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.data.feed import Feed
from distill_jax.evals.exact_match import accuracies
from distill_jax.io.checkpoint import FINAL, Damaged
from distill_jax.io.metrics import Metrics
from distill_jax.sharding.mesh import batch_sharding, make_mesh
from distill_jax.stages.context import Context, Node, seed_for
from distill_jax.train.loop import loop
from distill_jax.train.population import make_state, member, members
from distill_jax.train.settings import Training
from distill_jax.train.step import DIVERGED, REACHED, Batch, State

PARTS = ("retain", "shown", "heldout")


@dataclasses.dataclass(frozen=True)
class Member:
    """One member: the node it belongs to, its label there, its learning rate and its batch stream."""

    node: Node
    label: str = ""
    learning_rate: float = 0.0
    stream: int = 0


@dataclasses.dataclass
class Outcome:
    """A trained population: its state, and for each member how many steps it took and how it ended."""

    state: State
    mesh: Any
    steps: list[int]
    status: list[int]
    evaluations: list[int]
    seconds: float


def rows_feed(ctx: Context, settings: Training, purpose: str, data: str, seeds: Sequence[int]) -> Callable:
    """Return feed(step) -> {"tokens", "segments", "answer"}, each int32 [G, B, T], one stream a seed."""
    path = ctx.data / f"{data}.array_record"
    feeds = [Feed(path, settings.batch, seed_for(seed, purpose, data)) for seed in seeds]

    def feed(step: int) -> Batch:
        rows = np.stack([f(step) for f in feeds])
        return {"tokens": rows[:, :, 0], "segments": rows[:, :, 1], "answer": rows[:, :, 2]}

    return feed


def train(
    ctx: Context,
    crew: Sequence[Member],
    starts: Sequence[Any],
    settings: Training,
    build: Callable[[Any], Callable],
    feed: Callable[[int], Batch],
    *,
    teacher: Any = None,
    evaluate_at: Callable[[int], bool],
    parts: Sequence[str] = PARTS,
    reached: Callable[[dict[str, np.ndarray]], np.ndarray] | None = None,
    planned_flops: float = 0.0,
) -> Outcome:
    """Train the crew as one population, continuing from its nodes' checkpoints if they have any.

    Args:
      starts: each member's starting weights, or one tree for all.
      build: mesh -> the step function (a cached factory, so that equal stages share one compilation).
      evaluate_at: the steps at which accuracies on `parts` are measured and written as "evaluation" rows.
      reached: accuracies {name: [P]} -> bool [P], who may stop.
    """
    began = time.monotonic()
    # Nodes that pack must come out the same alone, as when a kill left only one of them unfinished.
    mesh = make_mesh(len(crew), spread=hasattr(settings, "MEMBER"))
    state = make_state(
        ctx.model, mesh, starts, settings.optimizer(), [m.learning_rate for m in crew], [m.stream for m in crew]
    )
    nodes = list({m.node.name: m.node for m in crew}.values())
    state = _restore(ctx, nodes, crew, state)
    start = int(state.step)
    books = {node.name: Metrics(node.directory, start) for node in nodes}
    evaluator = ctx.evaluator(mesh, *parts)
    groups = [group for prompts in ctx.select(*parts) for group in prompts.groups]
    seen = {"loss": "", "accuracy": ""}  # what the progress line shows
    tokens = settings.batch * ctx.row_length * len(crew)

    def write(kind: str, step: int, values: dict[str, np.ndarray]) -> None:
        for i, m in enumerate(crew):
            books[m.node.name].write(kind, step, m.label, {k: float(v[i]) for k, v in values.items()})

    def evaluate(step: int, state: State) -> np.ndarray | None:
        ctx.progress.step(step, settings.steps, tokens, planned_flops, "  ".join(seen.values()))
        if not evaluate_at(step):
            return None
        correct = evaluator(state.params)[: len(crew)]
        values = accuracies(correct, groups, _wanted(groups))
        write("evaluation", step, values)
        for book in books.values():
            book.flush()
        seen["accuracy"] = "  ".join(f"{k} {np.max(v):.2f}" for k, v in values.items() if "_" not in k)
        return reached(values) if reached else np.zeros(len(crew), bool)

    def record(step: int, values: dict[str, np.ndarray]) -> None:
        write("train", step, {k: v[: len(crew)] for k, v in values.items()})
        terms = [f"{k} {np.nanmean(v[: len(crew)]):.3g}" for k, v in values.items() if k != "gradient_norm"]
        seen["loss"] = "loss " + ", ".join(terms)

    def save(step: int, state: State) -> None:
        for node in nodes:
            books[node.name].flush()
            node.checkpoints.save(step, _slice(state, crew, node))

    def place(step: int) -> Batch:
        return jax.device_put(feed(step), batch_sharding(mesh, settings.batch // settings.microbatches))

    teacher = jax.device_put(teacher, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    state = loop(state, teacher, build(mesh), place, settings, save=save, evaluate=evaluate, record=record)
    for book in books.values():
        book.close()
    status = np.asarray(state.status)[: len(crew)].tolist()
    stopped = np.asarray(state.stopped)[: len(crew)]
    steps = np.where(stopped >= 0, stopped, int(state.step)).tolist()
    looked = [sum(map(evaluate_at, range(taken + 1))) for taken in steps]
    return Outcome(state, mesh, steps, status, looked, time.monotonic() - began)


def finish_models(
    ctx: Context,
    crew: Sequence[Member],
    outcome: Outcome,
    step_flops: dict[str, float],
    parts: Sequence[str] = PARTS,
    watched: Sequence[str] = PARTS,
) -> None:
    """Evaluate each node's model in full, and write its weights, result and ledger.

    Args:
      step_flops: {"student", "teacher"}: FLOPs of one step of one member.
      watched: the parts that were evaluated while training.
    """
    groups = [group for prompts in ctx.select(*parts) for group in prompts.groups]
    correct = ctx.evaluator(outcome.mesh, *parts)(outcome.state.params)
    once, watch = ctx.evaluation_flops(*parts), ctx.evaluation_flops(*watched)
    for i, m in enumerate(crew):
        m.node.checkpoints.save(FINAL, member(outcome.state.params, i))
        result = {
            **scores(correct[i], groups),
            "steps": outcome.steps[i],
            "recovered": outcome.status[i] == REACHED,
            "diverged": outcome.status[i] == DIVERGED,
        }
        spent = {name: value * outcome.steps[i] for name, value in step_flops.items()}
        m.node.finish(result, ledger(spent | {"evaluation": once + watch * outcome.evaluations[i]}, outcome.seconds))


def scores(correct: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """Return a model's accuracies from bool [n]: retain, forget, and each operation × form with its size."""
    column = {name: np.array([test(g.split("/")) for g in groups]) for name, test in _SCORES.items()}
    kinds = sorted({"/".join(g.split("/")[:2]) for g in groups})
    by_group = {}
    for kind in kinds:
        chosen = np.array([g.startswith(kind + "/") for g in groups])
        by_group[kind] = {"accuracy": float(correct[chosen].mean()), "prompts": int(chosen.sum())}
    means = {name: float(correct[mask].mean()) if mask.any() else None for name, mask in column.items()}
    return {**means, "by_group": by_group}


_SCORES = {"retain": lambda g: g[2] == "retain", "forget": lambda g: g[2] != "retain"}


def ledger(spent: dict[str, float], seconds: float) -> dict[str, Any]:
    """Return a node's ledger: FLOPs by cause, seconds of this process, and its peak resident bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"flops": spent, "seconds": round(seconds, 2), "peak_bytes": peak}


def _wanted(groups: Sequence[str]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for group in sorted(set(groups)):
        _, form, part = group.split("/")
        wanted.setdefault(part, []).append(group)
        wanted.setdefault(f"{part}_{form}", []).append(group)
    return wanted


def _index(crew: Sequence[Member], node: Node) -> list[int]:
    return [i for i, m in enumerate(crew) if m.node.name == node.name]


def _slice(state: State, crew: Sequence[Member], node: Node) -> State:
    rest = members(state.replace(step=None), _index(crew, node))
    return rest.replace(step=state.step)


def _restore(ctx: Context, nodes: Sequence[Node], crew: Sequence[Member], state: State) -> State:
    """Return the state of the newest step that all nodes have, or the given one."""

    def like(node: Node) -> State:
        return jax.eval_shape(lambda s: _slice(s, crew, node), state)

    common = set.intersection(*(set(node.checkpoints.steps()) for node in nodes))
    for step in sorted(common, reverse=True):
        try:
            found = [node.checkpoints.restore(step, like(node)) for node in nodes]
        except Damaged as error:
            ctx.progress.say(f"warning: {str(error).split(';')[0]}; going back to the checkpoint before it")
            continue
        ctx.progress.say(f"{', '.join(n.name for n in nodes)}: continuing from step {step} of an earlier run")
        return _put_together(found, [_index(crew, node) for node in nodes], state)
    return state


def _put_together(parts: Sequence[State], places: Sequence[Sequence[int]], state: State) -> State:
    def fill(whole: jax.Array, *pieces: jax.Array) -> jax.Array:
        out = np.array(whole)
        for piece, place in zip(pieces, places, strict=True):
            out[np.asarray(place)] = np.asarray(piece)
        return jax.device_put(jnp.asarray(out), whole.sharding)

    merged = jax.tree.map(fill, state.replace(step=None), *(p.replace(step=None) for p in parts))
    return merged.replace(step=jax.device_put(parts[0].step, state.step.sharding))
