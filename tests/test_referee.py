"""Every rule before a referee: what it says of nulls, of spoilt experiments, and of true effects.

A rule may say held of a null at most 5 % of the time. With few draws the rate is bounded: a rule that keeps to 5 %
fails such a test once in ten thousand times.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy import stats

from distill_jax.evals.scale import ACCURACY
from distill_jax.reports.claims import judge
from distill_jax.reports.headline import headline
from distill_jax.reports.premises import Model
from distill_jax.statistics.attack_rows import FACTS, SCORES, Attacker, AttackRow
from distill_jax.statistics.conclusions import State, to_json
from distill_jax.statistics.estimates import Estimate, Scores, band, contrast
from distill_jax.statistics.robustness import read_attack
from tests import referee
from tests.referee import GOOD, SWEPT, Truth, states, swept, swept_states, world

pytestmark = pytest.mark.unit
HELD, FAILED, OPEN, VOID, NOT_RUN = State.HELD, State.FAILED, State.OPEN, State.VOID, State.NOT_RUN


def draws(request: pytest.FixtureRequest) -> int:
    return 1000 if request.config.getoption("--thorough") else 60


def bound(count: int, rate: float = 0.05) -> int:
    """Return how often a thing of this rate happens in so many draws at most, but once in ten thousand times."""
    return int(stats.binom.ppf(1 - 1e-4, count, rate))


def held(
    truths: Mapping[str, Truth], seeds: int, count: int, first: int = 0, **more: float
) -> collections.Counter[str]:
    """Return how often each rule says held; it must not be because a premise is missing that it does not."""
    found: collections.Counter[str] = collections.Counter()
    for draw in range(first, first + count):
        said = states(world(np.random.default_rng(draw), truths, seeds=seeds, **more))
        found.update(name for name, state in said.items() if state is HELD)
        found.update(f"void: {name}" for name, state in said.items() if state is VOID)
    return found


def changed(after: float | None = None, **truths: Truth) -> dict[str, Truth]:
    """Return the good run with all models ending alike, or with some of them other ones."""
    own = ("reference", "rmu") if after is not None else tuple(GOOD)
    alike = {n: t if n in own else dataclasses.replace(t, after=after) for n, t in GOOD.items()}
    return alike | {name.replace("_", "-"): truth for name, truth in truths.items()}


# Nulls. Random steps to recover; RMU, which the attack brings back, shows in each that the attack works.
EQUAL = {"distilling maxent", "distilling graddiff", "alpha", "unlearning needed", "matching, start", "headline"}
WORSE = {"cheaper, schedule", "matching, oracle", "headline, oracle"}


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("level", [0.05, 0.3])
def test_equally_robust_models_are_not_told_apart(request, level, seeds):
    """All models end at one true accuracy, but for the luck of their training (SD .03) and of the attackers."""
    count = draws(request)
    found = held(changed(level), seeds, count)
    assert all(found[name] <= bound(count) and found[f"void: {name}"] < count / 2 for name in EQUAL), found


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_what_is_worse_than_the_oracle_by_the_margin_is_not_called_as_good(request, seeds):
    """A noisier oracle must not make it easier."""
    count, edge = draws(request), 0.07 + ACCURACY.margin
    truths = GOOD | {name: dataclasses.replace(t, after=edge) for name, t in GOOD.items() if name.startswith("undo")}
    truths |= {n: dataclasses.replace(GOOD[n], after=edge) for n in ("student", "match-from-random")}
    for seed_sd in (0.0, 0.06) if seeds == 3 else (0.02,):
        found = held(truths, seeds, count, seed_sd=seed_sd)
        assert all(found[name] <= bound(count) and not found[f"void: {name}"] for name in WORSE), (seed_sd, found)


def as_undo(alpha: float) -> dict[str, Any]:
    name = f"undo-{alpha}"
    return {"name": name, **referee.made_as(name)}


def test_random_steps_do_not_grow(request):
    count = 10 * draws(request)
    said = collections.Counter()
    rng = np.random.default_rng(0)
    (reference,) = world(rng, {"reference": GOOD["reference"]})
    for _ in range(count):
        undo = [
            dataclasses.replace(reference, alpha=a, steps=int(rng.integers(20, 2000)), recovered=True, **as_undo(a))
            for a in referee.ALPHAS[: int(rng.integers(3, 5))]
        ]
        said[{one.name: one.state for one in judge([reference, *undo])}["steps"]] += 1
    assert said[HELD] <= bound(count) and said[OPEN] > count / 2


def test_as_many_learning_seeds_and_facts_again_do_not_make_training_luck_smaller(request):
    """One training run a model and attackers that agree: only what training again does is left, and it is not seen."""
    count = draws(request)
    truths = {n: GOOD[n] for n in ("reference", "oracle", "rmu", "maxent", "student")}
    truths["maxent"], truths["student"] = Truth(0, 0.3), Truth(0, 0.3, recovered=True)
    found = held(truths, 10, count)
    assert found["distilling maxent"] <= bound(count) and found["headline"] <= bound(count)


# Spoilt experiments: (what is wrong, the rules that must say so, the state)
NOTHING = {name: dataclasses.replace(t, before=0.0, after=0.0) for name, t in GOOD.items()}
POWERLESS = {name: dataclasses.replace(t, after=t.before) for name, t in GOOD.items()}
UNDO = [f"undo-{a}" for a in referee.ALPHAS]
ROBUST = {
    "distilling maxent", "distilling graddiff", "distilling rmu", "alpha", "cheaper, schedule", "unlearning needed",
    "matching, start", "matching, oracle", "headline", "headline, oracle",
}  # fmt: skip
OF_MAXENT = {"suppression", "distilling maxent", "alpha", "cheaper, schedule", "headline", "headline, oracle"}
LOST = {n: dataclasses.replace(t, recovered=False, retain=0.03) for n, t in GOOD.items() if t.recovered}
CASES: dict[str, tuple[dict[str, Truth], set[str], State]] = {
    "nobody knows anything": (NOTHING, ROBUST | {"suppression"}, VOID),
    "an attack that brings nothing back": (POWERLESS, ROBUST, VOID),
    "MaxEnt shows as much before the attack as the reference": (
        changed(maxent=Truth(0.93, 0.94)), OF_MAXENT, VOID),
    "MaxEnt still shows .88": (changed(maxent=Truth(0.88, 0.9)), OF_MAXENT, VOID),
    "the reference is at chance": (changed(reference=Truth(0.02, 0.9)), ROBUST | {"suppression"}, VOID),
    "no student regained what is to be retained": (
        GOOD | LOST,
        {"distilling maxent", "distilling graddiff", "distilling rmu", "alpha", "steps", "cheaper, schedule",
         "headline"}, VOID),
    "MaxEnt destroyed what is to be retained": (changed(maxent=Truth(0, 0.6, retain=0.05)), OF_MAXENT, VOID),
    "MaxEnt diverged": (changed(maxent=Truth(0, 0.6, diverged=True)), OF_MAXENT, VOID),
    "MaxEnt has no score": (changed(maxent=Truth(0, 0.6, retain=math.nan)), OF_MAXENT, VOID),
    "the oracle knows it": (
        changed(oracle=Truth(0.9, 0.9)), {"suppression", "cheaper, schedule", "matching, oracle"}, VOID),
    "the control learned nothing either": (changed(student_reference=Truth(0.0, 0.1)), {"unlearning needed"}, FAILED),
    "the matched random student relearns": (changed(match_from_random=Truth(0.03, 0.7)), {"matching, oracle"}, FAILED),
    "and faster than the one that began as the reference": (
        changed(match_from_random=Truth(0.03, 0.7)), {"matching, start"}, FAILED),
    "suppression was removal": (changed(maxent=Truth(0, 0.07)), {"suppression"}, OPEN),
    "distilling harms": (changed(student=Truth(0, 0.9, recovered=True)), {"distilling maxent"}, FAILED),
    "more comes back with α": (
        GOOD | {n: dataclasses.replace(GOOD[n], after=float(n[5:])) for n in UNDO}, {"alpha"}, FAILED),
    "only an α that did not recover resists": (
        GOOD | {n: dataclasses.replace(GOOD[n], after=0.6) for n in UNDO}
        | {"undo-0.8": Truth(0, 0.0, recovered=False, steps=2400)}, {"alpha"}, OPEN),
    "robust α cost more than 80 %": (
        GOOD | {n: dataclasses.replace(GOOD[n], compute=0.9) for n in UNDO}, {"cheaper, schedule"}, FAILED),
    "cheap α are not robust": (
        GOOD | {n: dataclasses.replace(GOOD[n], after=0.5) for n in UNDO}, {"cheaper, schedule"}, FAILED),
    "steps that fall": (
        GOOD | {f"undo-{a}": dataclasses.replace(GOOD[f"undo-{a}"], steps=s)
                for a, s in zip(referee.ALPHAS, (400, 310, 200, 110), strict=True)}, {"steps"}, FAILED),
    "as the paper says": (GOOD, {
        "suppression", "distilling maxent", "distilling graddiff", "distilling rmu", "alpha", "steps",
        "unlearning needed", "matching, start", "headline"}, HELD),
    "nothing but a reference and MaxEnt": (
        {n: GOOD[n] for n in ("reference", "maxent")},
        {"distilling maxent", "alpha", "steps", "cheaper, schedule", "unlearning needed", "matching, start",
         "headline"}, NOT_RUN),
}  # fmt: skip


def told(name: str, *ends: float, before: float = 0.0, **more: object) -> Model:
    """A model of which only the scores of its attackers' seeds are known."""
    first, last = (Scores(np.array(each), facts=105) for each in ([before] * len(ends), ends))
    base = {"name": name, "label": name, "retain": 0.9, "forget": before, "asked": 210, "before": first, "after": last}
    made = referee.made_as(name)
    return Model(**base | made | {"unlearned": name in ("maxent", "rmu"), "shown": (0.0, 1.0)} | more)


