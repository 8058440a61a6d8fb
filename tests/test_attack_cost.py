"""What an attacker spends to reach a level, and its ratio to another's: against the choice itself, and twins."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from distill_jax.evals.scale import ACCURACY
from distill_jax.statistics.attack_choice import Configuration, choose
from distill_jax.statistics.attack_cost import SpendingCurve, costs, ratios

pytestmark = pytest.mark.unit
SEEDS, STEPS, FACTS = 4, 3, 30
PROMPTS = np.arange(1.0, FACTS + 1) % 4 + 1


def attacks(rng: np.random.Generator, count: int, ends: float = 1.0, unit: float = 1.0) -> list[Configuration]:
    """Return attacks that bring back ever more, at costs of their own; some wreck the model."""
    rise = np.linspace(0, ends, STEPS)[:, None] * rng.uniform(0.3, 1, (count, SEEDS, STEPS, FACTS))
    out = []
    for i, heldout in enumerate(rise):
        spent = unit * (i + 1.0) * np.arange(STEPS)
        retain = np.where(rng.random((SEEDS, STEPS)) < 0.8, 0.9, 0.2)
        out.append(Configuration(str(i), str(i), 1e-3, spent, spent, spent, heldout, retain, (-1, -1, 0, 1)[i % 4]))
    return out


def test_within_each_cost_it_brings_back_what_the_choice_among_attacks_does():
    tried = attacks(np.random.default_rng(0), 8)
    curve = SpendingCurve(tried, PROMPTS, 0.6)
    facts = np.random.default_rng(1).integers(0, 3, FACTS).astype(float)
    for weight in (np.ones(FACTS), facts):
        values = dict(zip(curve.costs, curve.values(np.ones(SEEDS), weight), strict=True))  # the last of equal costs
        for cost, value in values.items():
            choice = choose(tried, PROMPTS * weight, ("flops", cost), 0.6)
            assert math.isnan(value) if choice is None else value == pytest.approx(choice.scores.value, abs=1e-12)
    assert len(values) > 10


def test_a_seed_that_is_drawn_twice_is_chosen_for_by_the_others_alone():
    """Against loops over the seeds that were drawn."""
    tried = [c for c in attacks(np.random.default_rng(2), 6) if c.proposed_by == -1]
    drawn = [0, 0, 2, 3]
    pool = [(c, k) for c in tried for k in range(STEPS)]
    expected = 0.0
    for half, seed in itertools.product((0, 1), drawn):

        def mean(which: int, of: int, c: Configuration, k: int) -> float:
            return float(np.average(c.heldout[of, k, which::2], weights=PROMPTS[which::2]))

        others = [s for s in drawn if s != seed]
        best = max(pool, key=lambda each: sum(mean(half, s, *each) for s in others))
        expected += mean(1 - half, seed, *best) / len(drawn) * PROMPTS[1 - half :: 2].sum() / PROMPTS.sum()
    counts = np.bincount(drawn, minlength=SEEDS).astype(float)
    assert SpendingCurve(tried, PROMPTS, 0.0).values(counts, np.ones(FACTS))[-1] == pytest.approx(expected, abs=1e-12)


def test_a_ratio_of_twins_is_one_and_of_an_attack_twice_as_dear_two():
    one, dear = (SpendingCurve(attacks(np.random.default_rng(3), 8, unit=unit), PROMPTS, 0.6) for unit in (1.0, 2.0))
    for other, value in ((one, 1.0), (dear, 0.5)):
        (ratio,) = ratios(one, other, [0.3], ACCURACY)
        assert (ratio.value, ratio.bound, ratio.low, ratio.high) == (value, None, value, value)


def test_levels_that_are_not_reached_leave_the_interval_open():
    able, unable = (SpendingCurve(attacks(np.random.default_rng(4), 8, ends), PROMPTS, 0.6) for ends in (1.0, 0.1))
    assert [c.reached for c in costs(able, [0.3, 2.0], ACCURACY)] == [True, False]
    assert costs(unable, [0.3], ACCURACY)[0].flops == unable.costs.max()
    (at_least,), (at_most,) = ratios(unable, able, [0.3], ACCURACY), ratios(able, unable, [0.3], ACCURACY)
    assert (at_least.bound, at_least.high) == ("at least", math.inf) and 0 < at_least.low <= at_least.value
    assert (at_most.bound, at_most.low) == ("at most", 0.0) and at_most.value <= at_most.high < math.inf
    (neither,) = ratios(unable, unable, [0.3], ACCURACY)
    assert (neither.value, neither.low, neither.high) == (None, 0.0, math.inf)


def test_an_interval_covers_the_ratio_of_two_models_attacks():
    """Two models that differ in what an attacker spends by a factor of two, seen through noisy seeds and facts."""
    covered = 0
    for draw in range(20):
        curves = []
        for slow in (2.0, 1.0):
            rng = np.random.default_rng([draw, int(slow)])
            spent = np.linspace(0, 40, 41)
            level = np.clip(0.02 * spent / slow + rng.normal(0, 0.03, (SEEDS, 1)), 0, 1)[..., None]
            heldout = (rng.random((SEEDS, 41, 4 * FACTS)) < level).astype(float)
            tried = Configuration("a", "a", 1e-3, spent, spent, spent, heldout, np.ones((SEEDS, 41)))
            curves.append(SpendingCurve([tried], np.ones(4 * FACTS), 0.0))
        (ratio,) = ratios(*curves, [0.3], ACCURACY)
        covered += ratio.low <= 2.0 <= ratio.high
    assert covered >= 16  # of 20; a true 95 % has fewer once in 400 times
