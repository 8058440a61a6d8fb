"""Attacks on one model that were tried with unequally many seeds count with those that all have."""

import pytest

from distill_jax.statistics.attack_rows import SCORES, Attacker, AttackRow
from distill_jax.statistics.robustness import of_seeds, read_attack


def rows(rate: float, scores: list[float]) -> list[AttackRow]:
    """Return the evaluations of an attack: 0 at first, and a score for each seed at step 5."""
    return [
        AttackRow(SCORES, step, Attacker(rate, seed), {"heldout": x, "shown": x, "retain": 1.0})
        for seed, score in enumerate(scores)
        for step, x in ((0, 0.0), (5, score))
    ]


@pytest.mark.unit
def test_the_worst_case_is_of_seeds_that_every_rate_was_tried_with():
    """Of the second seed only the weaker rate is known: its worst case is none."""
    both = [*rows(1e-3, [0.8]), *rows(1e-4, [0.3, 0.4])]
    attack = read_attack(of_seeds(both, 1))
    assert attack.by_seed.tolist() == [[0.0, 0.8]] and attack.best[-1] == 1e-3
    assert of_seeds(both, 2) == both
