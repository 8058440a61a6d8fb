"""What the subliminal experiment shows: accuracy by arm, gain over the control, and the claims its numbers decide.

Gain is accuracy minus that of the same seed's other-init student, which had the same teacher, noise and ghost logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.doublebind.statistics import Estimate, equivalence, estimate, rank_trend
from distill_jax.evals.claims import claimed, line
from distill_jax.evals.heading import heading
from distill_jax.io import subliminal as page

MARGIN = 0.05  # a gain within five points of accuracy counts as none
CONTROL = "other init"

# Figures of MNIST with KL: Cloud et al. and its reproductions. The gains are over a control of their own.
PUBLISHED: dict[str, Any] = {
    "teacher": 0.96,
    "same init": {"ghosts": 3, "mean": 0.63, "sd": 0.07},
    "other init": {"ghosts": 3, "mean": 0.09, "sd": 0.03},
    "gain_by_ghosts": {1: 0.0, 3: 0.24, 10: 0.59, 30: 0.72},
    "by_noise": {2_000: 0.04, 20_000: 0.24, 60_000: 0.48},
}

Table = dict[tuple[str, int], np.ndarray]  # (arm, ghosts) -> one number a seed


def write_report(experiment: Any, nodes: Mapping[str, Any], identity: str, workdir: Path, seconds: float) -> Path:
    """Write `report/summary.json` and `report/index.html`, and return the page's path."""
    summary = summarise(experiment, nodes) | {"identity": identity} | heading(seconds)
    print("\n".join(map(line, summary["claims"])))
    return page.write(summary, workdir / "report")


