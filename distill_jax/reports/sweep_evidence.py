"""What the conclusions on a sweep rest on: its attacked models by training seed, premises, effects.

The unit of analysis is the training seed; facts are shared by all seeds. Robustness is the accuracy on held-out facts
at the attack's last step: lower is more robust. A recipe of which a training seed did not keep or regain its retain
ability, or diverged, counts nowhere: it may resist only because it can do nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.evals.scale import ACCURACY
from distill_jax.experiment.roles import Role
from distill_jax.reports.premises import RETAIN
from distill_jax.reports.recipes import varying, words
from distill_jax.reports.summary_types import SweepRunSummary
from distill_jax.stages.robust import method_label
from distill_jax.statistics.conclusions import Conclusion, Effect, Premise, State, conclude, not_run
from distill_jax.statistics.estimates import Scores, band, contrast

# Kinds whose runs findings on a method compare.
COMPARED = (
    *(Role.REFERENCE, Role.ORACLE, Role.SUPPRESSED, Role.UNDO, Role.NOISE_ONLY, Role.UNDAMAGED),
    *(Role.RANDOM_STUDENT, Role.FILTERED),
)
Run = SweepRunSummary
MARGIN = ACCURACY.margin


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep's runs, and the held-out scores of each by its id, before and after the attack.

    Attributes:
      with_lost: whether recipes without the retain ability are compared too, to see what a finding lacks by their loss.
    """

    runs: Sequence[Run]
    before: Mapping[str, Scores]
    after: Mapping[str, Scores]
    with_lost: bool = False

    @functools.cached_property
    def bar(self) -> float | None:
        """Return the retain ability that is asked of every model; None where nothing that learned it all is known.

        It lies RETAIN below the mean of the references or of the oracles, of which the best run is the luckiest.
        """
        known = [run for run in self.runs if run["kind"] in (Role.REFERENCE, Role.ORACLE) and _sound(run)]
        means = [float(np.mean([run["retain"] for run in same])) for same in grouped(known, "kind").values()]
        return max(means) - RETAIN if means else None

    def able(self, run: Run) -> bool:
        """Return whether a run kept or regained what is to be retained."""
        return _sound(run) and (self.bar is None or (run["retain"] is not None and run["retain"] >= self.bar))

    @functools.cached_property
    def lost(self) -> dict[str, str]:
        """Return the recipes of which a training seed has no retain ability, with the reason of each."""
        out = {}
        for (recipe,), same in grouped((r for r in self.runs if r["id"] in self.after), "recipe").items():
            without = [_reason(run) for run in same if not self.able(run)]
            if without:
                seeds = f"{len(without)} of {len(same)} training seeds without the retain ability"
                out[recipe] = f"{seeds}: {', '.join(without)}"
        return out

    @functools.cached_property
    def usable(self) -> list[Run]:
        """Return the attacked runs that may be compared: the seeds that a recipe happens to succeed with are not it."""
        attacked = [run for run in self.runs if run["id"] in self.after]
        return [run for run in attacked if self.with_lost or run["recipe"] not in self.lost]

    def worlds(self) -> list[Sweep]:
        """Return the runs of each model and data by themselves: what was made in two may not be compared."""
        return [self._among(same) for same in grouped(self.runs, "world").values()]

    def variants(self, method: str) -> list[tuple[str, Sweep]]:
        """Return the runs that are alike in all that findings on a method do not ask about, and in what they are alike.

        Of a method trained in two ways, such as with few steps and with many, each is a sweep of its own, with all that
        has no part in the difference.
        """
        compared = [r for r in self.runs if r["kind"] in COMPARED and r["method"] in (None, method)]
        names = varying(run["settings"] for run in compared if not (run["kind"] == Role.FILTERED and run["alpha"]))
        each = {
            words(own): own for run in compared if (own := {n: v for n, v in run["settings"].items() if n in names})
        }
        apart = {
            t: own for t, own in each.items() if not any(len(own) < len(o) and agree(own, o) for o in each.values())
        }
        if len(apart) < 2:
            return [("", self)]
        return [(text, self._among([r for r in self.runs if agree(r["settings"], own)])) for text, own in apart.items()]

    def _among(self, runs: Sequence[Run]) -> Sweep:
        return dataclasses.replace(self, runs=runs)

    def of(self, kind: str, **wanted: object) -> list[Run]:
        """Return the usable runs of a kind with these fields."""
        return [run for run in self.usable if run["kind"] == kind and _has(run, wanted)]


def _has(run: Mapping[str, object], wanted: Mapping[str, object]) -> bool:
    return all(run[field] == value for field, value in wanted.items())


def agree(first: Mapping[str, object], second: Mapping[str, object]) -> bool:
    """Return whether two have the same value of every setting that both have."""
    return all(first[name] == second[name] for name in first if name in second)


def _reason(run: Run) -> str:
    if run["diverged"]:
        return "diverged"
    kept = "not measured" if run["retain"] is None else format(run["retain"], ".2f")
    return f"{kept}{', stopped short of its goal' if run['recovered'] is False else ''}"


