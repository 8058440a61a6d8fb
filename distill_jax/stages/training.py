"""Run a training stage's job: one population for one or several nodes, measured as it trains, and written down.

Every node keeps its own files, so a node's record does not show with whom it ran.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from distill_jax.evals.measure import all_finite
from distill_jax.io.checkpoint import FINAL
from distill_jax.models.lora import Base
from distill_jax.models.transformer import Params
from distill_jax.perf.ledger import ledger
from distill_jax.stages.choose_remat import with_chosen_policy
from distill_jax.stages.context import PARTS, Context
from distill_jax.stages.train_job import Member, TrainJob
from distill_jax.statistics.attack_rows import FACTS, KEPT
from distill_jax.train import driver
from distill_jax.train.metric_writers import Row
from distill_jax.train.population import take_weights
from distill_jax.train.state import DIVERGED, REACHED, RUNNING, State
from distill_jax.train.training_run import Cost, Measurement, StepInputs, TrainingRun


@dataclasses.dataclass(frozen=True)
class Outcome(driver.Outcome):
    """A trained population, and the mesh it lies on."""

    mesh: Mesh


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
    """When a population is evaluated as it trains, on what, and what comes of it.

    Attributes:
      due: step -> whether scores on `parts` are measured there and written as "evaluation" rows.
      reached: scores {name: [P]} -> bool [P], who may stop; None if nobody may.
      by_fact: whether "facts" rows say of each held-out fact how many of its prompts were answered right, or of each
        document its bits; and "kept" rows the same of what is to be retained.
    """

    due: Callable[[int], bool]
    parts: Sequence[str] = PARTS
    reached: Callable[[dict[str, np.ndarray]], np.ndarray] | None = None
    by_fact: bool = False


def train(
    ctx: Context,
    job: TrainJob,
    starts: Callable[[Mesh], Sequence[Params]],
    plan: EvaluationPlan,
    planned_flops: float,
) -> Outcome:
    """Train the members of a job as one population, continuing from its nodes' checkpoints if they have any.

    Args:
      starts: mesh -> each member's starting weights, or one tree for all; not called if adapters train.
      planned_flops: of all members, evaluation included, if none stops early.

    Raises:
      Interrupted: if the run was asked to stop; everything up to here is saved.
    """
    members, settings, mesh = job.members, job.settings, job.mesh(ctx)
    if ctx.run.checkpoint_every:
        settings = dataclasses.replace(settings, checkpoint_every=ctx.run.checkpoint_every)
    ctx.describe(mesh)
    job = with_chosen_policy(ctx, job, mesh)
    if note := job.padding_note(mesh):
        ctx.progress.say(f"{members[0].node.name}: {note}")

    def inputs() -> StepInputs:
        teacher, base = job.frozen(ctx, mesh)
        return StepInputs(job.build(mesh), job.batches(ctx, mesh), teacher, base)

    fresh = job.adapters(ctx, mesh) if job.base else starts(mesh)
    start = ctx.loaded_from(fresh[0]) if len(fresh) == 1 and not job.base else ""
    run = TrainingRun(
        labels=[m.label for m in members],
        settings=settings,
        layout=job.layout(ctx, mesh),
        inputs=inputs,
        nodes=[m.node for m in members],
        evaluation=PartsEvaluation(ctx, mesh, members, plan, start),
        progress=ctx.progress,
        cost=Cost(settings.batch * ctx.row_length * len(members), planned_flops, job.step_flops()),
        profile=ctx.run.profile,
        trackers=ctx.trackers,
    )
    trained = driver.train(run, job.state(ctx, mesh, fresh), ctx.clock)
    return Outcome(**vars(trained), mesh=mesh)


@dataclasses.dataclass(frozen=True)
class PartsEvaluation:
    """Scores on parts of the evaluation data, as rows of the members that still run.

    Attributes:
      start: the node whose weights all members have before the first step; "" where they have none's, or several.
    """

    ctx: Context
    mesh: Mesh
    members: Sequence[Member]
    plan: EvaluationPlan
    start: str = ""

    def due(self, step: int) -> bool:
        """Whether to measure at a step."""
        return self.plan.due(step)

    def __call__(self, state: State, base: Base | None) -> Measurement:
        """Measure the members: those that reached their goal may stop, those without numbers diverged."""
        count, measure, plan = len(self.members), self.ctx.measure, self.plan
        raw = self._scores(state, base)[:count]
        scores, good = measure.series(raw, plan.parts), all_finite(raw)
        running = np.asarray(state.status)[:count] == RUNNING
        rows = [
            self._row(i, "evaluation", values={name: float(score[i]) for name, score in scores.items()})
            for i in np.flatnonzero(running).tolist()
        ]
        if plan.by_fact and measure.prompts_by_fact(plan.parts):
            counted = np.flatnonzero(running & good).tolist()
            facts = measure.by_fact(raw[counted], plan.parts).tolist()
            rows += [self._row(i, FACTS, counts={measure.counted: x}) for i, x in zip(counted, facts, strict=True)]
        if plan.by_fact and self.ctx.data_config.RETAIN_BY_ITEM:
            counted = np.flatnonzero(running & good).tolist()
            kept = measure.by_fact(raw[counted], plan.parts, "retain").tolist()
            rows += [self._row(i, KEPT, counts={measure.counted: x}) for i, x in zip(counted, kept, strict=True) if x]
        status = np.where(plan.reached(scores), REACHED, RUNNING) if plan.reached else np.full(count, RUNNING)
        return Measurement(rows, np.where(good, status, DIVERGED), self._summary(scores, good))

    def _scores(self, state: State, base: Base | None) -> np.ndarray:
        """Return the scores of all members, padding included, fp64 [P, n].

        Attacks on one model all begin with it: in populations of one size and layout it is measured once, by the very
        program that would measure it again.
        """
        evaluate = self.ctx.evaluator(self.mesh, *self.plan.parts)
        if not self.start or int(state.step):
            return evaluate(state.params, base)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state.params))
        key, known = (self.start, self.mesh, tuple(self.plan.parts), shapes), self.ctx.scores_at_start
        if key not in known:
            for other in [other for other in known if other[0] != self.start]:
                del known[other]
            known[key] = evaluate(state.params, base)
        return known[key]

    def _row(self, index: int, kind: str, **numbers: Any) -> Row:
        member = self.members[index]
        return Row(member.node.name, kind, member.label, **numbers)

    def _summary(self, scores: dict[str, np.ndarray], good: np.ndarray) -> str:
        best = self.ctx.measure.scale.best
        shown = {name: score[good] for name, score in scores.items() if "_" not in name}
        return "  ".join(f"{name} {best(score):.2f}" for name, score in shown.items() if good.any())


def finish_models(
    ctx: Context, job: TrainJob, outcome: Outcome, *, parts: Sequence[str] = PARTS, watched: Sequence[str] = PARTS
) -> None:
    """Evaluate each node's model in full, and write its weights, result and ledger.

    Args:
      watched: the parts that were evaluated while training.
    """
    with ctx.clock.spent_on("evaluate"):
        seen = ctx.evaluator(outcome.mesh, *parts)(outcome.state.params, outcome.base)
    good = all_finite(seen).tolist()
    spent = [job.spent(ctx, outcome.steps[i], outcome.evaluations[i], watched) for i in range(len(job.members))]
    for flops, tokens in spent:
        flops["evaluation"] += ctx.evaluation_flops(*parts)
        tokens["evaluation"] += ctx.measure.tokens(parts)
    total, together = sum(sum(flops.values()) for flops, _ in spent), ctx.clock.lap()
    for i, m in enumerate(job.members):
        with ctx.clock.spent_on("save"):
            m.node.checkpoints.save(FINAL, take_weights(ctx.model, outcome.mesh, outcome.state.params, i))
        result = {
            **ctx.measure.result(seen[i], parts),
            "steps": outcome.steps[i],
            "recovered": outcome.status[i] == REACHED,
            "diverged": outcome.status[i] == DIVERGED or not good[i],
        }
        lap = together.share(sum(spent[i][0].values()) / total).plus(ctx.clock.lap())
        m.node.finish(result, ledger(*spent[i], lap, devices=outcome.mesh.size))
