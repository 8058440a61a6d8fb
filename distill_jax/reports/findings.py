"""What a sweep found, as conclusions, each by a rule of its own on what `sweep_evidence.py` reads off its models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from distill_jax.experiment.roles import Role
from distill_jax.perf.ledger import training_flops
from distill_jax.reports.affordable import affordable, share
from distill_jax.reports.certificate import certificates
from distill_jax.reports.claims_undo import CHEAP
from distill_jax.reports.premises import CONVENTIONS
from distill_jax.reports.recipes import varying, words
from distill_jax.reports.sweep_evidence import (
    MARGIN,
    Run,
    Sweep,
    at_common_seeds,
    by_training_seed,
    difference,
    grouped,
    lacking,
    left_out,
    mean_scores,
    premises_on,
    stacked,
)
from distill_jax.stages.robust import method_label
from distill_jax.statistics.conclusions import Conclusion, Effect, conclude
from distill_jax.statistics.estimates import Scores
from distill_jax.statistics.student_t import mean_interval


def findings(sweep: Sweep) -> list[Conclusion]:
    """Return what became of a sweep's questions, by the models and data that may be compared."""
    worlds = sweep.worlds()
    if len(worlds) < 2:
        return _in_one_world(sweep)
    names = varying(run["settings"] for run in sweep.runs if run["settings"])
    out = []
    for world in worlds:
        own = {name: world.runs[0]["settings"].get(name) for name in names if name.startswith(("model.", "data."))}
        out += [_named(one, words(own)) for one in _in_one_world(world)]
    return out


def _in_one_world(sweep: Sweep) -> list[Conclusion]:
    methods = list(dict.fromkeys(run["method"] for run in sweep.runs if run["method"]))
    conclusions = [affordable(sweep, way) for way in CONVENTIONS]
    for method in methods:
        for text, alike in sweep.variants(method):
            conclusions += [_named(one, text) for one in _on_method(alike, method)]
    conclusions += [_named(filtering(alike), text) for text, alike in sweep.variants("maxent")]
    return [*conclusions, *certificates(sweep)]


def _on_method(sweep: Sweep, method: str) -> list[Conclusion]:
    undone = [run for run in sweep.runs if run["kind"] == Role.UNDO and run["method"] == method]
    betas = sorted({beta for run in undone if (beta := run["beta"]) is not None})
    return [
        *(rises_with_alpha(sweep, method, beta) for beta in betas),
        *(parts_of_damage(sweep, method, *names) for names in COMPARED),
        *(cheaper(sweep, method, way) for way in CONVENTIONS),
        distilling(sweep, method),
    ]


def _named(one: Conclusion, variant: str) -> Conclusion:
    """Return a conclusion that says of which variant it speaks."""
    if not variant:
        return one
    statement = f"{one.statement.removesuffix('.')} ({variant})."
    return dataclasses.replace(one, name=f"{one.name}, {variant}", statement=statement)


def rises_with_alpha(sweep: Sweep, method: str, beta: float) -> Conclusion:
    """The slope of what comes back in α, by training seed."""
    name = f"alpha, {method}, {beta:g}"
    claim = f"Robustness rises with α ({method_label(method)}, β = {beta:g})."

    def compared(sweep: Sweep) -> list[list[Run]]:
        by_alpha = grouped(sweep.of(Role.UNDO, method=method, beta=beta), "alpha")
        return at_common_seeds(*by_alpha.values()) if len(by_alpha) > 1 else []

    by_alpha = {alpha: side for side in compared(sweep) if (alpha := side[0]["alpha"]) is not None}
    if not by_alpha:
        return lacking(sweep, name, claim, "two values of α at two training seeds", compared)
    alphas = np.array(sorted(by_alpha))
    weights = (alphas - alphas.mean()) / np.sum((alphas - alphas.mean()) ** 2)
    each = {alpha: by_training_seed(sweep, by_alpha[alpha]) for alpha in alphas.tolist()}
    terms = [(float(w), scores) for w, scores in zip(weights, each.values(), strict=True)]
    curve = ", ".join(f"{alpha:g}: {scores.value:.2f}" for alpha, scores in each.items())
    slope = difference("slope of accuracy in α", terms, "below")
    text = f"{len(each[alphas[0]].by_seed)} seeds, by α {curve}.{left_out(sweep)}"
    return conclude(name, claim, premises=premises_on(sweep, method), effects=[slope], evidence=text)


