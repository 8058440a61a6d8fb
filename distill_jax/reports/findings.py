"""What a sweep found, as conclusions. The unit of analysis is the training seed; facts are shared by all seeds.

Robustness is the accuracy on held-out facts at the attack's last step: lower is more robust. A model that did not keep
or regain its retain ability, or diverged, counts nowhere, as it may resist only because it can do nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.evals.scale import ACCURACY
from distill_jax.perf.ledger import training_flops
from distill_jax.reports.premises import RETAIN
from distill_jax.stages.methods import method_label
from distill_jax.statistics.conclusions import Conclusion, Effect, Premise, State, conclude, not_run
from distill_jax.statistics.estimates import Scores, band, contrast
from distill_jax.statistics.student_t import mean_interval

Run = Mapping[str, Any]  # `summary_types.SweepRunSummary`, whose fields are compared by their names
CHEAP = 0.8  # of the oracle's compute: the upper end of what the paper names
MARGIN = ACCURACY.margin


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep's runs, and the held-out scores of each by its id, before and after the attack.

    Attributes:
      usable: the attacked runs that have their retain ability.
    """

    runs: Sequence[Run]
    before: Mapping[str, Scores]
    after: Mapping[str, Scores]

    @functools.cached_property
    def usable(self) -> list[Run]:
        """Return the runs that may be compared."""
        bar = max((run["retain"] for run in self.runs if run["kind"] in ("reference", "oracle")), default=None)
        return [run for run in self.runs if run["id"] in self.after and able(run, bar)]

    def of(self, kind: str, **wanted: Any) -> list[Run]:
        """Return the usable runs of a kind with these fields."""
        return [r for r in self.usable if r["kind"] == kind and all(r[k] == v for k, v in wanted.items())]


def able(run: Run, bar: float | None) -> bool:
    """Return whether a run kept what is to be retained: it recovered, and lies near the best that learned it all."""
    finite = run["retain"] is not None and math.isfinite(run["retain"]) and not run["diverged"]
    return finite and run["recovered"] is not False and (bar is None or run["retain"] >= bar - RETAIN)


def findings(sweep: Sweep) -> list[Conclusion]:
    """Return what became of an UNDO sweep's questions, one conclusion for each method (and β)."""
    methods = list(dict.fromkeys(run["method"] for run in sweep.runs if run["method"]))
    conclusions = []
    for method in methods:
        betas = sorted({run["beta"] for run in sweep.runs if run["kind"] == "undo" and run["method"] == method})
        conclusions += [rises_with_alpha(sweep, method, beta) for beta in betas]
        conclusions += [parts_of_damage(sweep, method, *names) for names in COMPARED]
        conclusions += [cheaper(sweep, method, way) for way in ("schedule", "first_passage")]
    return [*conclusions, filtering(sweep)]


def rises_with_alpha(sweep: Sweep, method: str, beta: float) -> Conclusion:
    """The slope of what comes back in α, by training seed."""
    name = f"alpha, {method}, {beta:g}"
    claim = f"Robustness rises with α ({method_label(method)}, β = {beta:g})."
    group = sweep.of("undo", method=method, beta=beta)
    by_alpha = {alpha: same for (alpha,), same in _groups(group, "alpha").items()}
    seeds = set.intersection(*({run["seed"] for run in same} for same in by_alpha.values())) if by_alpha else set()
    if len(by_alpha) < 2 or len(seeds) < 2:
        return _lacking(sweep, name, claim, "two values of α at two training seeds", ["undo"], method=method, beta=beta)
    alphas = np.array(sorted(by_alpha))
    weights = (alphas - alphas.mean()) / np.sum((alphas - alphas.mean()) ** 2)
    each = {a: _trained(sweep, [run for run in by_alpha[a] if run["seed"] in seeds]) for a in alphas.tolist()}
    terms = [(float(w), scores) for w, scores in zip(weights, each.values(), strict=True)]
    curve = ", ".join(f"{alpha:g}: {scores.value:.2f}" for alpha, scores in each.items())
    slope = _effect("slope of accuracy in α", terms, "below")
    text = f"{len(seeds)} seeds, by α {curve}.{_left_out(sweep)}"
    return conclude(name, claim, premises=_shared(sweep, method), effects=[slope], evidence=text)


# Which models are compared over the α that both have; a control without α stands for every α.
COMPARED = (
    ("shrinkage", "Shrinking alone makes more robust than no damage (α = 0)", "shrunk", "alpha 0"),
    ("noise", "Noise alone makes more robust than no damage (α = 0)", "noise only", "alpha 0"),
    ("noise added", "Noise added to shrinking makes more robust", "both", "shrunk"),
)


