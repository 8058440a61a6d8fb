"""A finding whose models were never made says so, whatever became of the models that were; void is what was lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from distill_jax.reports.sweep_evidence import Run, Sweep
from distill_jax.statistics.conclusions import State
from tests.referee import SWEPT, certified, swept, swept_states

pytestmark = pytest.mark.unit
ROUNDED = certified("random student", 0.07, 0.07, 0.07)
Side = Callable[[Run], bool]


def of(kind: str, noise: bool | None = None, bits: int | None = None) -> Side:
    """Return which runs are one side of a comparison."""

    def belongs(run: Run) -> bool:
        same = (run["rounded"] or run["kind"], run["bits"]) == (kind, bits)
        return same and noise in (None, bool(run["beta"]))

    return belongs


# Of each finding what it compares.
SIDES: dict[str, tuple[Side, ...]] = {
    "alpha, maxent, 0": (of("undo", noise=False),),
    "alpha, maxent, 0.1": (of("undo", noise=True),),
    "shrinkage, maxent": (of("undo", noise=False), of("alpha 0")),
    "noise, maxent": (of("noise only"), of("alpha 0")),
    "noise added, maxent": (of("undo", noise=True), of("undo", noise=False)),
    "cheaper, schedule, maxent": (of("undo"), of("oracle")),
    "cheaper, first passage, maxent": (of("undo"), of("oracle")),
    "distilling beats suppressing, maxent": (of("random student"), of("suppressed")),
    "filtering": (of("filtered"), of("random student")),
    "affordable, schedule": (of("oracle"),),
    "certificate, random student, maxent": (of("random student"), of("random student", bits=8), of("oracle", bits=4)),
}
CASES = [(name, i) for name, sides in SIDES.items() for i in range(len(sides))]


def complete() -> Sweep:
    return swept(np.random.default_rng(0), SWEPT | ROUNDED, seeds=5)


def state(sweep: Sweep, name: str) -> State:
    """Return a finding's state; of what a sweep has nothing at all of, not even the finding is there."""
    return swept_states(sweep).get(name, State.NOT_RUN)


def lost(sweep: Sweep, side: Side) -> Sweep:
    """Return a sweep in which the runs of a side lost what was to be retained."""
    return dataclasses.replace(sweep, runs=[run | {"retain": 0.3} if side(run) else run for run in sweep.runs])


def without(sweep: Sweep, side: Side) -> Sweep:
    return dataclasses.replace(sweep, runs=[run for run in sweep.runs if not side(run)])


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_side_that_lost_its_ability_makes_a_finding_void(name, index):
    assert state(complete(), name) not in (State.VOID, State.NOT_RUN)
    assert state(lost(complete(), SIDES[name][index]), name) is State.VOID


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_side_that_was_never_made_is_not_run_though_all_others_lost_their_ability(name, index):
    others = without(lost(complete(), lambda run: run["kind"] != "reference"), SIDES[name][index])
    assert state(others, name) is State.NOT_RUN


@pytest.mark.parametrize("name", SIDES)
def test_too_few_training_seeds_are_not_run_though_they_lost_their_ability(name):
    few = without(lost(complete(), lambda run: run["kind"] != "reference"), lambda run: run["seed"] > 0)
    assert state(few, name) is State.NOT_RUN
