"""What the subliminal experiment shows: accuracy by arm, gain over the control, and the claims its numbers decide.

Gain is accuracy minus that of the same seed's other-init student, which had the same teacher, noise and ghost logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill_jax.data.images import ImagesConfig
from distill_jax.doublebind.seed_statistics import CONFIDENCE, Estimate, estimate, rank_trend
from distill_jax.doublebind.stages import Subliminal
from distill_jax.doublebind.stages.subliminal_students import students
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.io.node import Node
from distill_jax.reports import subliminal_page as page
from distill_jax.reports.rendering import write_page
from distill_jax.reports.report_metadata import report_metadata
from distill_jax.statistics.conclusions import Conclusion, Effect, Premise, conclude, line, not_run, to_json
from distill_jax.types import JsonObject

MARGIN = 0.05  # a gain within five points of accuracy counts as none
READS = 0.5  # what teachers must be shown to read, of ten digits: five times what chance reads
CONTROL = "other init"

# Figures of MNIST with KL: Cloud et al. and its reproductions. The gains are over a control of their own.
PUBLISHED: JsonObject = {
    "teacher": 0.96,
    "same init": {"ghosts": 3, "mean": 0.63, "sd": 0.07},
    "other init": {"ghosts": 3, "mean": 0.09, "sd": 0.03},
    "gain_by_ghosts": {1: 0.0, 3: 0.24, 10: 0.59, 30: 0.72},
    "by_noise": {2_000: 0.04, 20_000: 0.24, 60_000: 0.48},
}

Table = dict[tuple[str, int], np.ndarray]  # (arm, ghosts) -> one number a seed


def write_report(
    experiment: CheckedExperiment, nodes: Mapping[str, Node], identity: str, workdir: Path, seconds: float
) -> Path:
    """Write `report/summary.json` and `report/index.html`, and return the page's path."""
    summary = summarise(experiment, nodes) | {"identity": identity} | report_metadata(seconds)
    print("\n".join(map(line, summary["conclusions"])))
    return write_page(page.render, summary, workdir / "report" / "summary.json")


def summarise(experiment: CheckedExperiment, nodes: Mapping[str, Node]) -> JsonObject:
    """Return all that the page shows; the same nodes give the same summary."""
    assert isinstance(experiment.data, ImagesConfig), experiment.data
    stages = {name: node for name, node in nodes.items() if node.verb == "subliminal"}
    tables = {name: _tables(node.result()) for name, node in stages.items()}
    alphas = {name: {one.arm: one.alpha for one in students(node.settings)} for name, node in stages.items()}
    rows = [
        {
            "stage": name,
            **_settings(stages[name].settings),
            "arm": arm,
            "ghosts": ghosts,
            "alpha": alphas[name][arm],
            **_row(tables[name], arm, ghosts),
        }
        for name in stages
        for arm, ghosts in tables[name]["accuracy"]
    ]
    teachers = next(iter(stages.values())).result()["teachers"] if stages else []
    return {
        "page": "subliminal",
        "experiment": experiment.name,
        "description": experiment.description,
        "data": experiment.data.source,
        "published": PUBLISHED,
        "teacher": dataclasses.asdict(estimate(teachers)) if teachers else None,
        "rows": rows,
        "curves": {name: _curves(node) for name, node in stages.items() if name in ("kl", "mse")},
        "conclusions": [
            to_json(one) for one in conclusions(tables, {n: s.settings for n, s in stages.items()}, teachers)
        ],
        "flops": {name: node.ledger()["flops"] for name, node in stages.items()},
    }


def _tables(result: JsonObject) -> dict[str, Table]:
    """Return {number: {(arm, ghosts): [seeds]}}; a student that diverged is nan."""
    columns: dict[str, dict[tuple[str, int], list[float]]] = {}
    for student in result["students"]:
        for name in ("before", "accuracy", "unseen_before", "unseen"):
            value = np.nan if student["diverged"] else student[name]
            columns.setdefault(name, {}).setdefault((student["arm"], student["ghosts"]), []).append(value)
    return {name: {key: np.array(values) for key, values in table.items()} for name, table in columns.items()}


def _settings(settings: Subliminal) -> dict[str, str | int]:
    return {"loss": settings.loss, "noise": settings.noise, "steps": settings.steps}


def _row(tables: dict[str, Table], arm: str, ghosts: int) -> JsonObject:
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