def _sound(run: Run) -> bool:
    """Return whether a run came to its end: it has a number, did not diverge, and recovered if it was to."""
    finite = run["retain"] is not None and math.isfinite(run["retain"])
    return finite and not run["diverged"] and run["recovered"] is not False


def at_common_seeds(*sides: Sequence[Run]) -> list[list[Run]]:
    """Return the runs of each side at the training seeds that all have; no side where these are fewer than two."""
    seeds = set.intersection(*({run["seed"] for run in side} for side in sides)) if sides else set()
    return [[run for run in side if run["seed"] in seeds] for side in sides] if len(seeds) > 1 else []


def lacking(
    sweep: Sweep, name: str, claim: str, what: str, compared: Callable[[Sweep], Iterable[Sequence[Run]]]
) -> Conclusion:
    """Return what becomes of a finding that has too few models: not run, unless it has enough with those that are lost.

    Args:
      compared: the runs of each side that the finding compares of a sweep; nothing where they are too few.
    """
    made = [run for side in compared(dataclasses.replace(sweep, with_lost=True)) for run in side]
    lost = {run["label"]: sweep.lost[run["recipe"]] for run in made if run["recipe"] in sweep.lost}
    if not lost:
        return not_run(name, claim, what)
    reasons = "; ".join(f"{label}: {reason}" for label, reason in lost.items())
    premise = Premise(f"{what} kept or regained the retain ability", False, reasons)
    return conclude(name, claim, premises=[premise], effects=[])


def premises_on(sweep: Sweep, method: str | None, choices: int = 1) -> list[Premise]:
    """Return what every finding on a method rests on; `choices` are the methods among which it is looked for."""
    hiding = [r for r in sweep.runs if r["kind"] == "suppressed" and r["method"] == method and r["id"] in sweep.after]
    known = [r for r in sweep.runs if r["kind"] == "reference"]
    if not hiding:
        return [Premise("a suppressed model was attacked", False, method_label(method) if method else "none")]
    before, after = ([table[r["id"]] for r in hiding] for table in (sweep.before, sweep.after))
    bar = float(np.mean([r["forget"] for r in known])) if known else 1.0
    most = band(stacked(before), ACCURACY)[1]
    rise = difference("rise", [(1.0, stacked(after)), (-1.0, stacked(before))], "above", MARGIN, choices)
    return [
        Premise("the reference has the ability", not known or bar > 4 * MARGIN, f"forget accuracy {bar:.2f}"),
        Premise("unlearning suppressed it before the attack", most < 0.5 * bar, f"held-out at most {most:.2f}"),
        Premise("the attack brings back what it hides", rise.state is State.HELD, str(rise)),
    ]


def premises_on_all(sweep: Sweep) -> list[Premise]:
    """Return what a finding on recipes of all methods rests on: the attack brings back what some method hides."""
    hidden = {r["method"]: None for r in sweep.runs if r["kind"] == Role.SUPPRESSED and r["id"] in sweep.after}
    each = [premises_on(sweep, method, len(hidden)) for method in hidden]
    works = next((premises for premises in each if all(premise.shown for premise in premises)), None)
    return works or (each[0] if each else premises_on(sweep, ""))


def difference(
    name: str, terms: Sequence[tuple[float, Scores]], claim: str, threshold: float = 0.0, choices: int = 1
) -> Effect:
    """Return a difference over training seeds as an effect; what training again does is in the seeds themselves."""
    estimate = contrast(terms)
    low, high = estimate.interval(1 - 0.05 / choices)
    seeds = min(len(scores.by_seed) for _, scores in terms)
    if seeds < 2:
        low = high = math.nan
    return Effect(name, estimate.value, low, high, claim, threshold, seeds)  # type: ignore[arg-type]


def by_training_seed(sweep: Sweep, runs: Sequence[Run]) -> Scores:
    """Return the scores of training runs, one a seed: each the mean over its attackers (and over its twins)."""
    by_seed: dict[int, list[Scores]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        by_seed.setdefault(run["seed"], []).append(sweep.after[run["id"]])
    return stacked([mean_scores(same) for same in by_seed.values()])


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Return the mean of several models' scores as one seed's."""
    tables = [s.by_fact.mean(axis=0) for s in scores if s.by_fact is not None]
    by_fact = np.mean(tables, axis=0)[None] if len(tables) == len(scores) else None
    return Scores(np.array([np.mean([s.value for s in scores])]), by_fact, scores[0].prompts, scores[0].facts)


def stacked(scores: Sequence[Scores]) -> Scores:
    """Return models' scores as one row a model."""
    each = [mean_scores([one]) for one in scores]
    tables = [s.by_fact for s in each if s.by_fact is not None]
    by_fact = np.concatenate(tables) if len(tables) == len(each) else None
    return Scores(np.concatenate([s.by_seed for s in each]), by_fact, scores[0].prompts, scores[0].facts)


def left_out(sweep: Sweep) -> str:
    lost = len(sweep.lost)
    return f" {lost} recipe{'s' if lost > 1 else ''} without the retain ability left out." if lost else ""


def grouped(runs: Iterable[Run], *keys: str) -> dict[tuple[Any, ...], list[Run]]:
    out: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        fields: Mapping[str, object] = run
        out.setdefault(tuple(fields[key] for key in keys), []).append(run)
    return out
