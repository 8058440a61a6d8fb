"""Recipes against retraining: is any as robust as the oracle for a quarter of its compute?

A recipe is compared if every training seed of it kept or regained its retain ability. Of those that cost no more than a
quarter the one that gives back least is chosen by other training seeds and other facts than it is reported on
(`statistics.recipe_choice`), so that one test at the full level is asked, however many recipes there are. It passes if
the whole interval of what it gives back beyond the oracle is below the margin, and that of its compute below a quarter.
That none passes is shown where each by itself is beyond the margin or a quarter (an intersection-union test).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from distill_jax.experiment.roles import Role
from distill_jax.reports.premises import CONVENTIONS
from distill_jax.reports.sweep_evidence import (
    MARGIN,
    Run,
    Sweep,
    at_common_seeds,
    by_training_seed,
    difference,
    grouped,
    lacking,
    premises_on_all,
)
from distill_jax.statistics.conclusions import Conclusion, Effect, State, conclude
from distill_jax.statistics.estimates import Scores
from distill_jax.statistics.recipe_choice import choose_least
from distill_jax.statistics.student_t import mean_interval

QUARTER = 0.25
# What is no recipe for a model that is to be released, but a measure of others or an attack on them.
CONTROLS = (
    *(Role.REFERENCE, Role.ORACLE, Role.SUPPRESSED_ORACLE, Role.MATCHED_REFERENCE, Role.MATCHED_STUDENT),
    *(Role.LOCKED, Role.ERASED, Role.QUANTISED, Role.REFERENCE_STUDENT),
)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A recipe's training seeds, each with the oracle of its seed.

    Attributes:
      pairs: by seed; twins of one seed stand beside each other.
      costs: of each pair, as a share of the oracle's.
    """

    label: str
    pairs: Sequence[tuple[Run, Run]]
    costs: np.ndarray

    @property
    def seeds(self) -> set[int]:
        """Return its training seeds."""
        return {run["seed"] for run, _ in self.pairs}

    def scores(self, sweep: Sweep) -> tuple[Scores, Scores]:
        """Return what it and its oracle give back, by training seed."""
        own, oracle = (by_training_seed(sweep, [pair[i] for pair in self.pairs]) for i in (0, 1))
        return own, oracle

    def effects(self, sweep: Sweep, choices: int = 1) -> list[Effect]:
        """Return what it gives back beyond the oracle, and its compute, as one of several that might pass."""
        return _effects(self.label, *self.scores(sweep), self.costs, choices)


def _effects(label: str, own: Scores, oracle: Scores, costs: np.ndarray, choices: int = 1) -> list[Effect]:
    gap = difference(f"{label} − oracle", [(1.0, own), (-1.0, oracle)], "below", MARGIN, choices)
    low, high = (float(end) for end in mean_interval(costs, 1 - 0.05 / choices))
    return [gap, Effect("compute", float(costs.mean()), low, high, "below", QUARTER, len(costs))]


