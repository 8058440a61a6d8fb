"""From the attackers' scores to the worst case: curves over attack steps, with bands over seeds and facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from distill_jax.evals.scale import ACCURACY, Scale
from distill_jax.statistics.attack_rows import FACTS, KEPT, SCORES, AttackRow
from distill_jax.statistics.estimates import Scores, band

TIE = 1e-9  # scores that differ by less are equal but for the rounding of their means


def attack_table(rows: Sequence[AttackRow], part: str) -> tuple[list[int], list[float], np.ndarray]:
    """Return (steps [K], learning rates [R], score [S, R, K]) of one part from an attack's rows.

    A member that diverged stays at the score it had when it stopped.
    """
    evaluations = [row for row in rows if row.kind == SCORES]
    scores = [row.scores[part] for row in evaluations]
    return _table(evaluations, np.array([np.nan if score is None else score for score in scores]))


def facts_table(rows: Sequence[AttackRow], prompts: Sequence[int], kind: str = FACTS) -> np.ndarray | None:
    """Return each fact's share of prompts answered right, or document's bits per byte, [S, R, K, F].

    None where none was recorded.

    Args:
      kind: FACTS, of what is held out; KEPT, of what is to be retained.
    """
    rows = [row for row in rows if row.kind == kind]
    return _table(rows, np.array([row.items for row in rows]) / np.asarray(prompts, float))[2] if rows else None


def kept_scores(rows: Sequence[AttackRow], prompts: Sequence[int]) -> Scores | None:
    """Return the scores before an attack on what is to be retained, by fact or document; None if unrecorded."""
    row = next((row for row in rows if row.kind == KEPT), None)
    if row is None or not prompts:
        return None
    asked = np.asarray(prompts, float)
    return Scores.of_facts(np.asarray(row.items, float) / asked, asked)


def _table(rows: Sequence[AttackRow], values: np.ndarray) -> tuple[list[int], list[float], np.ndarray]:
    """Return (steps [K], learning rates to six digits [R], [S, R, K, ...]) of each row's value [N, ...]."""
    steps = sorted({row.step for row in rows})
    rates = list(dict.fromkeys(row.attacker.learning_rate for row in rows))
    seeds = list(dict.fromkeys(row.attacker.seed for row in rows))
    table = np.full((len(seeds), len(rates), len(steps), *values.shape[1:]), np.nan)
    for row, value in zip(rows, values, strict=True):
        table[seeds.index(row.attacker.seed), rates.index(row.attacker.learning_rate), steps.index(row.step)] = value
    for k in range(1, len(steps)):
        table[:, :, k] = np.where(np.isnan(table[:, :, k]), table[:, :, k - 1], table[:, :, k])
    return steps, [float(f"{rate:g}") for rate in rates], table


def of_seeds(rows: Sequence[AttackRow], count: int) -> list[AttackRow]:
    """Return the rows of the attackers of the first `count` seeds."""
    return [row for row in rows if row.attacker.seed < count]


@dataclasses.dataclass(frozen=True)
class Attack:
    """One model's attack: its worst case on held-out facts, by seed and by fact.

    Attributes:
      steps: [K], the attack steps at which was measured; rates: the attacker's learning rates.
      by_seed: the worst case of each seed, [S, K].
      by_fact: of each seed and fact, [S, K, F]; None where facts were not recorded.
      prompts: [F]; facts: how many facts there are.
      shown: the worst case on what the attacker trains on, [S, K]; shown_facts: how many facts that are.
      retain: the retain score of the members that are worst on the held-out part, [S, K].
      kept: the same of each item that is to be retained, [S, K, F]; None where they were not recorded.
      kept_prompts: [F].
      best: [K], the learning rate that brings back most on the mean of all seeds.
    """

    steps: list[int]
    rates: list[float]
    by_seed: np.ndarray
    by_fact: np.ndarray | None
    prompts: np.ndarray | None
    facts: int
    shown: np.ndarray
    retain: np.ndarray
    best: list[float | None]
    shown_facts: int = 0
    kept: np.ndarray | None = None
    kept_prompts: np.ndarray | None = None

    def scores(self, k: int) -> Scores:
        """Return the held-out scores at the k-th evaluation."""
        by_fact = None if self.by_fact is None else self.by_fact[:, k]
        return Scores(self.by_seed[:, k], by_fact, self.prompts, self.facts)

    def kept_scores(self, k: int) -> Scores:
        """Return the scores at the k-th evaluation on what is to be retained; without their items if unrecorded."""
        if self.kept is None or self.kept_prompts is None:
            return Scores(self.retain[:, k])
        return Scores(self.retain[:, k], self.kept[:, k], self.kept_prompts, len(self.kept_prompts))