# Which models are compared over the α that both have; a control without α stands for every α.
COMPARED = (
    ("shrinkage", "Shrinking alone makes more robust than no damage (α = 0)", "shrunk", "alpha 0"),
    ("noise", "Noise alone makes more robust than no damage (α = 0)", "noise only", "alpha 0"),
    ("noise added", "Noise added to shrinking makes more robust", "both", "shrunk"),
)


def parts_of_damage(sweep: Sweep, method: str, short: str, claim: str, first: str, second: str) -> Conclusion:
    """One part of the damage against another, by training seed, over the α that both have."""
    name, claim = f"{short}, {method}", f"{claim} ({method_label(method)})."

    def compared(sweep: Sweep) -> list[tuple[list[Run], list[Run]]]:
        return _matched(*(_damaged(sweep, method, damage) for damage in (first, second)))

    pairs = compared(sweep)
    if not pairs:
        lacks = "pair of them at two training seeds"
        return lacking(sweep, name, claim, lacks, lambda sweep: [side for pair in compared(sweep) for side in pair])
    sides = [(w, _by_seed_and_alpha(sweep, [pair[i] for pair in pairs])) for i, w in enumerate((1.0, -1.0))]
    gap = difference("accuracy", sides, "below")
    return conclude(name, claim, premises=premises_on(sweep, method), effects=[gap], evidence=left_out(sweep).strip())


def _damaged(sweep: Sweep, method: str, damage: str) -> list[Run]:
    """Return the runs with a kind of damage: both α and β, one of them alone, or none."""
    if damage in (Role.NOISE_ONLY, Role.UNDAMAGED):
        return sweep.of(damage, method=method)
    return [run for run in sweep.of(Role.UNDO, method=method) if bool(run["beta"]) == (damage == "both")]


def _matched(first: Sequence[Run], second: Sequence[Run]) -> list[tuple[list[Run], list[Run]]]:
    """Return both sides' runs of each seed and α that both have; nothing where these are of fewer than two seeds."""
    others = grouped(second, "seed", "alpha")
    pairs = [
        (group, other)
        for (seed, alpha), group in grouped(first, "seed", "alpha").items()
        if (other := others.get((seed, alpha)) or others.get((seed, 0.0)))
    ]
    return pairs if len({group[0]["seed"] for group, _ in pairs}) > 1 else []


def _by_seed_and_alpha(sweep: Sweep, groups: Sequence[Sequence[Run]]) -> Scores:
    """Return the scores of groups of runs by seed, each seed's the mean over its groups."""
    by_seed: dict[int, list[Scores]] = {}
    for group in groups:
        by_seed.setdefault(group[0]["seed"], []).append(by_training_seed(sweep, group))
    return stacked([mean_scores(same) for same in by_seed.values()])