BASE = [told("reference", 0.94, 0.94, 0.94, before=0.93), told("rmu", 0.8, 0.8, 0.8)]


def test_a_fact_more_in_agreeing_seeds_shows_nothing():
    """16 of 192 against 15 of 192, in each of three seeds."""
    student = told("student", *[15 / 192] * 3, recovered=True, teacher="maxent")
    assert states([*BASE, told("maxent", *[16 / 192] * 3), student])["distilling maxent"] is OPEN


def test_a_noisier_oracle_is_not_easier_to_reach():
    undo = told("undo-0.8", 0.12, 0.12, 0.12, recovered=True, alpha=0.8, teacher="maxent", compute={"schedule": 0.5})
    for oracle in ((0.02, 0.06, 0.20), (0.09, 0.09, 0.10)):
        models = [*BASE, told("maxent", 0.6, 0.6, 0.6), undo, told("oracle", *oracle)]
        assert states(models)["cheaper, schedule"] is OPEN
    assert states(models)["cheaper, first passage"] is VOID  # nobody's is known


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_rule_says_what_is_so(case, seeds):
    truths, rules, state = CASES[case]
    said = states(world(np.random.default_rng(5), truths, seeds=seeds))
    assert {name: said[name] for name in rules} == dict.fromkeys(rules, state)


