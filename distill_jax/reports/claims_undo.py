"""What a run says of UNDO: what α does to robustness and to the steps to recover, and what robustness costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from distill_jax.reports.attacked import Run
from distill_jax.reports.premises import CONVENTIONS, Model, difference, effect, finite, kept
from distill_jax.statistics import student_t
from distill_jax.statistics.conclusions import Conclusion, Effect, Premise, conclude, not_run

CHEAP = 0.8  # of the oracle's compute: the upper end of what the paper names


def slows_with_alpha(run: Run) -> Conclusion:
    """The slope of what comes back in α, over the α whose students regained what is to be retained."""
    claim = "The more UNDO damages (α), the less comes back."
    reference, teacher = run.reference, _teacher(run)
    if len(run.undo) < 3 or not reference or not teacher:
        return not_run("alpha", claim, "three values of α with their teacher and the reference")
    usable = _recovered(run, reference)
    enough = len({m.alpha for m in usable}) >= 3
    parts = ", ".join(f"{m.alpha:g}: {m.after.value:.2f}" for m in usable if m.after)
    text = f"Held-out {run.scale.item}s after the attack at α = {parts}."
    shared = [_three(usable), *run.shared(teacher, reference, usable)]
    if not enough:
        return conclude("alpha", claim, premises=shared, effects=[])
    alphas = np.array([m.alpha for m in usable], float)
    weights = (alphas - alphas.mean()) / np.sum((alphas - alphas.mean()) ** 2)
    terms = [(float(w), m.after) for w, m in zip(weights, usable, strict=True) if m.after]
    slope = effect(f"Slope of {run.scale.name} in α", terms, run.scale, "below", 0.0, 1, run.scale.run_sd)
    return conclude("alpha", claim, premises=shared, effects=[slope], evidence=text)


def steps_grow(run: Run) -> Conclusion:
    """Steps to recover rise with α, and as a power of it that is near one; a single run has only its α for a sample."""
    claim = "The steps that distillation needs to recover the retain ability grow about linearly with α."
    reference = run.reference
    damaged = [m for m in run.undo if m.alpha]
    if len(damaged) < 3 or not reference:
        return not_run("steps", claim, "three values of α and the reference")
    usable = [m for m in _recovered(run, reference) if m.alpha and m.steps > 0]
    shared = [_three(usable), finite(usable)]
    if len({m.alpha for m in usable}) < 3:
        return conclude("steps", claim, premises=shared, effects=[])
    alpha, steps = np.array([[m.alpha, m.steps] for m in usable], float).T
    parts = ", ".join(f"{a:g}: {s:.0f}" for a, s in zip(alpha, steps, strict=True))
    slope = _slope("Slope, steps per unit of α", alpha, steps, "above", 0.0)
    power = _slope("power of α, less one", np.log(alpha), np.log(steps), "within", 0.5, less=1.0)
    text = f"Steps at α = {parts}. Held when they rise and their power of α is within .5 of one."
    return conclude("steps", claim, premises=shared, effects=[slope, power], evidence=text)


def cheaper(run: Run, convention: str) -> Conclusion:
    """An UNDO model at no more than 80 % of the oracle's compute gives no more back than the oracle.

    Args:
      convention: what the oracle's compute is, "schedule" or "first_passage".
    """
    of = CONVENTIONS[convention]
    claim = f"UNDO reaches the robustness of retraining on filtered data at no more than 80 % of its compute ({of})."
    name = f"cheaper, {convention.replace('_', ' ')}"
    oracle, reference, teacher = run.oracle, run.reference, _teacher(run)
    if not oracle or not reference or not run.undo or not teacher:
        return not_run(name, claim, "oracle, UNDO model, its teacher or reference")
    known = {m.name: m.compute.get(convention) for m in _recovered(run, reference)}
    cost = {n: share for n, share in known.items() if share is not None}
    usable = [m for m in run.undo if m.name in cost]
    cheap = [m for m in usable if cost[m.name] <= CHEAP]
    shared = [*run.shared(teacher, reference, cheap), *run.ignorant(oracle, reference)]
    shared.append(Premise("an UNDO model regained the retain ability", bool(usable), f"{len(run.undo)} were made"))
    points = ", ".join(f"α = {m.alpha:g}: {m.after.value:.2f} at {cost[m.name]:.0%}" for m in usable if m.after)
    assert oracle.after
    text = f"Oracle {oracle.after.value:.2f} at 100 % ({of}). UNDO after the attack and compute: {points or 'none'}."
    if not cheap:
        least = min(cost.values(), default=math.nan)
        effects = [Effect("Least compute of one that recovered", least, least, least, "below", CHEAP)]
        return conclude(name, claim, premises=shared, effects=effects, evidence=text)
    best = min(cheap, key=lambda m: run.scale.ability(m.after.value if m.after else None))
    gap = difference(best, oracle, run.scale, at_most=run.scale.margin, choices=len(cheap))
    text += f" Held when no more than {run.scale.margin:g} beyond the oracle."
    return conclude(name, claim, premises=shared, effects=[gap], evidence=text)


def _teacher(run: Run) -> Model | None:
    """Return the suppressed model that UNDO's students were distilled from."""
    return next((run.named[m.teacher] for m in run.undo if m.teacher in run.named), None)


def _recovered(run: Run, reference: Model) -> list[Model]:
    """Return UNDO's models that regained the retain ability: another resists only because it can do nothing."""
    return [m for m in run.undo if kept(m, reference, run.scale).shown]


def _three(models: Sequence[Model]) -> Premise:
    count = len({m.alpha for m in models})
    return Premise("three values of α regained the retain ability", count >= 3, f"{count} did")


def _slope(name: str, x: np.ndarray, y: np.ndarray, claim: str, threshold: float, less: float = 0.0) -> Effect:
    """Return a least-squares slope with its Student-t interval at n − 2 degrees of freedom."""
    from scipy import stats  # not before: it takes a quarter of the time to start, and most reports have no slope

    fit = stats.linregress(x, y)
    middle = float(fit.slope) - less
    low, high = student_t.interval(middle, float(fit.stderr), len(x) - 2)
    return Effect(name, middle, low, high, claim, threshold, len(x))  # type: ignore[arg-type]