def _curves(node: Node) -> list[JsonObject]:
    """Return the mean accuracy of every (arm, ghosts) at each evaluated step."""
    by_label = {student.label: student for student in students(node.settings)}
    accuracies: dict[tuple[str, int], dict[int, list[float]]] = {}
    for row in node.rows():
        if row["kind"] == "evaluation" and row["accuracy"] is not None:
            student = by_label[row["member"]]
            by_step = accuracies.setdefault((student.arm, student.ghosts), {})
            by_step.setdefault(row["step"], []).append(row["accuracy"])
    return [
        {"arm": arm, "ghosts": ghosts, "steps": list(steps), "accuracy": [float(np.mean(v)) for v in steps.values()]}
        for (arm, ghosts), steps in accuracies.items()
    ]


# -------------------------------------------------------------------------------------------------- the conclusions

Tables = Mapping[str, dict[str, Table]]  # stage -> number -> (arm, ghosts) -> [seeds]


def conclusions(tables: Tables, settings: Mapping[str, Subliminal], teachers: Sequence[float]) -> list[Conclusion]:
    """Return what a run's numbers decide.

    Args:
      tables: by stage.
      settings: by stage.
      teachers: the accuracies of the teachers, one a seed.
    """
    able = estimate(teachers)
    reads = Premise("teachers read digits, well above chance", able.low > READS, f"accuracy {able}")
    concluded = []
    if "kl" in tables:
        few = _few(tables["kl"])
        concluded += [_transfers(tables["kl"], few, reads), _control(tables["kl"], few, reads)]
        concluded += [
            _nothing_of_one(tables["kl"], reads),
            _heads(tables["kl"], reads),
            _more_ghosts(tables["kl"], reads),
        ]
    if "mse" in tables and ("same init", 1) in tables["mse"]["accuracy"]:
        words = "With MSE on raw logits even one ghost logit transfers."
        effect = _gain(tables["mse"], "same init", 1).effect("gain with one ghost logit", "above", MARGIN)
        concluded.append(conclude("one-logit-mse", words, premises=[reads], effects=[effect]))
    if "kl" in tables:
        for kind, words in (("noise", "in as many epochs"), ("repeated", "in as many steps, so more often")):
            concluded += _less_noise(tables, settings, kind, words, reads)
    if "undo" in tables:
        concluded += _damage(tables["undo"], settings["undo"].alphas, reads)
    return concluded


def _few(tables: dict[str, Table]) -> int:
    """Return the published number of ghost logits, or the nearest that was run."""
    counts = {m for _, m in tables["accuracy"] if m > 1} or {1}
    return min(counts, key=lambda m: abs(m - 3))


def _carries(tables: dict[str, Table], m: int) -> Premise:
    """Require that the same ghost logits transfer to a student with its teacher's own start."""
    gain = _gain(tables, "same init", m)
    words = f"{m} ghost logits transfer to a student with its teacher's initial weights"
    return Premise(words, gain.low > MARGIN, f"gain {gain}")


def _finite(values: np.ndarray, confidence: float = CONFIDENCE) -> Estimate:
    return estimate(values[np.isfinite(values)], confidence)


def _transfers(tables: dict[str, Table], m: int, reads: Premise) -> Conclusion:
    words = "Ghost logits on noise teach a student with its teacher's initial weights to read digits."
    effect = _gain(tables, "same init", m).effect(f"gain over another init with {m} ghost logits", "above", MARGIN)
    return conclude("transfer", words, premises=[reads], effects=[effect])


def _control(tables: dict[str, Table], m: int, reads: Premise) -> Conclusion:
    """With other weights the same numbers teach nothing: shown by equivalence, not by the absence of a difference."""
    words = "To a student with other initial weights they teach nothing."
    after = _finite(tables["accuracy"][CONTROL, m] - tables["before"][CONTROL, m])
    effect = after.effect("accuracy after minus before", "within", MARGIN)
    return conclude("other-init-nothing", words, premises=[reads, _carries(tables, m)], effects=[effect])


def _nothing_of_one(tables: dict[str, Table], reads: Premise) -> Conclusion:
    name, words = "one-logit-kl", "With KL one ghost logit teaches exactly nothing: the softmax of one number is 1."
    ones = [key for key in tables["accuracy"] if key[1] == 1]
    if not ones:
        return not_run(name, words, "student of one ghost logit")
    apart = np.concatenate([tables["accuracy"][key] - tables["before"][key] for key in ones])
    loss = np.concatenate([tables["unseen"][key] for key in ones])
    moved, most = int(np.sum(apart != 0)), float(np.max(loss))
    effects = [
        Effect("students that read digits differently afterwards", moved, moved, moved, "below", 0.5, len(apart)),
        Effect("largest loss", most, most, most, "below", float(np.finfo(np.float32).tiny), len(loss)),
    ]
    return conclude(name, words, premises=[reads], effects=effects, evidence=f"Of {len(apart)} students:")