def test_void_names_the_premise_and_numbers_stay_json():
    models = world(np.random.default_rng(0), changed(maxent=Truth(0.88, 0.9, retain=math.nan)))
    found = [to_json(one) for one in judge(models)]
    for premise in ("nobody diverged (maxent)", "maxent hides it before the attack (maxent: forget"):
        assert f"Not shown: {premise}" in found[0]["evidence"]
    json.dumps([*found, headline(models)], allow_nan=False)


# Sweeps: the unit is the training seed

ALIKE = {key: end if key[0] in ("reference", "suppressed") else 0.3 for key, end in SWEPT.items()}
TREND = ("alpha, maxent, 0", "alpha, maxent, 0.1", "shrinkage, maxent", "noise, maxent", "noise added, maxent")


@pytest.mark.parametrize("seeds", [2, pytest.param(3, marks=pytest.mark.thorough), 5])
def test_a_sweep_tells_no_equally_robust_models_apart(request, seeds):
    count = 2 * draws(request)
    found: collections.Counter[str] = collections.Counter()
    for draw in range(count):
        said = swept_states(swept(np.random.default_rng(draw), ALIKE, seeds=seeds))
        found.update(name for name, state in said.items() if state is HELD)
        assert seeds == 2 or VOID not in said.values()
    assert all(found[name] <= bound(count) for name in TREND), found


