"""What all training verbs do around their objective: feed, train, resume, evaluate, write down.

A verb says what it runs (a `Program`: members, step, data); this file runs it for one or several nodes as one
population. Every node keeps its own files, so a node's record does not show with whom it ran.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from distill_jax.config import ConfigError
from distill_jax.data.feed import Feed
from distill_jax.data.records import load_manifest
from distill_jax.data.teacher_states import States
from distill_jax.evals.measure import all_finite
from distill_jax.io.checkpoint import FINAL
from distill_jax.io.node import STATES
from distill_jax.models import lora, transformer
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.mesh import batch_sharding, make_mesh, with_shardings
from distill_jax.stages.context import PARTS, Context, Node, seed_for
from distill_jax.train import driver
from distill_jax.train.layout import ShardedMembers
from distill_jax.train.loop import Clock
from distill_jax.train.metric_writers import Row
from distill_jax.train.population import draw_weights, take_weights, weights_shape
from distill_jax.train.settings import Lora
from distill_jax.train.state import DIVERGED, REACHED, RUNNING, Hyper, State
from distill_jax.train.step import Batch, Beside
from distill_jax.train.training_run import Cost, Measurement, StepInputs, TrainingRun

if TYPE_CHECKING:
    from distill_jax.stages.stage import Stage
    from distill_jax.stages.train_stage import TrainStage

COLUMNS = ("tokens", "segments", "answer")  # of a batch


@dataclasses.dataclass(frozen=True)
class Member:
    """One member: the node it belongs to, its label there, and what is its own.

    Attributes:
      learning_rate: peak.
      stream: which of the program's data orders it reads.
      coefficients: {loss term: what multiplies it}; every member of a crew names the same terms.
    """

    node: Node
    label: str = ""
    learning_rate: float = 0.0
    stream: int = 0
    coefficients: Mapping[str, float] = dataclasses.field(default_factory=dict)


def enrol(nodes: Sequence[Node], *coefficients: str) -> dict[str, Any]:
    """Return the `crew` and the `seeds` of a program with one member a node, and one data order a seed.

    Args:
      coefficients: loss terms whose coefficients are the nodes' settings `<term>_weight`.
    """
    seeds = list(dict.fromkeys(node.settings.seed for node in nodes))
    weights = [{term: getattr(node.settings, f"{term}_weight") for term in coefficients} for node in nodes]
    crew = [
        Member(node, learning_rate=node.settings.learning_rate, stream=seeds.index(node.settings.seed), coefficients=w)
        for node, w in zip(nodes, weights, strict=True)
    ]
    return {"crew": crew, "seeds": seeds}


@dataclasses.dataclass(frozen=True)
class Program:
    """What a training verb runs, known before any weight or row exists: enough to compile it for any mesh.

    Attributes:
      crew: the members.
      settings: the verb's.
      build: mesh -> the step function (a cached factory, so that equal stages share one compilation).
      reads: the data set whose rows are the batch, or {part of the batch: data set}.
      seeds: of the data orders, one a stream.
      teacher: the node whose weights the step is given; "" for none.
      base: the node to whose frozen weights all members attach the adapters that they train; "" for members that are
        whole models.
      flops: {"student", "teacher"}: of one step of one member.
      cache: the node that holds the teacher's hidden states; with it the teacher is its head alone, and the
        batch has "states" [G, B, T, D].
    """

    crew: Sequence[Member]
    settings: TrainStage
    build: Callable[[Mesh], Any]
    reads: Any
    seeds: Sequence[int]
    teacher: str
    flops: dict[str, float]
    base: str = ""
    cache: str = ""

    def step_flops(self) -> float:
        """Return the FLOPs of one step of the whole crew, behind one teacher that reads every data order."""
        each = {name: len(self.seeds) if name == "teacher" else len(self.crew) for name in self.flops}
        return sum(count * self.flops[name] for name, count in each.items())

    def spent(
        self, ctx: Context, steps: int, looks: int, parts: Sequence[str]
    ) -> tuple[dict[str, float], dict[str, int]]:
        """Return one member's FLOPs and tokens by cause, after so many steps and evaluations on the parts."""
        flops = {cause: steps * count for cause, count in self.flops.items()}
        batches = len(self.reads) if isinstance(self.reads, Mapping) else 1  # of which RMU's teacher reads one
        rows = {cause: steps * self.settings.batch * (1 if cause == "teacher" else batches) for cause in flops}
        tokens = {cause: count * ctx.row_length for cause, count in rows.items()}
        evaluation = {"evaluation": looks * ctx.evaluation_flops(*parts)}
        return flops | evaluation, tokens | {"evaluation": looks * ctx.measure.tokens(parts)}

    def mesh(self, ctx: Context, devices: Sequence[Any] | None = None) -> Mesh:
        """Lay out the devices (all of the run's when left out) for this crew."""
        spread = self.crew[0].node.peers > 1 and (ctx.run.fsdp, ctx.run.tensor) == (1, 1)
        fsdp, tensor = ctx.run.fsdp, ctx.run.tensor
        try:
            return make_mesh(len(self.crew), spread=spread, fsdp=fsdp, tensor=tensor, devices=devices)
        except ValueError as error:
            raise ConfigError(f"{error}; change config.run.fsdp or config.run.tensor") from error

    def state(self, ctx: Context, mesh: Mesh, starts: Sequence[Any]) -> State:
        """Return the population before its first step."""
        rates, streams = [m.learning_rate for m in self.crew], [m.stream for m in self.crew]
        terms = {term: [m.coefficients[term] for m in self.crew] for term in self.crew[0].coefficients}
        optimizer, dtype = self.settings.transform(), self.settings.weights
        return self.layout(ctx, mesh).make(starts, optimizer, Hyper(rates, streams, terms), dtype)

    def layout(self, ctx: Context, mesh: Mesh) -> ShardedMembers:
        """Return where the population lies."""
        return ShardedMembers(mesh, ctx.model)

    def adapters(self, ctx: Context, mesh: Mesh) -> list[Any]:
        """Return the fresh adapters of each member; those of one node and one stream are the same."""

        @functools.cache
        def draw(seed: int, stage: str, stream: int) -> Any:
            key = jax.random.key(seed_for(seed, "lora", stage, stream))
            return draw_weights(ctx.model, mesh, key, self._rank)

        # A stream of a population of nodes is its seed's; alone in its node a member has the seed's own draw.
        attack = len({m.node.name for m in self.crew}) == 1
        return [draw(m.node.settings.seed, m.node.stage, m.stream if attack else 0) for m in self.crew]

    def shapes(self, ctx: Context, mesh: Mesh) -> tuple[State, Any, Batch, Any]:
        """Return what the step takes, (state, teacher, batch, base), as shapes with shardings."""
        starts = weights_shape(ctx.model, mesh, self._rank)
        state = jax.eval_shape(lambda tree: self.state(ctx, mesh, [tree]), starts)
        state = with_shardings(state, self.layout(ctx, mesh).state_shardings(state))
        shape, sharding = self._batch(ctx, mesh)
        column = jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding)
        rows = dict.fromkeys(COLUMNS, column)
        if self.cache:
            rows["states"] = jax.ShapeDtypeStruct((*shape, ctx.model.hidden), ctx.model.dtype, sharding=sharding)
        batch = jax.tree.map(lambda _: rows, self.reads)
        frozen = ctx.weights(mesh, frozen=True)
        teacher = self._teacher(frozen)
        if beside := self._beside(ctx):
            teacher = Beside(weights_shape(ctx.model, mesh, beside.lora_rank), np.float32(beside.scale))
        return state, teacher, batch, self._base(frozen)

    def _batch(self, ctx: Context, mesh: Mesh) -> tuple[tuple[int, ...], NamedSharding]:
        shape = (len(self.seeds), self.settings.batch, ctx.row_length)
        return shape, batch_sharding(mesh, self.settings.batch // self.settings.microbatches)

    def batches(self, ctx: Context, mesh: Mesh) -> Callable[[int], Batch]:
        """Return feed(step) -> the global batch on the mesh; every host reads only the rows its devices hold."""
        shape, sharding = self._batch(ctx, mesh)
        verb = self.crew[0].node.verb

        def of_set(data: str) -> Callable[[int], Batch]:
            path = ctx.data / f"{data}.array_record"
            feeds = [Feed(path, self.settings.batch, seed_for(seed, verb, data)) for seed in self.seeds]
            cached = self._states(ctx, data)

            def batch(step: int) -> Batch:
                @functools.cache
                def rows(start: int | None, stop: int | None) -> np.ndarray:
                    return np.stack([feed(step, slice(start, stop)) for feed in feeds])

                def column(i: int) -> jax.Array:
                    part = lambda index: rows(index[1].start, index[1].stop)[:, :, i]  # noqa: E731
                    return jax.make_array_from_callback(shape, sharding, part)

                out = {name: column(i) for i, name in enumerate(COLUMNS)}
                if cached:
                    part = lambda index: np.stack([cached.gather(f.indices(step)[index[1]]) for f in feeds])  # noqa: E731
                    out["states"] = jax.make_array_from_callback((*shape, ctx.model.hidden), sharding, part)
                return out

            return batch

        feeds = jax.tree.map(of_set, self.reads)
        return lambda step: jax.tree.map(lambda feed: feed(step), feeds)

    def frozen(self, ctx: Context, mesh: Mesh) -> tuple[Any, Any]:
        """Return the weights that no step changes: what the step is given of the teacher, and the base; or None."""
        base = self._base(ctx.params(self.base, mesh, frozen=True)) if self.base else None
        if beside := self._beside(ctx):
            return Beside(ctx.adapters(self.teacher, mesh), np.float32(beside.scale)), base
        return self._teacher(ctx.params(self.teacher, mesh, frozen=True)) if self.teacher else None, base

    def _beside(self, ctx: Context) -> Lora | None:
        """Return the teacher's adapters if they are to the members' own base, whose weights then serve both."""
        node = ctx.nodes.get(self.teacher)
        if node is None or self.cache or node.inputs.get("start") != self.base:
            return None
        stage: Stage = node.settings
        return stage.adapters()

    @property
    def _rank(self) -> int:
        adapters = self.settings.adapters()
        return adapters.lora_rank if adapters else 0

    def _base(self, weights: Any) -> Any:
        adapters = self.settings.adapters()
        return lora.base(weights, adapters.lora_rank, adapters.lora_alpha) if self.base and adapters else None

    def _teacher(self, weights: Any) -> Any:
        if not self.teacher:
            return None
        return transformer.head_of(weights) if self.cache else weights

    def _states(self, ctx: Context, data: str) -> States | None:
        if not self.cache:
            return None
        node = ctx.nodes[self.cache]
        directory = node.sealed(STATES).parent
        try:
            return States(directory, load_manifest(ctx.data)["sets"][data]["sha256"])
        except ValueError as error:
            raise ConfigError(f"{error}: remove {node.directory} and run again") from error


@dataclasses.dataclass(frozen=True)
class Outcome(driver.Outcome):
    """A trained population, and the mesh it lies on."""

    mesh: Mesh


def train(
    ctx: Context,
    program: Program,
    starts: Callable[[Mesh], Sequence[Any]],
    *,
    evaluate_at: Callable[[int], bool],
    parts: Sequence[str] = PARTS,
    reached: Callable[[dict[str, np.ndarray]], np.ndarray] | None = None,
    by_fact: bool = False,
    planned_flops: float = 0.0,
) -> Outcome:
    """Train the crew as one population, continuing from its nodes' checkpoints if they have any.

    Args:
      starts: mesh -> each member's starting weights, or one tree for all; not called if adapters train.
      evaluate_at: the steps at which scores on `parts` are measured and written as "evaluation" rows.
      reached: scores {name: [P]} -> bool [P], who may stop.
      by_fact: whether "facts" rows say of each held-out fact how many of its prompts were answered right.

    Raises:
      Interrupted: if the run was asked to stop; everything up to here is saved.
    """
    clock, crew, settings, mesh = Clock(), program.crew, program.settings, program.mesh(ctx)
    ctx.describe(mesh)

    def inputs() -> StepInputs:
        teacher, base = program.frozen(ctx, mesh)
        return StepInputs(program.build(mesh), program.batches(ctx, mesh), teacher, base)

    run = TrainingRun(
        labels=[m.label for m in crew],
        settings=settings,
        layout=program.layout(ctx, mesh),
        inputs=inputs,
        nodes=[m.node for m in crew],
        evaluation=PartsEvaluation(ctx, mesh, crew, evaluate_at, parts, reached, by_fact),
        progress=ctx.progress,
        cost=Cost(settings.batch * ctx.row_length * len(crew), planned_flops, program.step_flops()),
        profile=ctx.run.profile,
    )
    fresh = program.adapters if program.base else lambda _, mesh: starts(mesh)
    trained = driver.train(run, program.state(ctx, mesh, fresh(ctx, mesh)), clock)
    return Outcome(**vars(trained), mesh=mesh)


@dataclasses.dataclass(frozen=True)
class PartsEvaluation:
    """Scores on parts of the evaluation data, as rows of the members that still run.

    Attributes:
      due, parts, reached, by_fact: `evaluate_at` and the others of `train`.
    """

    ctx: Context
    mesh: Mesh
    members: Sequence[Member]
    due: Callable[[int], bool]
    parts: Sequence[str]
    reached: Callable[[dict[str, np.ndarray]], np.ndarray] | None
    by_fact: bool

    def __call__(self, state: State, base: Any) -> Measurement:
        """Measure the members: those that reached their goal may stop, those without numbers diverged."""
        count, measure = len(self.members), self.ctx.measure
        raw = self.ctx.evaluator(self.mesh, *self.parts)(state.params, base)[:count]
        scores, good = measure.series(raw, self.parts), all_finite(raw)
        running = np.asarray(state.status)[:count] == RUNNING
        rows = [
            self._row(i, "evaluation", values={name: float(score[i]) for name, score in scores.items()})
            for i in np.flatnonzero(running).tolist()
        ]
        if self.by_fact and measure.prompts_by_fact(self.parts):
            counted = np.flatnonzero(running & good).tolist()
            facts = measure.by_fact(raw[counted], self.parts).tolist()
            rows += [self._row(i, "facts", counts={"correct": x}) for i, x in zip(counted, facts, strict=True)]
        status = np.where(self.reached(scores), REACHED, RUNNING) if self.reached else np.full(count, RUNNING)
        return Measurement(rows, np.where(good, status, DIVERGED), self._summary(scores, good))

    def _row(self, index: int, kind: str, **numbers: Any) -> Row:
        member = self.members[index]
        return Row(member.node.name, kind, member.label, **numbers)

    def _summary(self, scores: dict[str, np.ndarray], good: np.ndarray) -> str:
        best = self.ctx.measure.scale.best
        shown = {name: score[good] for name, score in scores.items() if "_" not in name}
        return "  ".join(f"{name} {best(score):.2f}" for name, score in shown.items() if good.any())


def finish_models(
    ctx: Context, program: Program, outcome: Outcome, *, parts: Sequence[str] = PARTS, watched: Sequence[str] = PARTS
) -> None:
    """Evaluate each node's model in full, and write its weights, result and ledger.

    Args:
      watched: the parts that were evaluated while training.
    """
    seen = ctx.evaluator(outcome.mesh, *parts)(outcome.state.params, outcome.base)
    good = all_finite(seen).tolist()
    spent = [program.spent(ctx, outcome.steps[i], outcome.evaluations[i], watched) for i in range(len(program.crew))]
    for flops, tokens in spent:
        flops["evaluation"] += ctx.evaluation_flops(*parts)
        tokens["evaluation"] += ctx.measure.tokens(parts)
    whole = sum(sum(flops.values()) for flops, _ in spent)
    for i, m in enumerate(program.crew):
        m.node.checkpoints.save(FINAL, take_weights(ctx.model, outcome.mesh, outcome.state.params, i))
        result = {
            **ctx.measure.result(seen[i], parts),
            "steps": outcome.steps[i],
            "recovered": outcome.status[i] == REACHED,
            "diverged": outcome.status[i] == DIVERGED or not good[i],
        }
        share = sum(spent[i][0].values()) / whole
        m.node.finish(result, ledger(*spent[i], outcome.seconds, devices=outcome.mesh.size, share=share))
