"""From the attackers' scores to the worst case: curves over attack steps, with bands over seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from distill_jax.io.scale import ACCURACY, Scale

PARTS = {"forget_heldout": "heldout", "forget_shown": "shown", "retain": "retain"}


def interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the Student-t interval of the mean over the first axis; NaN ends where there is a single value."""
    n = values.shape[0]
    mean = values.mean(axis=0)
    if n < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return mean - half, mean + half


def attack_table(rows: Sequence[dict[str, Any]], part: str) -> tuple[list[int], list[float], np.ndarray]:
    """Return (steps [K], learning rates [R], score [S, R, K]) of one part from an attack's evaluation rows.

    A member that diverged stays at the score it had when it stopped.
    """
    rows = [row for row in rows if row["kind"] == "evaluation"]
    steps = sorted({row["step"] for row in rows})
    labels = list(dict.fromkeys(row["member"] for row in rows))
    rates = list(dict.fromkeys(_rate(label) for label in labels))
    seeds = list(dict.fromkeys(_seed(label) for label in labels))
    table = np.full((len(seeds), len(rates), len(steps)), np.nan)
    for row in rows:
        at = seeds.index(_seed(row["member"])), rates.index(_rate(row["member"])), steps.index(row["step"])
        table[at] = np.nan if row[part] is None else row[part]
    for k in range(1, len(steps)):
        table[..., k] = np.where(np.isnan(table[..., k]), table[..., k - 1], table[..., k])
    return steps, rates, table


def _rate(label: str) -> float:
    return float(re.fullmatch(r"lr=([^,]+),seed=(\d+)", label)[1])  # type: ignore[index]


def _seed(label: str) -> int:
    return int(re.fullmatch(r"lr=([^,]+),seed=(\d+)", label)[2])  # type: ignore[index]


def worst_case(
    rows: Sequence[dict[str, Any]], diverged_at: Mapping[str, int] | None = None, scale: Scale = ACCURACY
) -> dict[str, Any]:
    """Return the attack's curves: for each part the most ability over learning rates at each step, averaged over seeds.

    `retain_at_worst` is the retain score of the very members that are worst on the held-out part, so that an attacker
    who wrecks the model is seen to do so. `by_seed` keeps the worst of each seed, [S, K]. `counted` says how many
    attackers had not diverged at each step.

    Args:
      diverged_at: member -> the step at which it diverged.
    """
    steps, rates, heldout = attack_table(rows, "heldout")
    stops = list((diverged_at or {}).values())
    members = heldout.shape[0] * heldout.shape[1]
    out: dict[str, Any] = {"steps": steps, "counted": [members - sum(stop < step for stop in stops) for step in steps]}
    for name in ("forget_heldout", "forget_shown"):
        table = attack_table(rows, PARTS[name])[2]
        worst = scale.best(table, axis=1)
        low, high = interval(worst)
        out[name] = {
            "worst": _plain(worst.mean(axis=0)),
            "low": _plain(np.clip(low, *scale.bounds)),
            "high": _plain(np.clip(high, *scale.bounds)),
            "by_seed": [_plain(seed) for seed in worst],
        }
    retain = attack_table(rows, "retain")[2]
    best = scale.argbest(heldout, axis=1)  # [S, K]
    out["retain_at_worst"] = _plain(np.take_along_axis(retain, best[:, None], axis=1)[:, 0].mean(axis=0))
    mean = heldout.mean(axis=0)  # [R, K]; None where no attacker has a score
    known = np.isfinite(mean).any(axis=0)
    at = scale.argbest(np.where(np.isnan(mean), -scale.sign * np.inf, mean), axis=0)
    out["best_learning_rate"] = [rates[i] if good else None for i, good in zip(at, known, strict=True)]
    return out


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else round(float(v), 6) for v in values]