@pytest.mark.parametrize("seeds", [2, pytest.param(3, marks=pytest.mark.thorough), 5])
def test_a_sweep_calls_nothing_as_good_that_is_worse_by_the_margin(request, seeds):
    count, edge = 2 * draws(request), ACCURACY.margin
    truths = SWEPT | {("filtered", None, None): 0.07 + edge, ("undo", 0.8, 0.0): 0.07 + edge}
    truths |= {("undo", 0.8, 0.1): 0.07 + edge}
    found: collections.Counter[str] = collections.Counter()
    for draw in range(count):
        said = swept_states(swept(np.random.default_rng(draw), truths, seeds=seeds))
        found.update(name for name, state in said.items() if state is HELD)
    assert all(found[name] <= bound(count) for name in ("filtering", "cheaper, schedule, maxent")), found


def test_a_sweep_finds_what_is_there():
    said = swept_states(swept(np.random.default_rng(0), seeds=5))
    assert said["alpha, maxent, 0"] is said["alpha, maxent, 0.1"] is said["shrinkage, maxent"] is HELD
    assert said["noise, maxent"] is said["noise added, maxent"] is OPEN
    assert said["cheaper, first passage, maxent"] is FAILED  # .9 of the oracle's own way
    steep = swept_states(swept(np.random.default_rng(0), SWEPT | {("undo", 0.8, 0.0): 0.9}, seeds=5))
    assert steep["alpha, maxent, 0"] is FAILED
    many = swept_states(swept(np.random.default_rng(0), seeds=12))
    assert many["cheaper, schedule, maxent"] is many["filtering"] is HELD