def cheaper(sweep: Sweep, method: str, way: str) -> Conclusion:
    """Some α and β at no more than 80 % of the oracle's compute give no more back than the oracle."""
    of = CONVENTIONS[way]
    name = f"cheaper, {way.replace('_', ' ')}, {method}"
    claim = "UNDO reaches the robustness of retraining on filtered data at no more than 80 % of its compute "
    claim += f"({method_label(method)}; {of})."

    def compared(sweep: Sweep) -> list[list[Run]]:
        settings, oracles = grouped(sweep.of(Role.UNDO, method=method), "recipe"), sweep.of(Role.ORACLE)
        return [side for same in settings.values() for side in at_common_seeds(same, oracles)]

    oracles = {run["seed"]: run for run in sweep.of(Role.ORACLE)}
    costs = {}
    for key, group in grouped(sweep.of(Role.UNDO, method=method), "alpha", "beta", "recipe").items():
        same = [run for run in group if run["seed"] in oracles and share(run, way) is not None]
        if len({run["seed"] for run in same}) > 1:
            costs[key] = same, np.array([share(run, way) for run in same])
    cheap = {key: pair for key, pair in costs.items() if pair[1].mean() <= CHEAP}
    if not costs:
        return lacking(sweep, name, claim, "UNDO model beside its oracle at two training seeds", compared)
    if not cheap:
        least = min((shares for _, shares in costs.values()), key=np.mean)
        low, high = (float(end) for end in mean_interval(least))
        dear = Effect(
            "Least compute of those that recovered", float(least.mean()), low, high, "below", CHEAP, len(least)
        )
        return conclude(
            name, claim, premises=premises_on(sweep, method), effects=[dear], evidence=left_out(sweep).strip()
        )
    best = min(cheap, key=lambda key: by_training_seed(sweep, cheap[key][0]).value)
    group, cost = cheap[best][0], float(cheap[best][1].mean())
    pair = by_training_seed(sweep, group), by_training_seed(sweep, [oracles[run["seed"]] for run in group])
    gap = difference("UNDO − oracle", [(1.0, pair[0]), (-1.0, pair[1])], "below", MARGIN, len(cheap))
    text = f"α = {best[0]:g}, β = {best[1]:g}: {pair[0].value:.2f} at {cost:.0%}; oracle {pair[1].value:.2f}. "
    text += f"Held when no more than {MARGIN:g} beyond it.{left_out(sweep)}"
    return conclude(name, claim, premises=premises_on(sweep, method), effects=[gap], evidence=text)


def distilling(sweep: Sweep, method: str) -> Conclusion:
    """The random student against the suppressed model that taught it."""
    name = f"distilling beats suppressing, {method}"
    claim = f"A random student of {method_label(method)} gives back less than {method_label(method)}’s own model."

    def compared(sweep: Sweep) -> list[list[Run]]:
        return at_common_seeds(*(sweep.of(kind, method=method) for kind in (Role.RANDOM_STUDENT, Role.SUPPRESSED)))

    sides = compared(sweep)
    if not sides:
        return lacking(sweep, name, claim, "pair of them at two training seeds", compared)
    student, suppressed = (by_training_seed(sweep, side) for side in sides)
    gap = difference("student − suppressed", [(1.0, student), (-1.0, suppressed)], "below")
    text = f"{len(student.by_seed)} seeds: student {student.value:.2f}, suppressed {suppressed.value:.2f}."
    text += left_out(sweep)
    return conclude(name, claim, premises=premises_on(sweep, method), effects=[gap], evidence=text)


def filtering(sweep: Sweep) -> Conclusion:
    """Filter-then-distil against the random student of MaxEnt; a filter that learned from labels reads as many."""

    def compared(sweep: Sweep) -> list[list[Run]]:
        return at_common_seeds(sweep.of(Role.FILTERED, alpha=None), sweep.of(Role.RANDOM_STUDENT, method="maxent"))

    made = [run for run in sweep.runs if run["kind"] == Role.FILTERED and run["alpha"] is None]
    same = all(run["labeller"] != "noisy" for run in made)
    labels = "for the same labels" if same else "with a labeller of every row that errs"
    claim = f"Filter-then-distil is as robust as the random student of MaxEnt, {labels}."
    pair = compared(sweep)
    if not pair:
        what = "filtered model beside a random student at two training seeds"
        return lacking(sweep, "filtering", claim, what, compared)
    sides = [(w, by_training_seed(sweep, side)) for w, side in zip((1.0, -1.0), pair, strict=True)]
    gap = difference("filtered − student", sides, "within", MARGIN)
    costs = " against ".join(f"{np.mean([_training(run) for run in side]):.3g}" for side in pair)
    text = f"Held when within {MARGIN:g}. Training FLOPs {costs}."
    return conclude("filtering", claim, premises=premises_on(sweep, "maxent"), effects=[gap], evidence=text)


def _training(run: Run) -> float:
    return training_flops(run["compute"]["whole"])
