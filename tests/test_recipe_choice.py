"""The least of many recipes has no luck in it, and the front is what no other recipe beats."""

from __future__ import annotations

import numpy as np
import pytest

from distill_jax.statistics.recipe_choice import choose_least, pareto_front
from tests.referee import PROMPTS

pytestmark = pytest.mark.unit


def drawn(rng: np.random.Generator, levels: np.ndarray, seeds: int = 5) -> np.ndarray:
    """Draw what recipes of these true levels give back, [R, S, F]; training moves each seed of each by its own luck."""
    mean = np.clip(levels[:, None, None] + 0.03 * rng.standard_normal((len(levels), seeds, 1)), 0, 1)
    return rng.binomial(PROMPTS.astype(int), np.broadcast_to(mean, (len(levels), seeds, len(PROMPTS)))) / PROMPTS


def test_of_equal_recipes_the_chosen_is_no_better_than_they_are():
    """The least of forty means is .03 lower than the truth; what is reported is not."""
    rng, levels = np.random.default_rng(0), np.full(40, 0.3)
    reported, least = [], []
    for _ in range(60):
        by_fact = drawn(rng, levels)
        scores, _picks = choose_least(by_fact, PROMPTS)
        reported.append(np.average(scores, axis=1, weights=PROMPTS).mean())
        least.append(np.average(by_fact, axis=2, weights=PROMPTS).mean(axis=1).min())
    error = np.std(reported) / np.sqrt(len(reported))
    assert abs(np.mean(reported) - 0.3) < 3 * error < 0.01
    assert np.mean(least) < 0.3 - 10 * error


def test_one_that_is_better_is_chosen_by_every_seed():
    levels = np.full(40, 0.3)
    levels[17] = 0.1
    scores, picks = choose_least(drawn(np.random.default_rng(1), levels), PROMPTS)
    assert picks.shape == (2, 5) and (picks == 17).all()
    assert np.average(scores, axis=1, weights=PROMPTS).mean() == pytest.approx(0.1, abs=0.05)


def test_a_seed_has_no_say_in_what_it_reports():
    """A recipe that is good by this seed alone is not what this seed reports."""
    by_fact = np.stack([np.full((3, 6), 0.5), np.full((3, 6), 0.6)])
    by_fact[1, 0] = 0.0
    _, picks = choose_least(by_fact, np.ones(6))
    assert picks.tolist() == [[0, 1, 1]] * 2


def test_scores_without_facts_are_chosen_by_seeds_alone():
    by_seed = np.array([[0.1, 0.2], [0.3, 0.0]])[:, :, None]
    scores, picks = choose_least(by_seed, np.ones(1))
    assert picks.tolist() == [[1, 0]] * 2 and scores.ravel().tolist() == [0.3, 0.2]


@pytest.mark.parametrize("draw", range(5))
def test_the_front_is_of_points_that_no_other_dominates(draw):
    rng = np.random.default_rng(draw)
    points = rng.integers(0, 8, (25, 2)) / 8
    on = pareto_front(*points.T)
    for i, point in enumerate(points):
        dominated = (((points <= point).all(axis=1)) & ((points < point).any(axis=1))).any()
        assert on[i] == (not dominated)
    assert any(on)
