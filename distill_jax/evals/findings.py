"""What a sweep found: answers that say when the seeds cannot tell. The unit of analysis is the seed."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.evals.robustness import interval

Run = Mapping[str, Any]
BySeed = dict[int, float]
NAMES: dict[str | None, str] = {"maxent": "MaxEnt", "graddiff": "GradDiff", "rmu": "RMU"}


def findings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Answer the three questions of an UNDO sweep; a question is left out if its models are not there.

    Robustness is the accuracy on held-out forget facts at the attack's last step: lower is more robust. Intervals are
    95 % Student-t over the seeds' paired differences (or slopes).
    """
    runs = [run for run in runs if run["attack"] and not run["diverged"]]
    return [*_rises_with_alpha(runs), *_shrinkage_or_noise(runs), *_filtering(runs)]


def heldout(run: Run) -> float:
    """Return the accuracy on held-out forget facts after the whole attack."""
    return float(run["attack"]["forget_heldout"][-1])


def by_seed(runs: Iterable[Run], value: Callable[[Run], float] = heldout) -> BySeed:
    """Return each seed's mean value."""
    found = collections.defaultdict(list)
    for run in runs:
        found[run["seed"]].append(value(run))
    return {seed: float(np.mean(values)) for seed, values in found.items()}


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
        suppressed = by_seed(r for r in group if r["kind"] == "suppressed")
        undo = [r for r in group if r["kind"] == "undo"]
        only = [r for r in group if r["kind"] == "noise only"]
        alphas = {r["alpha"] for r in only} or {r["alpha"] for r in undo}
        same = [r for r in undo if r["alpha"] in alphas]
        shrunk, both = by_seed(r for r in same if not r["beta"]), by_seed(r for r in same if r["beta"])
        compared = {
            "shrinkage alone": difference(shrunk, suppressed),
            "noise alone": difference(by_seed(only), suppressed),
            "noise beside shrinkage": difference(both, shrunk),
        }
        parts = {name: found for name, found in compared.items() if found}
        if parts:
            at = ", ".join(f"{alpha:g}" for alpha in sorted(alphas))
            verdict = "; ".join(f"{name}: {_judge(f, 'helps', 'harms')}" for name, f in parts.items())
            verdicts.append(f"{NAMES.get(method, method)}, mean over α = {at}: {verdict}")
            numbers.append(
                f"{NAMES.get(method, method)}: " + "; ".join(_said(name, found) for name, found in parts.items())
            )
    return _finding("Is it the shrinkage or the noise?", verdicts, numbers)


def _filtering(runs: Sequence[Run]) -> list[dict[str, str]]:
    filtered = [r for r in runs if r["kind"] == "filtered"]
    verdicts, numbers = [], []
    students = [r for r in runs if r["kind"] == "random student" or (r["kind"] == "undo" and r["recovered"])]
    for group in _groups(students, "method").values():
        named = _groups(group, "kind", "alpha", "beta")
        best = min(named.values(), key=lambda g: float(np.mean([heldout(r) for r in g])))
        found = difference(by_seed(filtered), by_seed(best))
        if not found:
            continue
        retain = difference(by_seed(filtered, _retain), by_seed(best, _retain))
        verdict = _judge(found, "filtering is more robust", "filtering is less robust")
        verdicts.append(f"against {best[0]['label']}: {verdict}")
        numbers.append(f"{_said('filtered minus ' + best[0]['label'], found)}, {_said('retain', retain or found)}")
        costs = [by_seed(g, _training) for g in (filtered, best)]
        numbers.append(
            "student and teacher FLOPs " + " against ".join(f"{np.mean(list(c.values())):.3g}" for c in costs)
        )
    return _finding("Does filter-then-distil do as well for the same labels?", verdicts, numbers)


def _retain(run: Run) -> float:
    return float(run["retain"])


def _training(run: Run) -> float:
    return float(run["compute"]["whole"]["student"] + run["compute"]["whole"]["teacher"])


def _finding(question: str, verdicts: list[str], numbers: list[str]) -> list[dict[str, str]]:
    if not verdicts:
        return []
    return [{"question": question, "answer": "; ".join(verdicts), "numbers": "; ".join(numbers)}]