def parts_of_damage(sweep: Sweep, method: str, short: str, claim: str, first: str, second: str) -> Conclusion:
    """One part of the damage against another, by training seed, over the α that both have."""
    name, claim = f"{short}, {method}", f"{claim} ({method_label(method)})."
    kinds = {
        "shrunk": [r for r in sweep.of("undo", method=method) if not r["beta"]],
        "both": [r for r in sweep.of("undo", method=method) if r["beta"]],
        "noise only": sweep.of("noise only", method=method),
        "alpha 0": sweep.of("alpha 0", method=method),
    }
    pair = _matched(sweep, kinds[first], kinds[second])
    if pair is None:
        made = [{"shrunk": "undo", "both": "undo"}.get(kind, kind) for kind in (first, second)]
        return _lacking(sweep, name, claim, "pair of them at two training seeds", made, method=method)
    gap = _effect("accuracy", [(1.0, pair[0]), (-1.0, pair[1])], "below")
    return conclude(name, claim, premises=_shared(sweep, method), effects=[gap], evidence=_left_out(sweep).strip())


def _matched(sweep: Sweep, first: Sequence[Run], second: Sequence[Run]) -> tuple[Scores, Scores] | None:
    """Return both sides' scores by seed: each seed's mean over the α that both have."""
    first_groups, second_groups = _groups(first, "seed", "alpha"), _groups(second, "seed", "alpha")
    sides: dict[int, list[tuple[Scores, Scores]]] = {}
    for (seed, alpha), group in first_groups.items():
        other = second_groups.get((seed, alpha)) or second_groups.get((seed, 0.0))
        if other:
            sides.setdefault(seed, []).append((_trained(sweep, group), _trained(sweep, other)))
    if len(sides) < 2:
        return None
    each = [tuple(_mean([pair[i] for pair in pairs]) for pairs in sides.values()) for i in (0, 1)]
    return _stacked(each[0]), _stacked(each[1])


def cheaper(sweep: Sweep, method: str, way: str) -> Conclusion:
    """Some α and β at no more than 80 % of the oracle's compute give no more back than the oracle."""
    of = {"schedule": "its whole schedule", "first_passage": "its own way to the students' goal"}[way]
    name = f"cheaper, {way.replace('_', ' ')}, {method}"
    claim = "UNDO reaches the robustness of retraining on filtered data at no more than 80 % of its compute "
    claim += f"({method_label(method)}; {of})."
    settings = _groups(sweep.of("undo", method=method), "alpha", "beta")
    oracles = {run["seed"]: run for run in sweep.of("oracle")}
    field = {"schedule": "vs_retraining", "first_passage": "vs_first_passage"}[way]
    costs = {}
    for key, group in settings.items():
        same = [run for run in group if run["seed"] in oracles and run[field]]
        if len({run["seed"] for run in same}) > 1:
            costs[key] = same, np.array([run[field]["whole"] for run in same])
    cheap = {key: pair for key, pair in costs.items() if pair[1].mean() <= CHEAP}
    if not costs:
        return _lacking(sweep, name, claim, "UNDO model beside its oracle at two training seeds", ["undo", "oracle"])
    if not cheap:
        least = min((shares for _, shares in costs.values()), key=np.mean)
        low, high = (float(end) for end in mean_interval(least))
        dear = Effect(
            "Least compute of those that recovered", float(least.mean()), low, high, "below", CHEAP, len(least)
        )
        return conclude(name, claim, premises=_shared(sweep, method), effects=[dear], evidence=_left_out(sweep).strip())
    best = min(cheap, key=lambda key: _trained(sweep, cheap[key][0]).value)
    group, cost = cheap[best][0], float(cheap[best][1].mean())
    pair = _trained(sweep, group), _trained(sweep, [oracles[run["seed"]] for run in group])
    gap = _effect("UNDO − oracle", [(1.0, pair[0]), (-1.0, pair[1])], "below", MARGIN, len(cheap))
    text = f"α = {best[0]:g}, β = {best[1]:g}: {pair[0].value:.2f} at {cost:.0%}; oracle {pair[1].value:.2f}. "
    text += f"Held when no more than {MARGIN:g} beyond it.{_left_out(sweep)}"
    return conclude(name, claim, premises=_shared(sweep, method), effects=[gap], evidence=text)


def filtering(sweep: Sweep) -> Conclusion:
    """Filter-then-distil against the random student of MaxEnt, which reads as many labelled rows as the filter."""
    claim = "Filter-then-distil is as robust as the random student of MaxEnt, for the same labels."
    filtered, student = sweep.of("filtered"), sweep.of("random student", method="maxent")
    seeds = sorted({r["seed"] for r in filtered} & {r["seed"] for r in student})
    if len(seeds) < 2:
        kinds = ["filtered", "random student"]
        return _lacking(
            sweep, "filtering", claim, "filtered model beside a random student at two training seeds", kinds
        )
    pair = [[r for r in side if r["seed"] in seeds] for side in (filtered, student)]
    sides = [(w, _trained(sweep, side)) for w, side in zip((1.0, -1.0), pair, strict=True)]
    gap = _effect("filtered − student", sides, "within", MARGIN)
    costs = " against ".join(f"{np.mean([_training(run) for run in side]):.3g}" for side in pair)
    text = f"Held when within {MARGIN:g}. Training FLOPs {costs}."
    return conclude("filtering", claim, premises=_shared(sweep, "maxent"), effects=[gap], evidence=text)