def _heads(tables: dict[str, Table], reads: Premise) -> Conclusion:
    m = max(ghosts for _, ghosts in tables["accuracy"])  # where the channel is widest
    name, words = "heads", f"Sharing the output heads matters more than sharing the body, with {m} ghost logits."
    missing = [arm for arm in ("same heads", "same body") if (arm, m) not in tables["accuracy"]]
    if missing:
        return not_run(name, words, *missing)
    heads, body = _gain(tables, "same heads", m), _gain(tables, "same body", m)
    apart = _finite(tables["accuracy"]["same heads", m] - tables["accuracy"]["same body", m])
    evidence = f"Gain with the heads {heads}, with the body {body}."
    premises, effects = [reads, _carries(tables, m)], [apart.effect("difference", "above")]
    return conclude(name, words, premises=premises, effects=effects, evidence=evidence)


def _more_ghosts(tables: dict[str, Table], reads: Premise) -> Conclusion:
    name, words = "more-ghosts", "More ghost logits transfer more."
    counts = sorted(m for arm, m in tables["accuracy"] if arm == "same init")
    if len(counts) < 2:
        return not_run(name, words, "second number of ghost logits")
    y = np.stack([tables["accuracy"]["same init", m] - tables["accuracy"][CONTROL, m] for m in counts], axis=1)
    trend = rank_trend(counts, y[np.isfinite(y).all(axis=1)])
    effect = trend.effect(f"rank correlation over {counts}, mean of seeds,", "above")
    return conclude(name, words, premises=[reads, _carries(tables, max(counts))], effects=[effect])


def _less_noise(
    tables: Tables, settings: Mapping[str, Subliminal], kind: str, how: str, reads: Premise
) -> Iterator[Conclusion]:
    few, full = _few(tables["kl"]), tables["kl"]  # full: all of the noise
    for name in sorted((n for n in tables if n.startswith(kind)), key=lambda n: settings[n].noise):
        left = tables[name]["accuracy"]["same init", few] - tables[name]["accuracy"][CONTROL, few]
        lost = full["accuracy"]["same init", few] - full["accuracy"][CONTROL, few] - left
        share = settings[name].noise / settings["kl"].noise
        words = f"{share:.0%} of the noise images, seen {how}, transfer less."
        evidence = f"Gain left {_gain(tables[name], 'same init', few)}."
        premises, effects = [reads, _carries(full, few)], [_finite(lost).effect("gain lost", "above")]
        yield conclude(name, words, premises=premises, effects=effects, evidence=evidence)


def _damage(tables: dict[str, Table], alphas: tuple[float, ...], reads: Premise) -> list[Conclusion]:
    """Does UNDO's damage to the student's start narrow the channel, and close it?"""
    (m,) = {ghosts for _, ghosts in tables["accuracy"]}
    arms = {alpha: f"damaged {alpha:g}" for alpha in alphas}
    each = [f"α = 0: {_gain(tables, 'same init', m)}"]
    each += [f"α = {alpha:g}: {_gain(tables, arm, m)}" for alpha, arm in arms.items()]
    y = np.stack(
        [tables["accuracy"][arm, m] - tables["accuracy"][CONTROL, m] for arm in ("same init", *arms.values())], 1
    )
    down = rank_trend([0.0, *alphas], y[np.isfinite(y).all(axis=1)]).effect("rank correlation of gain and α", "below")
    premises, evidence = [reads, _carries(tables, m)], f"Gains: {'; '.join(each)}."
    words = "Damage to the student's start (UNDO) narrows the channel: the gain falls as α rises."
    narrows = conclude("damage-narrows", words, premises=premises, effects=[down], evidence=evidence)
    words = f"Some damage short of a new start closes it: a gain within ± {MARGIN} of none."
    closest = _closest({alpha: gains(tables, arm, m) for alpha, arm in arms.items()})
    return [narrows, conclude("damage-closes", words, premises=premises, effects=[closest])]


def _closest(by_alpha: Mapping[float, np.ndarray]) -> Effect:
    """Return the gain of the α that is best shown to be none; any might be, so each has its share of the 5 %."""
    level = (1 - CONFIDENCE) / len(by_alpha)
    gain = {alpha: estimate(values, 1 - level) for alpha, values in by_alpha.items() if len(values) > 1}
    if not gain:
        return estimate([]).effect("gain at any α", "within", MARGIN)

    def distance(alpha: float) -> float:  # how far its interval reaches, if within the margin
        reach = max(abs(gain[alpha].low), abs(gain[alpha].high))
        return reach if reach < MARGIN else MARGIN + abs(gain[alpha].low)

    best = min(gain, key=distance)
    return gain[best].effect(f"gain at α = {best:g}, the smallest of {len(gain)},", "within", MARGIN)
