"""What a catalogue of attacks brings back: chosen on some facts and seeds, reported on others.

The best of many noisy numbers looks better than it is. So a configuration is chosen by what it brings back of every
other held-out fact to the *other* seeds, and what it brings back of the remaining facts to this seed is reported; then
the halves change places, and both are averaged (cross-fitting). Under pure noise the result has no bias, however many
attacks were tried.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from distill_jax.statistics.estimates import Scores

HALVES = (0, 1)  # of the facts: those of even and of odd number
GRID = -1  # proposed by no half


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What one attack did at one learning rate, to S seeds, at the K steps at which it was measured.

    Attributes:
      attack: identity of the attack's settings, by which attacks are told apart; name: what it is called.
      rate: learning rate; NaN of an attack without training.
      steps, rows, flops: [K], what one attacker had spent; rows are all that it read, those to retain among them.
      heldout: share of each held-out fact's prompts answered right, [S, K, F].
      retain: [S, K].
      proposed_by: the half of the facts whose scores proposed to try it, or GRID; it is chosen by no other half.
    """

    attack: str
    name: str
    rate: float
    steps: np.ndarray
    rows: np.ndarray
    flops: np.ndarray
    heldout: np.ndarray
    retain: np.ndarray
    proposed_by: int = GRID

    def spent(self, axis: str) -> np.ndarray:
        """Return what was spent at each measurement, [K]: "steps", "rows" or "flops"."""
        return {"steps": self.steps, "rows": self.rows, "flops": self.flops}[axis]

    def of_seeds(self, count: int) -> Configuration:
        """Return what it did to the first seeds: attacks are compared on those that all of them were tried with."""
        return dataclasses.replace(self, heldout=self.heldout[:count], retain=self.retain[:count])


@dataclasses.dataclass(frozen=True)
class Choice:
    """What attackers end with.

    Attributes:
      by_fact: [S, F]; prompts: [F].
      retain: [S], of the chosen attackers.
      chosen: (configuration, measurement) for each half and seed, [2][S].
    """

    by_fact: np.ndarray
    prompts: np.ndarray
    retain: np.ndarray
    chosen: tuple[tuple[tuple[Configuration, int], ...], ...]

    @functools.cached_property
    def scores(self) -> Scores:
        """Return the held-out scores."""
        return Scores(np.average(self.by_fact, axis=1, weights=self.prompts), self.by_fact, self.prompts)

    def winner(self) -> tuple[Configuration, int]:
        """Return the configuration and its measurement that most halves and seeds chose."""
        votes: dict[tuple[str, float], list[tuple[Configuration, int]]] = {}
        for configuration, k in (each for half in self.chosen for each in half):
            votes.setdefault((configuration.attack, configuration.rate), []).append((configuration, k))
        return max(votes.values(), key=len)[0]


def choose(
    configurations: Sequence[Configuration], prompts: np.ndarray, budget: tuple[str, float], floor: float = -math.inf
) -> Choice | None:
    """Return what attackers end with who may spend a budget; None if it allows a half no measurement.

    Args:
      prompts: how often each fact was asked, [F].
      budget: what is limited ("steps", "rows" or "flops") and how much there is of it.
      floor: the retain score below which, on the mean over seeds, an attacked model does not count.
    """
    axis, amount = budget
    pool = [
        (configuration, k)
        for configuration in configurations
        for k in np.flatnonzero(configuration.spent(axis) <= amount)
        if configuration.retain[:, k].mean() >= floor
    ]
    if not pool:
        return None
    heldout = np.stack([configuration.heldout[:, k] for configuration, k in pool])  # [C, S, F]
    origin = np.array([configuration.proposed_by for configuration, _ in pool])
    retain = np.stack([configuration.retain[:, k] for configuration, k in pool])
    seeds = np.arange(heldout.shape[1])
    by_fact, kept, chosen = np.empty(heldout.shape[1:]), [], []
    for half in HALVES:
        allowed = (origin == GRID) | (origin == half)
        if not allowed.any():  # all that is left was proposed by the facts on which it would be reported
            return None
        value = _of_others(half_mean(heldout, prompts, half))
        value = np.where(allowed[:, None] & np.isfinite(value), value, -np.inf)
        pick = value.argmax(axis=0)
        by_fact[:, 1 - half :: 2] = heldout[pick, seeds, 1 - half :: 2]
        kept.append(retain[pick, seeds])
        chosen.append(tuple(pool[i] for i in pick))
    return Choice(by_fact, prompts, np.mean(kept, axis=0), tuple(chosen))


def half_mean(heldout: np.ndarray, prompts: np.ndarray, half: int) -> np.ndarray:
    """Return the share answered right over every other fact, [...] of [..., F]."""
    return np.average(heldout[..., half::2], axis=-1, weights=prompts[half::2])


def _of_others(value: np.ndarray) -> np.ndarray:
    """Return of [C, S] the mean over all other seeds; a single seed has itself."""
    count = value.shape[1]
    return (value.sum(axis=1, keepdims=True) - value) / (count - 1) if count > 1 else value


def trials(
    configurations: Sequence[Configuration], prompts: np.ndarray, half: int, floor: float = -math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Return what each attacker brings back of a half of the facts, and of the other half, [N] and [N].

    A trial is a configuration with one seed. It stops where it has most of the first half, among the measurements that
    count by the rule of `choose`, those at which the mean over seeds keeps at least the floor; one without any ends
    with nothing.
    """
    known, other = [], []
    for configuration in configurations:
        if configuration.proposed_by not in (GRID, half):
            continue
        values, reports = (half_mean(configuration.heldout, prompts, h) for h in (half, 1 - half))  # [S, K]
        counts = configuration.retain.mean(axis=0) >= floor  # [K]
        values = np.where(counts & np.isfinite(values), values, -np.inf)
        best = values.argmax(axis=1)[:, None]
        chosen = np.take_along_axis(values, best, axis=1)[:, 0]
        known.append(np.maximum(chosen, 0.0))
        other.append(np.where(np.isfinite(chosen), np.take_along_axis(reports, best, axis=1)[:, 0], 0.0))
    return np.concatenate(known), np.concatenate(other)


def expected_best(known: np.ndarray, other: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Return what the best of n trials is expected to bring back, for each n of `counts`, over all random orders.

    Of n trials drawn from N without replacement the one of rank j by `known` is the best with probability
    C(j - 1, n - 1) / C(N, n); its `other` is what is reported. Trials of one rank share their probability.
    """
    order = np.argsort(known, kind="stable")
    _, tied = np.unique(known[order], return_inverse=True)
    reported = (np.bincount(tied, weights=other[order]) / np.bincount(tied))[tied]
    total, rank = len(known), np.arange(1, len(known) + 1)
    out = []
    for n in counts:
        n = min(n, total)
        log = _log_choose(rank - 1, n - 1) - _log_choose(np.array([total]), n)
        weight = np.where(rank >= n, np.exp(log), 0.0)
        out.append(float(weight @ reported))
    return np.array(out)


def _log_choose(n: np.ndarray, k: int) -> np.ndarray:
    def term(i: int) -> float:
        return math.lgamma(i + 1) - math.lgamma(k + 1) - math.lgamma(i - k + 1) if i >= k else -math.inf

    return np.array([term(int(i)) for i in n])
