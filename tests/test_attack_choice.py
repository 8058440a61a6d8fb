"""The choice among attacks before a referee: nulls, planted winners, simulation, and what may not be chosen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distill_jax.evals.scale import ACCURACY
from distill_jax.reports.attack_catalogue import AttackedModel, summary
from distill_jax.statistics.attack_choice import (
    GRID,
    Configuration,
    choose,
    expected_best,
    trials,
)
from distill_jax.statistics.estimates import band

pytestmark = pytest.mark.unit
FACTS, SEEDS, STEPS = 52, 5, 3
PROMPTS = np.ones(FACTS)
ANY = ("steps", 1e9)


def configuration(heldout: np.ndarray, index: int = 0, retain: float | np.ndarray = 1.0, **more) -> Configuration:
    """Return what an attack did; heldout [S, K, F]."""
    steps = np.arange(heldout.shape[1]) * 10
    kept = np.broadcast_to(retain, heldout.shape[:2])
    what = {"attack": f"id-{index}", "name": f"attack {index}", "rate": 1e-3} | more
    return Configuration(steps=steps, rows=steps * 4, flops=steps * 1e6, heldout=heldout, retain=kept, **what)


def noise(rng: np.random.Generator, count: int, level: float, luck: float = 0.0) -> list[Configuration]:
    """Return equal attacks: facts differ in difficulty, and each run has a luck of its own with all facts."""
    difficulty = np.clip(rng.normal(level, 0.1, FACTS), 0.01, 0.99)
    runs = rng.normal(0, luck, (count, SEEDS, STEPS, 1)) if luck else 0.0
    drawn = rng.random((count, SEEDS, STEPS, FACTS)) < np.clip(difficulty + runs, 0, 1)
    return [configuration(one.astype(float), i) for i, one in enumerate(drawn)]


@pytest.mark.parametrize("luck", [0.0, 0.05])
def test_the_best_of_many_equal_attacks_looks_no_better_than_one(luck):
    """Chosen and reported on the same runs and facts, the best of 40 would look .15 better; lucky runs do not help."""
    reported, single, naive = [], [], []
    for draw in range(60):
        rng = np.random.default_rng(draw)
        attacks = noise(rng, 40, 0.3, luck)
        choice = choose(attacks, PROMPTS, ANY)
        reported.append(choice.scores.value)
        single.append(np.mean([a.heldout.mean() for a in attacks]))
        naive.append(max(a.heldout.mean(axis=(0, 2)).max() for a in attacks))
    gap = np.array(reported) - np.array(single)
    assert abs(gap.mean()) < 3 * gap.std() / np.sqrt(len(gap)) + 1e-12
    assert np.mean(naive) - np.mean(single) > 0.04  # what is avoided


def test_an_interval_covers_what_the_chosen_attack_truly_brings_back():
    covered = 0
    for draw in range(100):
        rng = np.random.default_rng(1000 + draw)
        low, high = band(choose(noise(rng, 10, 0.3), PROMPTS, ANY).scores, ACCURACY)
        covered += low <= 0.3 <= high
    assert covered >= 88  # of 95; 88 or fewer happens three times in a thousand


def test_a_better_attack_is_found_and_named():
    rng = np.random.default_rng(0)
    attacks = noise(rng, 20, 0.2)
    strong = (rng.random((SEEDS, STEPS, FACTS)) < 0.5).astype(float)
    choice = choose([*attacks, configuration(strong, 99)], PROMPTS, ANY)
    assert choice.winner()[0].name == "attack 99" and abs(choice.scores.value - 0.5) < 0.1


def test_attacks_of_one_name_and_rate_are_told_apart_by_identity():
    weak, strong = np.zeros((SEEDS, STEPS, FACTS)), np.ones((SEEDS, STEPS, FACTS))
    same = [configuration(x, i, name="lion") for i, x in enumerate((weak, strong, weak))]
    choice = choose(same, PROMPTS, ANY)
    assert choice.scores.value == 1.0 and choice.winner()[0].attack == "id-1"


def test_a_budget_and_a_floor_of_ability_bound_what_counts():
    """A model whose retain ability fell below the floor does not count, however much came back."""
    rising = np.broadcast_to(np.array([0.0, 0.5, 1.0])[:, None], (SEEDS, STEPS, FACTS))
    wrecked = configuration(rising, retain=np.array([0.9, 0.8, 0.2]))
    values = {
        (axis, amount): choose([wrecked], PROMPTS, (axis, amount), floor).scores.value
        for axis, amount, floor in [("steps", 9, 0.0), ("rows", 40, 0.0), ("flops", 2e7, 0.0), ("steps", 20, 0.72)]
    }
    assert list(values.values()) == [0.0, 0.5, 1.0, 0.5]
    assert choose([wrecked], PROMPTS, ANY, floor=0.95) is None
    kept = choose([wrecked], PROMPTS, ANY, 0.72)
    np.testing.assert_allclose(kept.retain, 0.8)


def test_what_one_half_of_the_facts_proposed_is_not_reported_on_that_half():
    rng = np.random.default_rng(0)
    overfit = np.zeros((SEEDS, STEPS, FACTS))
    overfit[..., 1::2] = 1.0  # all of the odd facts
    grid = configuration((rng.random((SEEDS, STEPS, FACTS)) < 0.2).astype(float), 0)
    odd = configuration(overfit, 1, proposed_by=1)
    choice = choose([grid, odd], PROMPTS, ANY)
    assert {c.proposed_by for c, _ in choice.chosen[0]} == {GRID} and {c.proposed_by for c, _ in choice.chosen[1]} == {
        1
    }
    assert choice.by_fact[:, 0::2].max() == 0.0  # chosen by the odd facts, reported on the even


def test_the_expected_best_of_n_trials_is_that_of_a_simulation():
    """Against every order of six trials with ties, and against draws from sixty."""
    known, other = np.array([0.1, 0.3, 0.3, 0.0, 0.7, 0.3]), np.array([0.2, 0.1, 0.5, 0.0, 0.4, 0.9])
    exact = expected_best(known, other, range(1, 7))
    for n in range(1, 7):
        draws = [sub for sub in itertools.permutations(range(6), n)]
        found = [np.mean([other[i] for i in sub if known[i] == max(known[list(sub)])]) for sub in draws]
        assert exact[n - 1] == pytest.approx(np.mean(found), abs=1e-12)
    rng = np.random.default_rng(0)
    many = rng.random(60)
    for n in (1, 7, 30, 60):
        simulated = [many[rng.permutation(60)[:n]].max() for _ in range(4000)]
        assert expected_best(many, many, [n])[0] == pytest.approx(np.mean(simulated), abs=0.01)


def test_more_trials_of_noise_bring_back_no_more():
    attacks = [a for draw in range(4) for a in noise(np.random.default_rng(draw), 40, 0.3)]
    curve = np.mean([expected_best(*trials(attacks, PROMPTS, half), (1, 10, 100, 800)) for half in (0, 1)], axis=0)
    assert np.ptp(curve) < 0.05


def test_a_trial_below_the_floor_ends_with_nothing():
    known, other = trials([configuration(np.ones((SEEDS, STEPS, FACTS)), retain=0.1)], PROMPTS, 0, floor=0.5)
    assert known.tolist() == other.tolist() == [0.0] * SEEDS


def test_a_trial_counts_by_the_rule_of_the_table_the_mean_over_seeds():
    """Seeds on both sides of the floor: their mean decides for all of them, in the table and in the curve."""
    retain = np.broadcast_to(np.array([0.1, 0.9, 0.9, 0.9, 0.9])[:, None], (SEEDS, STEPS))
    mixed = [configuration(np.ones((SEEDS, STEPS, FACTS)), retain=retain)]
    for floor, ends in ((0.7, 1.0), (0.8, 0.0)):
        assert trials(mixed, PROMPTS, 0, floor)[1].tolist() == [ends] * SEEDS
        assert (choose(mixed, PROMPTS, ANY, floor) is None) == (ends == 0.0)


def slowdown_of(model: float, oracle: float) -> list[dict]:
    """Return the slowdown of a model and an oracle that rise to so much at 2e7 FLOPs."""

    def attacked(end: float) -> AttackedModel:
        rising = np.broadcast_to(np.array([0.0, end / 2, end])[:, None], (SEEDS, STEPS, FACTS))
        return AttackedModel([configuration(rising)], [], PROMPTS, 0.0, 1.0)

    found = summary({"m": attacked(model), "o": attacked(oracle)}, ACCURACY, "o")
    return found["models"]["m"]["slowdown"]


def test_compute_to_a_level_is_a_share_of_the_oracles_attackers_or_bounded_by_it():
    """Levels of .1, .2 and .5: a model that ends at .6 against oracles at .6, .25 and .05, and the other way round."""
    assert [(one["share"], one["bound"]) for one in slowdown_of(0.6, 0.6)] == [(1.0, None)] * 3
    assert [(one["share"], one["bound"]) for one in slowdown_of(0.6, 0.25)] == [
        *((1.0, None), (0.5, None), (1.0, "at most")),
    ]
    robust = slowdown_of(0.05, 0.25)
    assert [(one["share"], one["bound"]) for one in robust] == [(2.0, "at least"), (1.0, "at least"), (None, None)]


def test_a_catalogue_that_trains_nothing_has_one_budget_and_no_compute():
    """Edits of weights alone, on a run without an attack of record."""
    edited = AttackedModel([configuration(np.ones((SEEDS, 1, FACTS)))], [], PROMPTS, 0.0, 0.0)
    found = summary({"m": edited}, ACCURACY)
    assert found["budgets"] == [{"axis": "steps", "amount": 0.0}]
    (row,), slowdown = found["models"]["m"]["by_budget"], found["models"]["m"]["slowdown"]
    assert row["bounded"]["worst"] == 1.0 and row["record"] is None
    assert [(one["flops"], one["reached"], one["share"]) for one in slowdown] == [(0.0, True, None)] * 3


def test_what_one_half_proposed_is_never_reported_on_it_even_where_nothing_else_is_left():
    """The grid broke every model; what only the even facts proposed may not be chosen by the odd ones."""
    heldout = np.ones((SEEDS, STEPS, FACTS))
    grid, proposed = configuration(heldout, 0, retain=0.1), configuration(heldout, 1, proposed_by=0)
    assert choose([grid, proposed], PROMPTS, ANY, floor=0.5) is None
    assert choose([grid, proposed], PROMPTS, ANY).scores.value == 1
