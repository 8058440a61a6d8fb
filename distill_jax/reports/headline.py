"""The answer of a robustness report: which models stand at its top, and the two conclusions they carry."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import cast

from distill_jax.evals.scale import ACCURACY, Scale
from distill_jax.experiment.roles import Role
from distill_jax.reports.attacked import Run, ends
from distill_jax.reports.premises import Model, difference, kept
from distill_jax.reports.summary_types import ConclusionSummary, HeadlineSummary
from distill_jax.statistics.conclusions import Conclusion, conclude, not_run, to_json

# Of any teacher: which one's is compared depends on what UNDO started from.
STUDENTS = (Role.RANDOM_STUDENT, Role.REFERENCE_STUDENT, Role.EQUAL_COMPUTE)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The models that the answer compares, each None where the run has none.

    Attributes:
      best: the more robust of `undo` and `student`; choices: among how many it was picked.
    """

    suppressed: Model | None
    undo: Model | None
    student: Model | None
    oracle: Model | None
    best: Model | None
    undo_choices: int
    choices: int


def comparison(run: Run) -> Comparison:
    """Choose what to compare.

    Among UNDO's settings: the least able under attack of those that have their retain ability, the cheaper at a tie.
    The suppressed model is the teacher of that choice, so that like is compared with like.
    """
    reference = run.reference

    def rank(model: Model) -> tuple[bool, float, float]:
        able = run.scale.ability(model.after.value) if model.after else math.inf
        lost = reference is not None and not kept(model, reference, run.scale).shown
        cost = model.compute.get("schedule")
        return lost, math.inf if math.isnan(able) else able, math.inf if cost is None else cost

    undo = min((m for m in run.undo if m.alpha is not None), key=rank, default=None)
    unlearned = [m for m in run.models if m.unlearned]
    students = [m for m in run.models if m.role in STUDENTS]
    of_undo = [m for m in unlearned if undo is not None and m.name == undo.teacher]
    suppressed = next(iter([*of_undo, *unlearned]), None)
    student = next((m for m in students if suppressed is not None and m.teacher == suppressed.name), None)
    best = min((m for m in (undo, student) if m), key=rank, default=None)
    choices = len(run.undo) + (student is not None)
    return Comparison(suppressed, undo, student, run.oracle, best, len(run.undo), choices)


def headline(models: Sequence[Model], scale: Scale = ACCURACY) -> HeadlineSummary:
    """Return the answer as a summary holds it: names of the models at the top and two conclusions."""
    run = Run(models, scale)
    chosen = comparison(run)
    decided = [to_json(beyond_suppression(run, chosen)), to_json(as_the_oracle(run, chosen))]
    return {
        "suppressed": _name(chosen.suppressed),
        "undo": _name(chosen.undo),
        "student": _name(chosen.student),
        "oracle": _name(chosen.oracle),
        "best": _name(chosen.best),
        "undo_choices": chosen.undo_choices,
        "choices": chosen.choices,
        "conclusions": cast(list[ConclusionSummary], decided),
    }


def _name(model: Model | None) -> str | None:
    return model.name if model else None


def beyond_suppression(run: Run, chosen: Comparison) -> Conclusion:
    """The best distilled model gives less back than the suppressed one it came from."""
    base, best, reference = chosen.suppressed, chosen.best, run.reference
    claim = f"{best.label if best else 'Distillation'} resists relearning better than suppression alone."
    if not base or not best or not reference:
        return not_run("headline", claim, "attacked suppressed model, distilled model and reference")
    shared = run.shared(base, reference, [best])
    gap = difference(base, best, run.scale, more_than=0.0, choices=chosen.choices)
    return conclude("headline", claim, premises=shared, effects=[gap], evidence=_at_worst(run, base, best))


def as_the_oracle(run: Run, chosen: Comparison) -> Conclusion:
    """The best distilled model gives no more back than the oracle, within the margin."""
    base, best, oracle, reference = chosen.suppressed, chosen.best, chosen.oracle, run.reference
    claim = f"{best.label if best else 'Distillation'} gives no more back than the oracle, within {run.scale.margin:g}."
    if not base or not best or not oracle or not reference:
        return not_run("headline, oracle", claim, "attacked oracle, suppressed model, distilled model and reference")
    shared = [*run.shared(base, reference, [best]), *run.ignorant(oracle, reference)]
    gap = difference(best, oracle, run.scale, at_most=run.scale.margin, choices=chosen.choices)
    return conclude("headline, oracle", claim, premises=shared, effects=[gap], evidence=_at_worst(run, best, oracle))


def _at_worst(run: Run, *models: Model) -> str:
    """Return what came back of models that are judged at their worst step; of others the page says it."""
    return ends(run, *models) if any(model.worst_step for model in models) else ""
