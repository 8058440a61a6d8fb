"""Whether some recipe is as robust as retraining for a quarter of its compute: before a referee who knows the truth."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from distill_jax.reports.affordable import affordable
from distill_jax.reports.findings import distilling, filtering, findings
from distill_jax.reports.ranking import rankings
from distill_jax.statistics.conclusions import Conclusion, State
from tests.referee import SWEPT, swept
from tests.test_referee import bound, draws

pytestmark = pytest.mark.unit
ORACLE, MARGIN = 0.07, 0.05
CHEAP = {"undo": {"vs_retraining": {"whole": 0.2}}}
NEEDED = {key: SWEPT[key] for key in (("reference", None, None), ("oracle", None, None), ("suppressed", None, None))}


def asked(draw: int, *ends: float, seeds: int = 5, **changes) -> Conclusion:
    """Return the conclusion on UNDO recipes with these true ends, beside suppressed models that leak."""
    truths = NEEDED | {("undo", round(0.01 * i, 2), 0.1): end for i, end in enumerate(ends, 1)}
    return affordable(swept(np.random.default_rng([7, draw]), truths, seeds=seeds, **{**CHEAP, **changes}), "schedule")


def states(count: int, *ends: float, **how) -> collections.Counter[State]:
    return collections.Counter(asked(draw, *ends, **how).state for draw in range(count))


@pytest.mark.parametrize("seeds", [3, 5])
def test_many_recipes_a_margin_away_are_hardly_ever_as_robust(request, seeds):
    """One of eight looks as good as the oracle by luck; on other seeds and facts it does not."""
    count = draws(request)
    said = states(count, *[ORACLE + MARGIN] * 8, seeds=seeds)
    assert said[State.HELD] <= bound(count) and not said[State.VOID], said


def test_a_recipe_as_robust_as_the_oracle_is_found_among_many(request):
    count = draws(request)
    said = states(count, ORACLE - 0.03, *[0.4] * 5, seeds=10)
    assert said[State.HELD] > 0.8 * count, said
    assert "α" not in asked(0, 0.04, 0.4, seeds=10).name and "undo" in asked(0, 0.04, 0.4, seeds=10).evidence


def test_where_each_leaks_or_is_dear_there_is_none(request):
    count = draws(request)
    dear = {"undo": {"vs_retraining": {"whole": 0.4}}}
    assert states(count, *[0.5] * 3)[State.FAILED] > 0.9 * count
    assert not states(count, *[0.04] * 2, seeds=10, **dear)[State.HELD]


def test_recipes_that_are_not_refuted_keep_it_open():
    """Of a sweep that is not finished the best recipe may have the fewest seeds."""
    truths = NEEDED | {("undo", 0.5, 0.1): 0.5, ("undo", 0.8, 0.1): 0.07}
    sweep = swept(np.random.default_rng(0), truths, seeds=5, **CHEAP)
    runs = [run for run in sweep.runs if run["alpha"] != 0.8 or run["seed"] < 2]
    one = affordable(type(sweep)(runs, sweep.before, sweep.after), "schedule")
    assert one.state is State.OPEN and "1 of 3 are not refuted" in one.evidence


def test_nothing_holds_on_one_seed_or_on_a_lost_ability():
    assert asked(0, 0.0, 0.0, seeds=1).state is State.NOT_RUN
    lost = {"undo": {"retain": 0.5, "vs_retraining": {"whole": 0.2}}}
    only = {"suppressed": {"retain": 0.5, "vs_retraining": {"whole": 0.05}}}
    assert asked(0, 0.0, seeds=10, **lost).state is State.FAILED  # what is left are suppressed models
    assert asked(0, 0.0, seeds=10, **{**lost, **only}).state is State.VOID


def test_a_weak_attack_makes_nothing_robust():
    truths = NEEDED | {("suppressed", None, None): 0.0, ("undo", 0.5, 0.1): 0.0}
    assert affordable(swept(np.random.default_rng(0), truths, seeds=10, **CHEAP), "schedule").state is State.VOID


def test_one_lost_seed_takes_a_recipe_out_of_the_ranking():
    sweep = swept(np.random.default_rng(0), NEEDED | {("undo", 0.5, 0.1): 0.1, ("undo", 0.8, 0.1): 0.05}, **CHEAP)
    for run in sweep.runs:
        run |= {"parameters": 1, "attack": None}
    sweep.runs[-1]["retain"] = 0.6
    (ranking,) = rankings(sweep)
    assert [row["recipe"] for row in ranking["apart"]] == ["undo 0.8 0.1 []"]
    assert "1 of 3 training seeds" in ranking["apart"][0]["lost"] and "0.60" in ranking["apart"][0]["lost"]
    assert {row["kind"] for row in ranking["recipes"]} == {"suppressed", "undo"}
    assert [row["kind"] for row in ranking["baselines"]] == ["oracle", "reference"]
    assert [row["front"] for row in ranking["recipes"]] == [True, False]  # the suppressed leak more and cost more


def test_distilling_beats_suppressing_where_it_does(request):
    count = draws(request)

    def said(student: float) -> collections.Counter[State]:
        truths = NEEDED | {("random student", None, None): student}
        return collections.Counter(
            distilling(swept(np.random.default_rng([3, i]), truths, seeds=5), "maxent").state for i in range(count)
        )

    assert said(0.1)[State.HELD] > 0.9 * count
    assert said(0.6)[State.HELD] <= bound(count)
    assert not said(0.8)[State.HELD]
    sweep = swept(np.random.default_rng(0), NEEDED | {("random student", None, None): 0.1}, seeds=5)
    sweep.runs[-1]["retain"] = 0.6
    assert distilling(sweep, "maxent").state is State.VOID


def test_the_same_labels_are_not_claimed_of_a_labeller_that_errs():
    for labeller, words in (("naive_bayes", "for the same labels"), ("noisy", "that errs")):
        sweep = swept(np.random.default_rng(0), filtered={"labeller": labeller})
        assert words in filtering(sweep).statement


def test_recipes_of_one_role_are_not_averaged():
    """Of UNDO with few and with many steps, each has a finding of its own, on its own runs."""
    few, many = (swept(np.random.default_rng(i), SWEPT | {("undo", 0.2, 0.1): end}) for i, end in enumerate((0.6, 0.1)))
    for sweep, steps in ((few, 100), (many, 800)):
        for run in sweep.runs:
            if run["kind"] in ("undo", "random student", "filtered", "alpha 0", "noise only"):
                run |= {"settings": {"distill.steps": steps}, "recipe": f"{run['recipe']} {steps}"}
                run["id"] += str(steps)
    tables = ({f"{k}{s}": v for k, v in t.items()} | t for s, t in ((100, few.before), (800, many.before)))
    after = ({f"{k}{s}": v for k, v in t.items()} | t for s, t in ((100, few.after), (800, many.after)))
    pooled = type(few)(
        [*few.runs, *(r for r in many.runs if r["settings"])],
        {k: v for table in tables for k, v in table.items()},
        {k: v for table in after for k, v in table.items()},
    )
    names = [one.name for one in findings(pooled) if one.name.startswith("alpha, maxent, 0.1")]
    assert names == [f"alpha, maxent, 0.1, distill.steps = {steps}" for steps in (100, 800)]
    slopes = [one.effects[0].estimate for one in findings(pooled) if one.name in names]
    assert slopes[0] < slopes[1] - 0.3
