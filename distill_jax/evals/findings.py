"""What a sweep found: answers that say when the seeds cannot tell. The unit of analysis is the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.evals.robustness import interval

Run = Mapping[str, Any]
BySeed = dict[int, float]
NAMES: dict[str | None, str] = {"maxent": "MaxEnt", "graddiff": "GradDiff", "rmu": "RMU"}


def findings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Answer the three questions of an UNDO sweep; a question is left out if its models are not there.

    Robustness is the accuracy on held-out forget facts at the attack's last step: lower is more robust. A student that
    did not recover its retain ability counts nowhere, as it may resist only because it can do nothing. Intervals are
    95 % Student-t over the seeds' paired differences (or slopes); the data, with their split of the facts, are the same
    for all seeds.
    """
    usable = [run for run in runs if run["attack"] and not run["diverged"] and run["recovered"] is not False]
    found = [*_rises_with_alpha(usable), *_shrinkage_or_noise(usable), *_filtering(usable)]
    lost = sum(run["recovered"] is False for run in runs)
    note = f"; {lost} that did not recover left out" if lost else ""
    return [one | {"numbers": one["numbers"] + note} for one in found]


def heldout(run: Run) -> float:
    """Return the accuracy on held-out forget facts after the whole attack."""
    return float(run["attack"]["forget_heldout"][-1])


def by_seed(runs: Iterable[Run], value: Callable[[Run], float] = heldout) -> BySeed:
    """Return each seed's mean value."""
    return {seed: float(np.mean([value(r) for r in of_seed])) for (seed,), of_seed in _groups(runs, "seed").items()}


def difference(first: BySeed, second: BySeed) -> tuple[float, float, float] | None:
    """Return mean, low and high of first - second over the seeds that both have; None with fewer than two."""
    seeds = sorted(set(first) & set(second))
    if len(seeds) < 2:
        return None
    apart = np.array([first[seed] - second[seed] for seed in seeds])
    low, high = interval(apart)
    return float(apart.mean()), float(low), float(high)


def _said(name: str, found: tuple[float, float, float]) -> str:
    mean, low, high = found
    return f"{name} {mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _judge(found: tuple[float, float, float], below: str, above: str) -> str:
    _, low, high = found
    return below if high < 0 else above if low > 0 else "the seeds cannot tell"


def _groups(runs: Iterable[Run], *keys: str) -> dict[tuple[Any, ...], list[Run]]:
    out: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        out.setdefault(tuple(run[key] for key in keys), []).append(run)
    return out


def _rises_with_alpha(runs: Sequence[Run]) -> list[dict[str, str]]:
    verdicts, numbers = [], []
    for (method, beta), group in _groups((r for r in runs if r["kind"] == "undo"), "method", "beta").items():
        which = f"{NAMES.get(method, method)}, β = {beta:g}"
        slopes = {}
        for (seed,), of_seed in _groups(group, "seed").items():
            if len({run["alpha"] for run in of_seed}) > 1:
                slopes[seed] = float(np.polyfit([r["alpha"] for r in of_seed], [heldout(r) for r in of_seed], 1)[0])
        found = difference(slopes, dict.fromkeys(slopes, 0.0))
        if found:
            verdicts.append(f"{which}: {_judge(found, 'yes', 'no, it falls')}")
            means = {a: np.mean([heldout(r) for r in g]) for (a,), g in sorted(_groups(group, "alpha").items())}
            curve = ", ".join(f"{alpha:g}: {mean:.2f}" for alpha, mean in means.items())
            numbers.append(f"{which}: " + _said("slope of accuracy in α", found) + f"; by α {curve}")
    return _finding("Does robustness rise with α?", verdicts, numbers)


def _shrinkage_or_noise(runs: Sequence[Run]) -> list[dict[str, str]]:
    verdicts, numbers = [], []
    for (method,), group in _groups((r for r in runs if r["method"]), "method").items():
        # Distilled like the others, and not damaged: what distilling alone does is not credited to the damage.
        control = [r for r in group if r["kind"] == "alpha 0"]
        undo = [r for r in group if r["kind"] == "undo"]
        only = [r for r in group if r["kind"] == "noise only"]
        shrunk, both = [r for r in undo if not r["beta"]], [r for r in undo if r["beta"]]
        compared = {
            "shrinkage alone against α = 0": _paired_over_alpha(shrunk, control),
            "noise alone against α = 0": _paired_over_alpha(only, control),
            "noise added to shrinkage": _paired_over_alpha(both, shrunk),
        }
        parts = {name: found for name, found in compared.items() if found}
        if parts:
            verdict = "; ".join(f"{name}: {_judge(f, 'helps', 'harms')}" for name, f in parts.items())
            verdicts.append(f"{NAMES.get(method, method)}: {verdict}")
            told = "; ".join(_said(name, found) for name, found in parts.items())
            numbers.append(f"{NAMES.get(method, method)}, mean over α: {told}")
    return _finding("Is it the shrinkage or the noise?", verdicts, numbers)


def _paired_over_alpha(first: Sequence[Run], second: Sequence[Run]) -> tuple[float, float, float] | None:
    """Return the difference by seed, averaged over the α that both have; a control without α stands for every α."""
    mine, theirs = _groups(first, "seed", "alpha"), _groups(second, "seed", "alpha")
    apart: dict[int, list[float]] = {}
    for (seed, alpha), group in mine.items():
        other = theirs.get((seed, alpha)) or theirs.get((seed, 0.0))
        if other:
            gap = np.mean([heldout(r) for r in group]) - np.mean([heldout(r) for r in other])
            apart.setdefault(seed, []).append(float(gap))
    return difference({seed: float(np.mean(gaps)) for seed, gaps in apart.items()}, dict.fromkeys(apart, 0.0))


def _filtering(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Compare with the random student of MaxEnt, which reads as many labelled rows as the filter is given."""
    filtered = [r for r in runs if r["kind"] == "filtered"]
    student = [r for r in runs if r["kind"] == "random student" and r["method"] == "maxent"]
    found = difference(by_seed(filtered), by_seed(student))
    if not found:
        return []
    verdict = _judge(found, "filtering is more robust", "filtering is less robust")
    retain = difference(by_seed(filtered, _retain), by_seed(student, _retain)) or found
    costs = " against ".join(f"{np.mean([_training(run) for run in g]):.3g}" for g in (filtered, student))
    numbers = [_said("filtered minus student, held-out", found), _said("retain", retain), f"training FLOPs {costs}"]
    question = "Does filter-then-distil do as well for the same labels?"
    return _finding(question, [f"against the random student of MaxEnt: {verdict}"], numbers)


def _retain(run: Run) -> float:
    return float(run["retain"])


def _training(run: Run) -> float:
    return float(run["compute"]["whole"]["student"] + run["compute"]["whole"]["teacher"])


def _finding(question: str, verdicts: list[str], numbers: list[str]) -> list[dict[str, str]]:
    if not verdicts:
        return []
    return [{"question": question, "answer": "; ".join(verdicts), "numbers": "; ".join(numbers)}]