def _lacking(sweep: Sweep, name: str, claim: str, what: str, kinds: Sequence[str], **wanted: Any) -> Conclusion:
    """Return what becomes of a finding that has too few models: void if there are some that lost their ability."""
    made = [r for r in sweep.runs if r["id"] in sweep.after and all(r[key] == value for key, value in wanted.items())]
    lost = [r for r in made if r["kind"] in kinds and r not in sweep.usable]
    if not lost:
        return not_run(name, claim, what)
    retained = ", ".join(dict.fromkeys(map(_retained, lost)))
    premise = Premise(f"{what} kept or regained the retain ability", False, f"retain accuracy {retained}, or diverged")
    return conclude(name, claim, premises=[premise], effects=[])


def _retained(run: Run) -> str:
    return f"{run['kind']} {'not measured' if run['retain'] is None else format(run['retain'], '.2f')}"


def _shared(sweep: Sweep, method: str) -> list[Premise]:
    """Return what every finding on a method rests on."""
    hiding = [r for r in sweep.runs if r["kind"] == "suppressed" and r["method"] == method and r["id"] in sweep.after]
    known = [r for r in sweep.runs if r["kind"] == "reference"]
    if not hiding:
        return [Premise("a suppressed model was attacked", False, method_label(method) if method else "none")]
    before, after = ([table[r["id"]] for r in hiding] for table in (sweep.before, sweep.after))
    bar = float(np.mean([r["forget"] for r in known])) if known else 1.0
    most = band(_stacked(before), ACCURACY)[1]
    rise = _effect("rise", [(1.0, _stacked(after)), (-1.0, _stacked(before))], "above", MARGIN)
    return [
        Premise("the reference has the ability", not known or bar > 4 * MARGIN, f"forget accuracy {bar:.2f}"),
        Premise("unlearning suppressed it before the attack", most < 0.5 * bar, f"held-out at most {most:.2f}"),
        Premise("the attack brings back what it hides", rise.state is State.HELD, str(rise)),
    ]


def _effect(
    name: str, terms: Sequence[tuple[float, Scores]], claim: str, threshold: float = 0.0, choices: int = 1
) -> Effect:
    """Return a difference over training seeds as an effect; what training again does is in the seeds themselves."""
    estimate = contrast(terms)
    low, high = estimate.interval(1 - 0.05 / choices)
    seeds = min(len(scores.by_seed) for _, scores in terms)
    if seeds < 2:
        low = high = math.nan
    return Effect(name, estimate.value, low, high, claim, threshold, seeds)  # type: ignore[arg-type]


def _trained(sweep: Sweep, runs: Sequence[Run]) -> Scores:
    """Return the scores of training runs, one a seed: each the mean over its attackers (and over its twins)."""
    by_seed: dict[int, list[Scores]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        by_seed.setdefault(run["seed"], []).append(sweep.after[run["id"]])
    return _stacked([_mean(same) for same in by_seed.values()])


def _mean(scores: Sequence[Scores]) -> Scores:
    """Return the mean of several models' scores as one seed's."""
    tables = [s.by_fact.mean(axis=0) for s in scores if s.by_fact is not None]
    by_fact = np.mean(tables, axis=0)[None] if len(tables) == len(scores) else None
    return Scores(np.array([np.mean([s.value for s in scores])]), by_fact, scores[0].prompts, scores[0].facts)


def _stacked(scores: Sequence[Scores]) -> Scores:
    """Return models' scores as one row a model."""
    each = [_mean([one]) for one in scores]
    tables = [s.by_fact for s in each if s.by_fact is not None]
    by_fact = np.concatenate(tables) if len(tables) == len(each) else None
    return Scores(np.concatenate([s.by_seed for s in each]), by_fact, scores[0].prompts, scores[0].facts)


def _left_out(sweep: Sweep) -> str:
    lost = sum(run["id"] in sweep.after for run in sweep.runs) - len(sweep.usable)
    return f" {lost} models without their retain ability left out." if lost else ""


def _groups(runs: Iterable[Run], *keys: str) -> dict[tuple[Any, ...], list[Run]]:
    out: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        out.setdefault(tuple(run[key] for key in keys), []).append(run)
    return out


def _training(run: Run) -> float:
    return training_flops(run["compute"]["whole"])