OF_UNDO = {"alpha, maxent, 0", "shrinkage, maxent", "cheaper, schedule, maxent"}
SPOILT = {
    "filtered without its ability": ({"filtered": {"retain": 0.1}}, {"filtering"}, VOID),
    "students that did not recover": ({"undo": {"recovered": False}}, OF_UNDO, VOID),
    "diverged": ({"undo": {"diverged": True}}, OF_UNDO, VOID),
    "no number": ({"undo": {"retain": math.nan}}, OF_UNDO, VOID),
    "nothing unlearned": ({"suppressed": {"forget": 0.9}}, {*TREND, *OF_UNDO, "filtering"}, VOID),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_sweep_finds_nothing(case):
    changes, names, state = SPOILT[case]
    said = swept_states(swept(np.random.default_rng(0), seeds=5, **changes))
    assert {name: said[name] for name in names} == dict.fromkeys(names, state)


def test_what_was_not_asked_is_not_run():
    said = swept_states(
        swept(np.random.default_rng(0), {key: end for key, end in SWEPT.items() if key[0] != "filtered"})
    )
    assert said["filtering"] is NOT_RUN
    one = swept_states(swept(np.random.default_rng(0), seeds=1))
    assert {one[name] for name in (*TREND, "filtering", "cheaper, schedule, maxent")} == {NOT_RUN}


def test_an_attack_without_power_finds_nothing():
    said = swept_states(swept(np.random.default_rng(0), dict.fromkeys(SWEPT, 0.0), seeds=5))
    assert said["alpha, maxent, 0"] is said["cheaper, schedule, maxent"] is VOID


def test_two_equal_seeds_are_no_certainty():
    """A slope of −.008 in each of two seeds."""
    truths = {key: 0.3 for key in SWEPT} | {("reference", None, None): 0.9, ("suppressed", None, None): 0.6}
    sweep = swept(np.random.default_rng(0), truths, seeds=2)
    end = lambda run: 0.3 - 0.008 * (run["alpha"] or 0)  # noqa: E731
    after = {
        run["id"]: Scores(np.array([end(run)]), facts=105) if run["kind"] == "undo" else sweep.after[run["id"]]
        for run in sweep.runs
    }
    assert swept_states(dataclasses.replace(sweep, after=after))["alpha, maxent, 0"] in (OPEN, VOID)


# Intervals


def coverage(count: int, p: float, seeds: int, facts: bool = True) -> tuple[float, float]:
    """Return how often the interval of the mean over all facts holds it, and how often that over seeds alone does."""
    inside = np.zeros(2)
    for draw in range(count):
        rng = np.random.default_rng([7, draw])
        scores = referee.answers(rng, p, rng.standard_normal(len(referee.PROMPTS)), seeds, 0.0, 0.01)
        both = band(scores if facts else Scores(scores.by_seed, facts=len(referee.PROMPTS)), ACCURACY)
        alone = contrast([(1.0, Scores(scores.by_seed))]).interval()
        inside += [both[0] <= p <= both[1], alone[0] <= p <= alone[1]]
    return tuple(inside / count)  # type: ignore[return-value]


@pytest.mark.parametrize("p", [0.08, 0.3, 0.6])
@pytest.mark.parametrize("facts", [True, False], ids=["recorded", "only counted"])
def test_the_interval_of_the_mean_over_all_facts_covers(request, p, facts):
    count = 5 * draws(request)
    both, alone = coverage(count, p, 3, facts)
    assert stats.binom.cdf(round(both * count), count, 0.95) > 1e-4, both
    assert alone < 0.9  # what three seeds alone would have said


def test_a_paired_difference_needs_no_more_than_its_own_facts():
    """What two models share of the facts cancels: hard facts are hard for both."""
    rng = np.random.default_rng(0)
    easy = 3 * rng.standard_normal(len(referee.PROMPTS))
    first, second = (referee.answers(rng, p, easy, 3, 0.0, 0.0) for p in (0.5, 0.4))
    paired = contrast([(1.0, first), (-1.0, second)])
    alone = contrast([(1.0, first)]).variance + contrast([(1.0, second)]).variance
    assert paired.variance < 0.7 * alone and paired.value == pytest.approx(first.value - second.value)
    counted = [(w, Scores(s.by_seed, facts=105)) for w, s in ((1.0, first), (-1.0, second))]
    assert contrast(counted).variance > paired.variance  # not recorded: never taken as paired


def test_the_linearised_variance_is_the_jackknife_s():
    """Facts that are asked unequally often: the mean is a ratio, and leaving one fact out says how it varies."""
    rng = np.random.default_rng(1)
    prompts = rng.integers(1, 4, 200).astype(float)
    table = rng.binomial(prompts.astype(int), rng.uniform(0, 1, 200))[None] / prompts
    found = contrast([(1.0, Scores(np.average(table, axis=1, weights=prompts), table, prompts))])
    each = np.array([np.average(np.delete(table[0], i), weights=np.delete(prompts, i)) for i in range(200)])
    assert found.variance == pytest.approx(199 / 200 * np.sum((each - each.mean()) ** 2), rel=0.02)


@pytest.mark.parametrize(("right", "trials"), [(0, 20), (3, 20), (20, 20), (7, 50)])
def test_the_share_interval_is_wilson_s(right, trials):
    p = right / trials
    low, high = Estimate(p, ((p * (1 - p) / trials, 1e9),), trials).share_interval()
    expected = stats.binomtest(right, trials).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_degrees_of_freedom_are_welch_s():
    """Two independent means with variances of their own: the interval is Welch's."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, 4), rng.normal(0, 3, 7)
    found = contrast([(1.0, Scores(a)), (-1.0, Scores(b))]).interval()
    ends = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert found == pytest.approx((ends.low, ends.high))


def test_seeds_alone_are_a_paired_t_interval():
    a, b = np.array([0.5, 0.7, 0.6]), np.array([0.4, 0.5, 0.5])
    low, high = contrast([(1.0, Scores(a)), (-1.0, Scores(b))]).interval()
    ends = stats.ttest_rel(a, b).confidence_interval()
    assert (low, high) == pytest.approx((ends.low, ends.high))
    assert all(math.isnan(end) for end in contrast([(1.0, Scores(a[:1]))]).interval())


# The worst case


def test_choosing_a_learning_rate_flatters_nobody():
    """Ten rates that are all alike, at an accuracy of .08: the best of them on all facts looks better than it is."""
    prompts, honest, naive = referee.PROMPTS.astype(int), [], []
    for draw in range(60):
        rng = np.random.default_rng(draw)
        rows = []
        for rate in range(1, 11):
            right = rng.binomial(prompts, 0.08)
            scores = {"heldout": right.sum() / 192, "shown": 0.5, "retain": 0.5}
            rows.append(AttackRow(FACTS, 0, Attacker(rate, 0), items=right.tolist()))
            rows.append(AttackRow(SCORES, 0, Attacker(rate, 0), scores))
        honest.append(float(read_attack(rows, prompts=prompts.tolist()).by_seed[0, 0]))
        naive.append(float(read_attack(rows).by_seed[0, 0]))
    error = np.std(honest) / np.sqrt(len(honest))
    assert abs(np.mean(honest) - 0.08) < 4 * error
    assert np.mean(naive) > 0.08 + 0.02