def recipes(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return runs by the identity of their recipe, but those of controls."""
    own = (run for run in runs if run["kind"] not in CONTROLS)
    return {recipe: same for (recipe,), same in grouped(own, "recipe").items()}


def affordable(sweep: Sweep, way: str) -> Conclusion:
    """Some recipe gives no more back than the oracle, for at most a quarter of retraining."""
    name = f"affordable, {way.replace('_', ' ')}"
    claim = f"Some recipe reaches the robustness of retraining for at most {QUARTER:.0%} of its compute "
    claim += f"({CONVENTIONS[way]})."

    def compared(sweep: Sweep) -> list[list[Run]]:
        oracles = sweep.of(Role.ORACLE)
        return [side for same in recipes(sweep.usable).values() for side in at_common_seeds(same, oracles)]

    candidates = _candidates(sweep, way)
    if not candidates:
        return lacking(sweep, name, claim, "recipe beside its oracle at two training seeds", compared)
    lost = [recipe for recipe in recipes(sweep.runs) if recipe in sweep.lost]
    text, effects = _decided(sweep, candidates)
    text += f" Of {len(candidates)} recipes."
    text += f" {len(lost)} more lost their retain ability." if lost else ""
    return conclude(name, claim, premises=premises_on_all(sweep), effects=effects, evidence=text)


def share(run: Run, way: str) -> float | None:
    """Return a run's whole compute over the oracle's, by a key of `CONVENTIONS`; None where it is not known."""
    shares = run["vs_first_passage"] if way == "first_passage" else run["vs_retraining"]
    return shares["whole"] if shares else None


def _candidates(sweep: Sweep, way: str) -> list[Candidate]:
    """Return the recipes that stand beside their oracle at two training seeds or more, the cheapest first."""
    oracles = {run["seed"]: run for run in sweep.of(Role.ORACLE)}
    out = []
    for same in recipes(sweep.usable).values():
        paired = [run for run in same if run["seed"] in oracles and share(run, way) is not None]
        if len({run["seed"] for run in paired}) > 1:
            costs = np.array([share(run, way) for run in paired])
            out.append(Candidate(paired[0]["label"], [(run, oracles[run["seed"]]) for run in paired], costs))
    return sorted(out, key=lambda one: float(one.costs.mean()))


def _decided(sweep: Sweep, candidates: Sequence[Candidate]) -> tuple[str, list[Effect]]:
    """Return the effects of the chosen recipe; where each is refuted by itself, those of the nearest."""
    each = [one.effects(sweep) for one in candidates]
    beyond = [max(gap.estimate - MARGIN, cost.estimate - QUARTER) for gap, cost in each]
    left = [i for i, effects in enumerate(each) if all(effect.state is not State.FAILED for effect in effects)]
    if not left:
        nearest = int(np.argmin(beyond))
        return f"Each is beyond the margin or a quarter; the nearest is {candidates[nearest].label}.", each[nearest]
    cheap = [one for one in candidates if one.costs.mean() <= QUARTER]
    if cheap:
        most = max(len(one.seeds) for one in cheap)
        text, effects = _chosen(sweep, [one for one in cheap if len(one.seeds) == most])
        if all(effect.state is not State.FAILED for effect in effects):
            return text, effects
    # The chosen is refuted, and that says nothing of those that are not: such as of fewer seeds, or somewhat dearer.
    nearest = min(left, key=lambda i: beyond[i])
    text = f"{len(left)} of {len(candidates)} are not refuted; the nearest is {candidates[nearest].label}."
    return text, candidates[nearest].effects(sweep, len(candidates))


def _chosen(sweep: Sweep, cheap: Sequence[Candidate]) -> tuple[str, list[Effect]]:
    """Return the effects of the recipe that gives back least, each seed's chosen without it."""
    common = sorted(set.intersection(*(one.seeds for one in cheap)))
    rows = [[sorted(one.seeds).index(seed) for seed in common] for one in cheap]
    own = [one.scores(sweep)[0] for one in cheap]
    costs = np.array([[_mean_cost(one, seed) for seed in common] for one in cheap])
    oracle = _rows(cheap[0].scores(sweep)[1], rows[0])
    tables = np.stack([_table(_rows(scores, row)) for scores, row in zip(own, rows, strict=True)])
    prompts = oracle.prompts if oracle.prompts is not None and tables.shape[2] > 1 else np.ones(tables.shape[2])
    by_fact, picks = choose_least(tables, prompts)
    whole = tables.shape[2] > 1
    scores = Scores(
        np.average(by_fact, axis=1, weights=prompts), by_fact if whole else None, oracle.prompts, oracle.facts
    )
    paid = np.mean([costs[pick, np.arange(len(common))] for pick in picks], axis=0)
    votes = collections.Counter(int(i) for i in picks.flat).most_common()
    label = cheap[votes[0][0]].label
    text = f"Of {len(cheap)} at no more than {QUARTER:.0%} the least is given back by {label}"
    text += f" (chosen {votes[0][1]} of {picks.size} times on other seeds and facts)."
    return text, _effects("the chosen", scores, oracle, paid)


def _mean_cost(one: Candidate, seed: int) -> float:
    return float(np.mean([cost for (run, _), cost in zip(one.pairs, one.costs, strict=True) if run["seed"] == seed]))


def _rows(scores: Scores, rows: Sequence[int]) -> Scores:
    by_fact = None if scores.by_fact is None else scores.by_fact[rows]
    return dataclasses.replace(scores, by_seed=scores.by_seed[rows], by_fact=by_fact)


def _table(scores: Scores) -> np.ndarray:
    return scores.by_seed[:, None] if scores.by_fact is None else scores.by_fact
