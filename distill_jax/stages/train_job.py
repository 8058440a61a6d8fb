"""What a training stage runs, known before any weight or row exists: members, data, step, teacher and base."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from distill_jax.config import ConfigError, check
from distill_jax.data.feed import Feed, padded
from distill_jax.data.records import Rows, load_manifest
from distill_jax.data.teacher_states import States
from distill_jax.io.node import STATES
from distill_jax.models import lora
from distill_jax.models.head import head_weights
from distill_jax.models.lora import Adapters, Base
from distill_jax.models.transformer import Params
from distill_jax.sharding.mesh import batch_devices, batch_sharding, padded_rows, with_shardings
from distill_jax.stages.compiled_step import CompileKey, compiled_step
from distill_jax.stages.context import Context, Node, seed_for
from distill_jax.train.batch import PackedRows
from distill_jax.train.layout import ShardedMembers
from distill_jax.train.population import draw_weights, weights_shape
from distill_jax.train.settings import Lora
from distill_jax.train.state import Hyper, State
from distill_jax.train.step import Batch, TeacherAdapters
from distill_jax.types import PyTree

if TYPE_CHECKING:
    from distill_jax.stages.stage import Stage
    from distill_jax.stages.train_stage import TrainStage


@dataclasses.dataclass(frozen=True)
class Member:
    """One member: the node it belongs to, its label there, and what is its own.

    Attributes:
      learning_rate: peak.
      stream: which of the job's data orders it reads.
      coefficients: {loss term: what multiplies it}; every member of a job names the same terms.
    """

    node: Node
    label: str = ""
    learning_rate: float = 0.0
    stream: int = 0
    coefficients: Mapping[str, float] = dataclasses.field(default_factory=dict)


def make_members(nodes: Sequence[Node]) -> tuple[list[Member], list[int]]:
    """Return the members of a job, one a node, and the seeds of its data orders, one a seed of theirs."""
    stages: list[TrainStage] = [node.settings for node in nodes]
    _check_differences(nodes)
    seeds = list(dict.fromkeys(stage.seed for stage in stages))
    members = [
        Member(
            node,
            learning_rate=stage.learning_rate,
            stream=seeds.index(stage.seed),
            coefficients=stage.member_coefficients(),
        )
        for node, stage in zip(nodes, stages, strict=True)
    ]
    return members, seeds


def _check_differences(nodes: Sequence[Node]) -> None:
    """Raise ConfigError for a setting that members may differ in, and do, without any effect on what they compute."""
    stage: TrainStage = nodes[0].settings
    elsewhere = {"seed", "learning_rate", *stage.roles(), *stage.goal_fields}
    for field in set(stage.per_member_fields() or ()) - elsewhere:
        values: dict[str, set[object]] = {}
        for node in nodes:
            values.setdefault(repr(node.settings.member_coefficients()), set()).add(getattr(node.settings, field))
        fix_hint = "return a loss term's coefficient of it there, or leave it out of per_member_fields"
        where = f"stages.{nodes[0].stage}.{field}"
        heeded = all(len(equal) == 1 for equal in values.values())
        check(heeded, f"{where}: members differ in it and not in member_coefficients; {fix_hint}")


@dataclasses.dataclass(frozen=True)
class TrainJob:
    """What a stage that trains runs, known before any weight or row exists: enough to compile it for any mesh.

    Attributes:
      settings: the stage's.
      key: what the step function depends on.
      reads: the data set whose rows are the batch, or {part of the batch: data set}.
      seeds: of the data orders, one a stream.
      teacher: the node whose weights the step is given; "" for none.
      base: the node to whose frozen weights all members attach the adapters that they train; "" for members that are
        whole models.
      flops: {"student", "teacher"}: of one step of one member.
      cache: the node that holds the teacher's hidden states; with it the teacher is its head alone, and the
        batch has "states" [G, B, T, D].
      rows: {data set: how many of its rows each data order has}; all of those that are not named.
    """

    members: Sequence[Member]
    settings: TrainStage
    key: CompileKey
    reads: str | Mapping[str, str]
    seeds: Sequence[int]
    teacher: str
    flops: dict[str, float]
    base: str = ""
    cache: str = ""
    rows: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def build(self, mesh: Mesh) -> jax.stages.Wrapped:
        """Return the step function; equal stages share one, and its compilation."""
        return compiled_step(self.key, mesh)

    def with_remat(self, policy: str) -> TrainJob:
        """Return the job with another policy of what its step computes again."""
        return dataclasses.replace(self, key=self.key.with_remat(policy))

    def step_flops(self) -> float:
        """Return the FLOPs of one step of all members, behind one teacher that reads every data order."""
        each = {name: len(self.seeds) if name == "teacher" else len(self.members) for name in self.flops}
        return sum(count * self.flops[name] for name, count in each.items())

    def spent(
        self, ctx: Context, steps: int, num_evals: int, parts: Sequence[str]
    ) -> tuple[dict[str, float], dict[str, int]]:
        """Return one member's FLOPs and tokens by cause, after so many steps and evaluations on the parts."""
        flops = {cause: steps * count for cause, count in self.flops.items()}
        sets = len(self.reads) if isinstance(self.reads, Mapping) else 1
        of_teacher = self.key.objective.teacher_sets()
        rows = {cause: steps * self.settings.batch * (of_teacher if cause == "teacher" else sets) for cause in flops}
        tokens = {cause: count * ctx.row_length for cause, count in rows.items()}
        evaluation = {"evaluation": num_evals * ctx.evaluation_flops(*parts)}
        return flops | evaluation, tokens | {"evaluation": num_evals * ctx.measure.tokens(parts)}

    def mesh(self, ctx: Context, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """Lay out the devices (all of the run's when left out) for these members.

        Where every device holds whole weights, for as many as might train together, so that a member's arithmetic does
        not depend on who does.
        """
        node = self.members[0].node
        of_node = sum(member.node.name == node.name for member in self.members)
        replicated = (ctx.run.fsdp, ctx.run.tensor) == (1, 1)
        return ctx.mesh(of_node * node.peers if replicated else len(self.members), devices=devices)

    def state(self, ctx: Context, mesh: Mesh, starts: Sequence[Params]) -> State:
        """Return the population before its first step."""
        rates, streams = [m.learning_rate for m in self.members], [m.stream for m in self.members]
        terms = {term: [m.coefficients[term] for m in self.members] for term in self.members[0].coefficients}
        optimizer, dtype = self.settings.transform(), self.settings.weights
        return self.layout(ctx, mesh).make(starts, optimizer, Hyper(rates, streams, terms), dtype)

    def layout(self, ctx: Context, mesh: Mesh) -> ShardedMembers:
        """Return where the population lies."""
        return ShardedMembers(mesh, ctx.model)

    def adapters(self, ctx: Context, mesh: Mesh) -> list[Adapters]:
        """Return the fresh adapters of each member; those of one node and one stream are the same."""

        @functools.cache
        def draw(seed: int, stage: str, stream: int) -> Adapters:
            key = jax.random.key(seed_for(seed, "lora", stage, stream))
            return draw_weights(ctx.model, mesh, key, self._rank)

        # A stream of a population of nodes is its seed's; alone in its node a member has the seed's own draw.
        attack = len({m.node.name for m in self.members}) == 1
        return [draw(m.node.settings.seed, m.node.stage, m.stream if attack else 0) for m in self.members]

    def shapes(self, ctx: Context, mesh: Mesh) -> tuple[State, PyTree, Batch, Base | None]:
        """Return what the step takes, (state, teacher, batch, base), as shapes with shardings."""
        state = jax.eval_shape(functools.partial(self.state, ctx, mesh), [self.trained_shape(ctx, mesh)])
        state = with_shardings(state, self.layout(ctx, mesh).state_shardings(state))
        shape, sharding = self._batch(ctx, mesh)
        column: PyTree = jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding)
        rows = PackedRows(column, column, column)
        if self.cache:
            states: PyTree = jax.ShapeDtypeStruct((*shape, ctx.model.hidden), ctx.model.dtype, sharding=sharding)
            rows = rows._replace(states=states)
        batch = dict.fromkeys(self.reads, rows) if isinstance(self.reads, Mapping) else rows
        frozen = ctx.weights(mesh, frozen=True)
        teacher = self._teacher(frozen)
        if adapters := self._teacher_adapters(ctx):
            teacher = TeacherAdapters(weights_shape(ctx.model, mesh, adapters.lora_rank), np.float32(adapters.scale))
        return state, teacher, batch, self._base(frozen)

    def trained_shape(self, ctx: Context, mesh: Mesh) -> Params:
        """Return what one member trains, as shapes: a model's weights, or the adapters to one."""
        return weights_shape(ctx.model, mesh, self._rank)

    def padded_batch(self, mesh: Mesh) -> int:
        """Return the rows of a batch on a mesh: each microbatch is filled up with padding to divide over the devices.

        Microbatch m has every M-th row from m on, so padding at the batch's end comes to all of them alike.
        """
        pieces = self.settings.microbatches
        return pieces * padded_rows(self.settings.batch // pieces, mesh)

    def padding_note(self, mesh: Mesh) -> str:
        """Return a line about the rows that are added to a batch on a mesh; "" if there are none."""
        real, rows, pieces = self.settings.batch, self.padded_batch(mesh), self.settings.microbatches
        if rows == real:
            return ""
        what = f"{real} rows" if pieces == 1 else f"{pieces} microbatches of {real // pieces} rows"
        return f"{what} do not divide over {batch_devices(mesh)} devices: padded to {rows // pieces}"

    def _batch(self, ctx: Context, mesh: Mesh) -> tuple[tuple[int, ...], NamedSharding]:
        rows = self.padded_batch(mesh)
        shape = (len(self.seeds), rows, ctx.row_length)
        return shape, batch_sharding(mesh, rows // self.settings.microbatches)

    def batches(self, ctx: Context, mesh: Mesh) -> Callable[[int], Batch]:
        """Return feed(step) -> the global batch on the mesh; every host reads only the rows its devices hold."""
        shape, sharding = self._batch(ctx, mesh)
        verb = self.members[0].node.verb

        def of_set(data: str, *order: str) -> Callable[[int], PackedRows]:
            source = Rows(ctx.data / f"{data}.array_record")
            batch_size, rows_read = self.settings.batch, self.rows.get(data, 0)
            feeds = [Feed(source, batch_size, seed_for(seed, verb, data, *order), rows_read) for seed in self.seeds]
            cached = self._states(ctx, data)

            def batch(step: int) -> PackedRows:
                @functools.cache
                def rows(start: int, stop: int) -> np.ndarray:
                    return np.stack([padded(f.rows.gather, f.indices(step), slice(start, stop)) for f in feeds])

                def column(i: int) -> jax.Array:
                    def part(index: Any) -> np.ndarray:
                        return rows(*index[1].indices(shape[1])[:2])[:, :, i]

                    return jax.make_array_from_callback(shape, sharding, part)

                def states(of: States) -> jax.Array:
                    def part(index: Any) -> np.ndarray:
                        part = slice(*index[1].indices(shape[1])[:2])
                        return np.stack([padded(of.gather, feed.indices(step), part) for feed in feeds])

                    return jax.make_array_from_callback((*shape, ctx.model.hidden), sharding, part)

                return PackedRows(column(0), column(1), column(2), states(cached) if cached else None)

            return batch

        if isinstance(self.reads, str):
            return of_set(self.reads)
        sets = list(self.reads.values())
        by_part = {  # a second part of one set reads it in an order of its own
            part: of_set(data, *((part,) if data in sets[:i] else ()))
            for i, (part, data) in enumerate(self.reads.items())
        }

        def batches_of_parts(step: int) -> dict[str, PackedRows]:
            return {part: feed(step) for part, feed in by_part.items()}

        return batches_of_parts

    def frozen(self, ctx: Context, mesh: Mesh) -> tuple[PyTree, Base | None]:
        """Return the weights that no step changes: what the step is given of the teacher, and the base; or None."""
        base = self._base(ctx.params(self.base, mesh, frozen=True)) if self.base else None
        if adapters := self._teacher_adapters(ctx):
            return TeacherAdapters(ctx.adapters(self.teacher, mesh), np.float32(adapters.scale)), base
        return self._teacher(ctx.params(self.teacher, mesh, frozen=True)) if self.teacher else None, base

    def _teacher_adapters(self, ctx: Context) -> Lora | None:
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

    def _base(self, weights: Params) -> Base | None:
        adapters = self.settings.adapters()
        return lora.base(weights, adapters.lora_rank, adapters.lora_alpha) if self.base and adapters else None

    def _teacher(self, weights: Params) -> Params | None:
        if not self.teacher:
            return None
        return head_weights(weights) if self.cache else weights

    def _states(self, ctx: Context, data: str) -> States | None:
        if not self.cache:
            return None
        node = ctx.nodes[self.cache]
        directory = node.sealed(STATES).parent
        try:
            return States(directory, load_manifest(ctx.data)["sets"][data]["sha256"])
        except ValueError as error:
            raise ConfigError(f"{error}: remove {node.directory} and run again") from error