def read_attack(
    rows: Sequence[AttackRow], scale: Scale = ACCURACY, prompts: Sequence[int] | None = None, facts: int = 0,
    shown_facts: int = 0, kept_prompts: Sequence[int] | None = None,
) -> Attack:  # fmt: skip
    """Read an attack's rows.

    An attacker knows the best learning rate of each step and seed. Chosen and measured on the same facts it would look
    better than it is: where facts were recorded, the rate is chosen on every other fact and measured on the rest, and
    the other way round. Of rates that bring back equally much the least destructive counts.

    Args:
      prompts: how often each held-out fact was asked, if facts were recorded.
      facts: how many held-out facts there are; shown_facts: how many the attacker trains on.
      kept_prompts: how often each item that is to be retained was asked, if they were recorded.
    """
    steps, rates, heldout = attack_table(rows, "heldout")
    shown, retain = (attack_table(rows, part)[2] for part in ("shown", "retain"))
    by_fact = None if prompts is None else facts_table(rows, prompts)
    recorded = by_fact is not None and by_fact.shape[:3] == heldout.shape  # from the attack's beginning on
    # A single learning rate leaves no choice, and a single fact no halves.
    if prompts is not None and by_fact is not None and recorded and by_fact.shape[3] > 1:
        picks = [_chosen(by_fact, prompts, retain, scale, half) for half in (1, 0)]
        even, odd = (_taken(by_fact, pick) for pick in picks)
        by_fact = np.where(np.arange(len(prompts)) % 2 == 0, even, odd)
        by_seed = np.average(by_fact, axis=2, weights=prompts)
    else:
        picks, by_seed, by_fact = [_most(heldout, retain, scale)], scale.best(heldout, axis=1), None
    taken = [np.take_along_axis(retain, pick[:, None], axis=1)[:, 0] for pick in picks]
    kept = facts_table(rows, kept_prompts, KEPT) if kept_prompts else None
    if kept is not None:  # before they were recorded at every evaluation, a run has those of the first alone
        kept = np.mean([_taken(kept, pick) for pick in picks], axis=0) if kept.shape[:3] == heldout.shape else None
    return Attack(
        steps, rates, by_seed, by_fact, None if prompts is None else np.asarray(prompts, float), facts,
        scale.best(shown, axis=1), np.mean(taken, axis=0),
        _best_rates(heldout.mean(axis=0), retain.mean(axis=0), rates, scale), shown_facts,
        kept, None if kept is None else np.asarray(kept_prompts, float),
    )  # fmt: skip


def _taken(by_fact: np.ndarray, pick: np.ndarray) -> np.ndarray:
    """Return [S, K, F], of scores [S, R, K, F] those of the learning rates [S, K]."""
    taken: np.ndarray = np.take_along_axis(by_fact, pick[:, None, :, None], axis=1)[:, 0]
    return taken