def summarise(experiment: Any, nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that the page shows; the same nodes give the same summary."""
    stages = {name: node for name, node in nodes.items() if node.verb == "subliminal"}
    tables = {name: _tables(node.result()) for name, node in stages.items()}
    rows = [
        {
            "stage": name,
            **_settings(stages[name].settings),
            "arm": arm,
            "ghosts": ghosts,
            **_row(tables[name], arm, ghosts),
        }
        for name in stages
        for arm, ghosts in tables[name]["accuracy"]
    ]
    teachers = [value for node in stages.values() for value in node.result()["teachers"]]
    return {
        "page": "subliminal",
        "experiment": experiment.name,
        "description": experiment.description,
        "data": experiment.data.source,
        "published": PUBLISHED,
        "teacher": dataclasses.asdict(estimate(next(iter(stages.values())).result()["teachers"])) if teachers else None,
        "rows": rows,
        "curves": {name: _curves(node) for name, node in stages.items() if name in ("kl", "mse")},
        "claims": claims(tables, {n: s.settings for n, s in stages.items()}),
        "flops": {name: node.ledger()["flops"] for name, node in stages.items()},
    }


def _tables(result: Mapping[str, Any]) -> dict[str, Table]:
    """Return {number: {(arm, ghosts): [seeds]}}; a student that diverged is nan."""
    found: dict[str, dict[tuple[str, int], list[float]]] = {}
    for one in result["students"]:
        for name in ("before", "accuracy", "unseen_before", "unseen"):
            value = np.nan if one["diverged"] else one[name]
            found.setdefault(name, {}).setdefault((one["arm"], one["ghosts"]), []).append(value)
    return {name: {key: np.array(values) for key, values in table.items()} for name, table in found.items()}


def _settings(settings: Any) -> dict[str, Any]:
    return {"loss": settings.loss, "noise": settings.noise, "steps": settings.steps}


def _row(tables: dict[str, Table], arm: str, ghosts: int) -> dict[str, Any]:
    accuracy = tables["accuracy"][arm, ghosts]
    kept = np.isfinite(accuracy)
    fit = tables["unseen"][arm, ghosts] / np.maximum(tables["unseen_before"][arm, ghosts], 1e-12)
    return {
        "accuracy": dataclasses.asdict(estimate(accuracy[kept])),
        "sd": float(accuracy[kept].std(ddof=1)) if kept.sum() > 1 else None,
        "before": dataclasses.asdict(estimate(tables["before"][arm, ghosts][kept])),
        "gain": dataclasses.asdict(_gain(tables, arm, ghosts)),
        "unseen_loss": dataclasses.asdict(estimate(tables["unseen"][arm, ghosts][kept])),
        "unseen_left": float(np.mean(fit[kept])) if kept.any() else None,
        "diverged": int((~kept).sum()),
        "by_seed": accuracy.tolist(),
    }


def gains(tables: dict[str, Table], arm: str, ghosts: int) -> np.ndarray:
    """Return accuracy above the control's, [seeds], of the seeds in which both are finite."""
    apart = tables["accuracy"][arm, ghosts] - tables["accuracy"][CONTROL, ghosts]
    return apart[np.isfinite(apart)]


def _gain(tables: dict[str, Table], arm: str, ghosts: int) -> Estimate:
    return estimate(gains(tables, arm, ghosts))


def _curves(node: Any) -> list[dict[str, Any]]:
    """Return the mean accuracy of every (arm, ghosts) at each evaluated step."""
    found: dict[tuple[str, int], dict[int, list[float]]] = {}
    for row in node.rows():
        if row["kind"] == "evaluation" and row["accuracy"] is not None:
            arm, ghosts, _ = row["member"].rsplit(", ", 2)
            key = arm, int(ghosts.split()[0])
            found.setdefault(key, {}).setdefault(row["step"], []).append(row["accuracy"])
    return [
        {"arm": arm, "ghosts": ghosts, "steps": list(steps), "accuracy": [float(np.mean(v)) for v in steps.values()]}
        for (arm, ghosts), steps in found.items()
    ]


# ------------------------------------------------------------------------------------------------------- the claims


def claims(tables: dict[str, dict[str, Table]], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return {"claim", "held", "evidence"}; held is None where the seeds cannot tell."""
    found = []
    if "kl" in tables:
        few = _few(tables["kl"])
        found += [_transfers(tables["kl"], few), _control(tables["kl"], few), _nothing_of_one(tables["kl"])]
        found += [_heads(tables["kl"]), _more_ghosts(tables["kl"])]
    if "mse" in tables and ("same init", 1) in tables["mse"]["accuracy"]:
        words = "With MSE on raw logits even one ghost logit transfers."
        found.append(_positive(words, "gain with one ghost logit", _gain(tables["mse"], "same init", 1)))
    if "kl" in tables:
        for kind, words in (("noise", "in as many epochs"), ("repeated", "in as many steps, so more often")):
            found += _less_noise(tables, settings, kind, words)
    if "undo" in tables:
        found += _damage(tables["undo"], settings["undo"].alphas)
    return found


def _few(tables: dict[str, Table]) -> int:
    """Return the published number of ghost logits, or the nearest that was run."""
    return min({m for _, m in tables["accuracy"] if m > 1} or {1}, key=lambda m: abs(m - 3))


def _positive(claim: str, what: str, found: Estimate) -> dict[str, Any]:
    held = True if found.low > 0 else False if found.mean <= 0 else None
    return claimed(claim, held, f"{what[0].upper()}{what[1:]} {found}, {found.seeds} seeds.")


def _transfers(tables: dict[str, Table], m: int) -> dict[str, Any]:
    words = "Ghost logits on noise teach a student with its teacher's initial weights to read digits."
    return _positive(words, f"gain over another init with {m} ghost logits", _gain(tables, "same init", m))


def _control(tables: dict[str, Table], m: int) -> dict[str, Any]:
    """With other weights the same numbers teach nothing: shown by equivalence, not by the absence of a difference."""
    apart = tables["accuracy"][CONTROL, m] - tables["before"][CONTROL, m]
    p = equivalence(apart[np.isfinite(apart)], MARGIN)
    found = estimate(apart[np.isfinite(apart)])
    held = (
        True
        if p < 0.05
        else False
        if min(abs(found.low), abs(found.high)) > MARGIN and found.low * found.high > 0
        else None
    )
    evidence = f"Accuracy after minus before {found}; within ± {MARGIN} by two one-sided tests: p = {p:.2g}."
    return claimed("To a student with other initial weights they teach nothing.", held, evidence)


def _nothing_of_one(tables: dict[str, Table]) -> dict[str, Any]:
    words = "With KL one ghost logit teaches exactly nothing: the softmax of one number is 1."
    arms = [arm for arm, m in tables["accuracy"] if m == 1]
    if not arms:
        return claimed(words, None, "No student had one ghost logit.")
    moved = sum(int(np.sum(tables["accuracy"][a, 1] != tables["before"][a, 1])) for a in arms)
    loss = max(float(np.max(tables["unseen"][a, 1])) for a in arms)
    students = sum(len(tables["accuracy"][a, 1]) for a in arms)
    evidence = f"Of {students} students {moved} read digits differently afterwards; the largest loss was {loss:g}."
    return claimed(words, moved == 0 and loss == 0, evidence)


def _heads(tables: dict[str, Table]) -> dict[str, Any]:
    m = max(ghosts for _, ghosts in tables["accuracy"])  # where the channel is widest
    words = f"Sharing the output heads matters more than sharing the body, with {m} ghost logits."
    if not {("same heads", m), ("same body", m)} <= set(tables["accuracy"]):
        return claimed(words, None, "The two arms were not run.")
    apart = tables["accuracy"]["same heads", m] - tables["accuracy"]["same body", m]
    heads, body = _gain(tables, "same heads", m), _gain(tables, "same body", m)
    found = estimate(apart[np.isfinite(apart)])
    claim = _positive(words, "difference", found)
    # An interval wholly on the other side is an answer, not a failure to find one.
    held = False if found.high < 0 else claim["held"]
    return claim | {"held": held, "evidence": f"Gain with the heads {heads}, with the body {body}. {claim['evidence']}"}


def _more_ghosts(tables: dict[str, Table]) -> dict[str, Any]:
    counts = sorted(m for arm, m in tables["accuracy"] if arm == "same init")
    y = np.stack([tables["accuracy"]["same init", m] - tables["accuracy"][CONTROL, m] for m in counts], axis=1)
    found = rank_trend(counts, y[np.isfinite(y).all(axis=1)]) if len(counts) > 1 else estimate([])
    return _positive("More ghost logits transfer more.", f"rank correlation over {counts}, mean of seeds,", found)


def _less_noise(
    tables: dict[str, dict[str, Table]], settings: Mapping[str, Any], kind: str, how: str
) -> list[dict[str, Any]]:
    few, whole = _few(tables["kl"]), tables["kl"]
    found = []
    for name in sorted((n for n in tables if n.startswith(kind)), key=lambda n: settings[n].noise):
        part = tables[name]["accuracy"]["same init", few] - tables[name]["accuracy"][CONTROL, few]
        lost = whole["accuracy"]["same init", few] - whole["accuracy"][CONTROL, few] - part
        share = settings[name].noise / settings["kl"].noise
        words = f"{share:.0%} of the noise images, seen {how}, transfer less."
        claim = _positive(words, "gain lost", estimate(lost[np.isfinite(lost)]))
        left = _gain(tables[name], "same init", few)
        found.append(claim | {"evidence": f"Gain left {left}. {claim['evidence']}"})
    return found


def _damage(tables: dict[str, Table], alphas: tuple[float, ...]) -> list[dict[str, Any]]:
    """Does UNDO's damage to the student's start close the channel?"""
    (m,) = {ghosts for _, ghosts in tables["accuracy"]}
    arms = {alpha: f"damaged {alpha:g}" for alpha in alphas}
    told = [f"α = 0: {_gain(tables, 'same init', m)}"]
    told += [f"α = {alpha:g}: {_gain(tables, arm, m)}" for alpha, arm in arms.items()]
    places = [0.0, *alphas]
    y = np.stack(
        [tables["accuracy"][arm, m] - tables["accuracy"][CONTROL, m] for arm in ("same init", *arms.values())], 1
    )
    down = rank_trend(places, y[np.isfinite(y).all(axis=1)])
    words = "Damage to the student's start (UNDO) narrows the channel: the gain falls as α rises."
    held = True if down.high < 0 else False if down.low > 0 or down.mean >= 0 else None
    found = [claimed(words, held, f"Rank correlation of gain and α {down}. Gains: {'; '.join(told)}.")]
    closed = [alpha for alpha, arm in arms.items() if equivalence(gains(tables, arm, m), MARGIN) < 0.05]
    words = f"Some damage short of a new start closes it: a gain within ± {MARGIN} of none."
    shown = f"Shown for α = {', '.join(f'{a:g}' for a in closed)}" if closed else "Shown for no α"
    # Not shown is not disproved, but where every gain is above the margin it is.
    open_ = any(_gain(tables, arm, m).low < MARGIN for arm in arms.values())
    held = bool(closed) or (None if open_ else False)
    return [*found, claimed(words, held, f"{shown} of {', '.join(f'{a:g}' for a in alphas)} (two one-sided tests).")]
