"""The best of many recipes without the luck of the draw, and which recipes no other beats.

The best of many noisy numbers looks better than it is. For each training seed the recipe is chosen by the *other* seeds
and every other fact, and reported on this seed and the rest of the facts; then the halves change places (cross-fitting,
as for attacks in `attack_choice`). If none is any good, what is reported is no better than they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill_jax.statistics.attack_choice import HALVES, half_mean


def choose_least(by_fact: np.ndarray, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of the recipe that gives back least, [S, F], and which it is by half and seed, [2, S].

    Args:
      by_fact: of each recipe, training seed and fact, [R, S, F] with at least two seeds.
      prompts: how often each fact was asked, [F].
    """
    seeds = np.arange(by_fact.shape[1])
    scores, picks = np.empty(by_fact.shape[1:]), []
    for half in HALVES if len(prompts) > 1 else (0, 0):
        known = half_mean(by_fact, prompts, half)  # [R, S]
        pick = (known.sum(axis=1, keepdims=True) - known).argmin(axis=0)
        reported = slice(1 - half, None, 2) if len(prompts) > 1 else slice(None)
        scores[:, reported] = by_fact[pick, seeds, reported]
        picks.append(pick)
    return scores, np.array(picks)


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Return whether each point is on the front: no other has less of one and no more of the other."""
    points = list(zip(costs, values, strict=True))
    return [not any(x <= cost and y <= value and (x, y) != (cost, value) for x, y in points) for cost, value in points]