def _best_rates(heldout: np.ndarray, retain: np.ndarray, rates: Sequence[float], scale: Scale) -> list[float | None]:
    """Return the rate of most ability at each step, [K] of scores [R, K]; None where no attacker has a score."""
    known = np.isfinite(heldout).any(axis=0)
    scores = np.where(np.isnan(heldout), -scale.sign * np.inf, heldout)
    best = _most(scores[None], retain[None], scale)[0]
    return [rates[i] if good else None for i, good in zip(best, known, strict=True)]


def _most(heldout: np.ndarray, retain: np.ndarray, scale: Scale) -> np.ndarray:
    """Return [S, K], the learning rate with most ability of scores [S, R, K]; of equal ones the least destructive."""
    best = scale.best(heldout, axis=1)[:, None]
    tied = (np.abs(heldout - best) < TIE) | (np.isnan(heldout) & np.isnan(best))
    ability = np.where(np.isnan(retain), -np.inf, scale.sign * retain)
    return np.where(tied, np.maximum(ability, -1e300), -np.inf).argmax(axis=1)


def _chosen(by_fact: np.ndarray, prompts: Sequence[int], retain: np.ndarray, scale: Scale, half: int) -> np.ndarray:
    """Return [S, K], the learning rate that does best on the facts whose number is odd (1) or even (0)."""
    mean = np.average(by_fact[..., half::2], axis=3, weights=np.asarray(prompts)[half::2])
    return _most(mean, retain, scale)


class Band(TypedDict):
    """The ends of a curve's intervals."""

    low: list[float | None]
    high: list[float | None]


class CurveSummary(Band):
    """A worst-case curve over attack steps, and the worst of each seed, [S, K]."""

    worst: list[float | None]
    by_seed: list[list[float | None]]


class AttackCurves(TypedDict, total=False):
    """The curves of an attack on one model, as a summary holds them.

    Attributes:
      counted: how many attackers had not diverged at each step.
      retain_at_worst: the retain score of the very members that are worst on the held-out part, so that an attacker who
        wrecks the model is seen to do so; retain_band: its ends, where the items were recorded.
    """

    steps: list[int]
    counted: list[int]
    forget_heldout: CurveSummary
    forget_shown: CurveSummary
    retain_at_worst: list[float | None]
    best_learning_rate: list[float | None]
    retain_band: Band


def curves(attack: Attack, diverged_at: Mapping[str, int] | None = None, scale: Scale = ACCURACY) -> AttackCurves:
    """Return an attack's curves: for each part the worst case, averaged over seeds.

    Args:
      diverged_at: member -> the step at which it diverged.
    """
    stops = list((diverged_at or {}).values())
    members = len(attack.by_seed) * len(attack.rates)
    counted = [members - sum(stop < step for stop in stops) for step in attack.steps]
    shown = [Scores(attack.shown[:, k], facts=attack.shown_facts) for k in range(len(attack.steps))]
    heldout = [attack.scores(k) for k in range(len(attack.steps))]
    kept = [attack.kept_scores(k) for k in range(len(attack.steps))] if attack.kept is not None else []
    drawn: AttackCurves = {
        "steps": attack.steps,
        "counted": counted,
        "forget_heldout": _curve(heldout, attack.by_seed, scale),
        "forget_shown": _curve(shown, attack.shown, scale),
        "retain_at_worst": _plain(attack.retain.mean(axis=0)),
        "best_learning_rate": attack.best,
    }
    if kept:
        drawn["retain_band"] = _ends(kept, scale)
    return drawn


def _curve(scores: Sequence[Scores], by_seed: np.ndarray, scale: Scale) -> CurveSummary:
    by_seeds = [_plain(seed) for seed in by_seed]
    return {"worst": _plain(by_seed.mean(axis=0)), **_ends(scores, scale), "by_seed": by_seeds}


def _ends(scores: Sequence[Scores], scale: Scale) -> Band:
    low, high = np.array([band(one, scale) for one in scores]).T
    return {"low": _plain(low), "high": _plain(high)}


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else round(float(v), 6) for v in values]
