"""Worlds of known truth for the rules that conclude: how often each says held where it must not, and where it should.

  python -m tests.referee            prints the table of docs/statistics.md

An answer of model m to fact f under attacker's seed s is right with probability Φ((z + √ρ·d_f) / √(1 − ρ)), where d_f
is how easy the fact is, to every model alike, and Φ(z) the model's true accuracy, moved by the luck of its training and
of the seed: so facts are crossed with seeds, and no number of seeds makes them more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from distill_jax.evals.scale import ACCURACY, Scale
from distill_jax.experiment.roles import Role
from distill_jax.reports.attacked import Run
from distill_jax.reports.claims import judge
from distill_jax.reports.findings import findings
from distill_jax.reports.headline import as_the_oracle, beyond_suppression, comparison
from distill_jax.reports.premises import Model
from distill_jax.reports.sweep_evidence import Sweep
from distill_jax.statistics.conclusions import State
from distill_jax.statistics.estimates import Scores, band, contrast

PROMPTS = np.array([2.0] * 87 + [1.0] * 18)  # 192 prompts on 105 facts, as configs/arithmetic.py:cpu asks
RUN_SD, SEED_SD, ALIKE = 0.03, 0.02, 0.8  # between trainings; between attackers; ρ
ALPHAS = (0.2, 0.4, 0.6, 0.8)


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is true of a model: its accuracy on held-out facts before and after the attack, and what else is known.

    Attributes:
      unlocked: the accuracy behind a password, before the attack; None where it is not asked.
    """

    before: float
    after: float
    retain: float = 0.9
    steps: int = 100
    recovered: bool | None = None
    compute: float = 1.0
    bf16: float | None = None
    diverged: bool = False
    unlocked: float | None = None


GOOD = {
    "reference": Truth(0.93, 0.94), "oracle": Truth(0.03, 0.07), "maxent": Truth(0.0, 0.6),
    "graddiff": Truth(0.0, 0.55), "rmu": Truth(0.03, 0.8), "student": Truth(0.0, 0.09, recovered=True),
    "student-graddiff": Truth(0.0, 0.07, recovered=True), "student-rmu": Truth(0.02, 0.2, recovered=True),
    "student-reference": Truth(0.72, 0.73, recovered=True), "match-from-reference": Truth(0.03, 0.3),
    "match-from-random": Truth(0.03, 0.07),
    **{f"undo-{a}": Truth(0.0, after, steps=steps, recovered=True, compute=cost) for a, after, steps, cost in zip(
        ALPHAS, (0.6, 0.45, 0.23, 0.07), (100, 210, 300, 390), (0.11, 0.12, 0.24, 0.46), strict=True)},
}  # fmt: skip
TEACHERS = {"student-graddiff": "graddiff", "student-rmu": "rmu", "student-reference": "reference"}


def made_as(name: str) -> dict[str, Any]:
    """Return the role of a model of this name, and its method."""
    roles = {
        "reference": Role.REFERENCE, "oracle": Role.ORACLE, "student-reference": Role.REFERENCE_STUDENT,
        "match-from-reference": Role.MATCHED_REFERENCE, "match-from-random": Role.MATCHED_STUDENT,
        **dict.fromkeys(("maxent", "graddiff", "rmu"), Role.SUPPRESSED),
        "undo-0.0": Role.UNDAMAGED, "student-budget": Role.EQUAL_COMPUTE, "hidden": Role.LOCKED, "erased": Role.ERASED,
    }  # fmt: skip
    prefixes = {"undo": Role.UNDO, "student": Role.RANDOM_STUDENT}
    role = roles.get(name, prefixes.get(name.partition("-")[0], Role.OTHER))
    method = next((m for m in ("graddiff", "rmu") if m in name), "maxent")
    return {"role": role, "method": None if role in (Role.REFERENCE, Role.ORACLE) else method}


def answers(rng: np.random.Generator, p: float, easy: np.ndarray, seeds: int, run: float, spread: float) -> Scores:
    """Draw one model's answers under each attacker's seed."""
    mean = np.clip(p + run + spread * rng.standard_normal((seeds, 1)), 1e-6, 1 - 1e-6)
    right = ndtr((ndtri(mean) + np.sqrt(ALIKE) * easy) / np.sqrt(1 - ALIKE))
    by_fact = rng.binomial(PROMPTS.astype(int), right) / PROMPTS
    return Scores(by_fact @ PROMPTS / PROMPTS.sum(), by_fact, PROMPTS, len(PROMPTS))


def world(
    rng: np.random.Generator, truths: Mapping[str, Truth] = GOOD, *, seeds: int = 3, seed_sd: float = SEED_SD
) -> list[Model]:
    """Draw a run's models from what is true of them."""
    easy = rng.standard_normal(len(PROMPTS))
    made = []
    for name, truth in truths.items():
        run = RUN_SD * float(rng.standard_normal())
        draw = lambda p, spread=seed_sd, run=run: answers(rng, p, easy, seeds, run if p > 0.01 else 0.0, spread)  # noqa: E731
        before, after = draw(truth.before, 0.0), draw(truth.after)
        weights = {"float32": after}
        if truth.bf16 is not None:
            weights["bfloat16"] = draw(truth.bf16)
        asked = None if truth.unlocked is None else draw(truth.unlocked, 0.0).by_fact
        alpha = float(name.removeprefix("undo-")) if name.startswith("undo-") else None
        distilled = alpha is not None or name.startswith("student")
        made.append(
            Model(
                name, name, truth.retain, before.value, asked=210, recovered=truth.recovered, diverged=truth.diverged,
                unlearned=name in ("maxent", "graddiff", "rmu"), alpha=alpha, steps=truth.steps, **made_as(name),
                teacher=TEACHERS.get(name, "maxent") if distilled else "", before=before, after=after,
                compute={"schedule": truth.compute, "first_passage": 2 * truth.compute}, shown=(0.0, 1.0),
                by_weights=weights, attack_steps=100,
                unlocked=None if asked is None else Scores.of_facts(asked[0], PROMPTS),
            )
        )  # fmt: skip
    return made


def states(models: Sequence[Model], scale: Scale = ACCURACY) -> dict[str, State]:
    """Return what every rule says of a run, the headline's two among them."""
    run = Run(models, scale)
    chosen = comparison(run)
    said = [*judge(models, scale), beyond_suppression(run, chosen), as_the_oracle(run, chosen)]
    return {one.name: one.state for one in said}


SWEPT = {
    ("reference", None, None): 0.94, ("oracle", None, None): 0.07, ("suppressed", None, None): 0.6,
    ("filtered", None, None): 0.07, ("random student", None, None): 0.07, ("alpha 0", 0.0, 0.0): 0.6,
    **{("undo", a, b): end for a, end in ((0.2, 0.6), (0.5, 0.35), (0.8, 0.07)) for b in (0.0, 0.1)},
    ("noise only", 0.8, 0.1): 0.6,
}  # fmt: skip
Setting = tuple[str, float | None, float | None] | tuple[str, None, None, int]  # kind, α, β; of a rounded one bits, too


def swept(
    rng: np.random.Generator, truths: Mapping[Setting, float] = SWEPT, *, seeds: int = 3, **changes: Any
) -> Sweep:
    """Draw a sweep over training seeds, one attacker each, from the true accuracy after the attack of each setting.

    Args:
      changes: of all runs' fields, by kind.
    """
    easy = rng.standard_normal(len(PROMPTS))
    runs, before, after = [], {}, {}
    for (kind, alpha, beta, *bits), end in truths.items():
        for seed in range(seeds):
            known = kind == "reference"
            rounded: dict[str, Any] = {"rounded": None, "bits": None, "label": kind}
            if bits:
                rounded = {"kind": "quantised", "rounded": kind, "bits": bits[0], "label": f"INT{bits[0]} of {kind}"}
            run: dict[str, Any] = {
                "id": f"{kind} {alpha} {beta} {seed} {bits}", "kind": kind, "alpha": alpha, "beta": beta, "seed": seed,
                **rounded, "recipe": f"{kind} {alpha} {beta} {bits}", "world": "", "settings": {}, "labeller": None,
                "rounded_recipe": f"{kind} {alpha} {beta} []" if bits else None,
                "method": None if kind in ("reference", "oracle", "filtered") else "maxent", "retain": 0.9,
                "forget": 0.93 if known else 0.0, "recovered": None, "diverged": False, "steps": 100,
                "compute": {"whole": {"student": 1.0, "teacher": 1.0}},
                "vs_retraining": {"whole": 0.4}, "vs_first_passage": {"whole": 0.9},
            }  # fmt: skip
            run |= changes.get(run["kind"].replace(" ", "_"), {})
            luck = RUN_SD * float(rng.standard_normal())
            before[run["id"]] = answers(rng, run["forget"], easy, 1, 0.0, 0.0)
            after[run["id"]] = answers(rng, end, easy, 1, luck if end > 0.01 else 0.0, 0.0)
            runs.append(run)
    return Sweep(runs, before, after)


def certified(kind: str, fp32: float, int8: float, int4: float) -> dict[Setting, float]:
    """Return a sweep's truths: a candidate and the oracle at three precisions, beside what the premises need."""
    rows: dict[Any, float] = {("reference", None, None): 0.94, ("suppressed", None, None): 0.6}
    for bits, end in {(): fp32, (8,): int8, (4,): int4}.items():
        rows |= {("oracle", None, None, *bits): SWEPT[("oracle", None, None)], (kind, None, None, *bits): end}
    return rows


def certificate(sweep: Sweep, kind: str) -> State:
    """Return the state of the certificate of a kind of model."""
    return next(state for name, state in swept_states(sweep).items() if name.startswith(f"certificate, {kind}"))


def swept_states(sweep: Sweep) -> dict[str, State]:
    """Return what every finding on a sweep says."""
    return {one.name: one.state for one in findings(sweep)}


# The table


def report_power(name: str, truths: Mapping[str, Truth], seeds: int, count: int) -> float:
    """Return how often a rule says held of a run."""
    return float(np.mean([states(world(_rng(i), truths, seeds=seeds))[name] is State.HELD for i in range(count)]))


def sweep_power(name: str, truths: Mapping[Setting, float], seeds: int, count: int) -> float:
    """Return how often a finding is held of a sweep."""
    return float(np.mean([swept_states(swept(_rng(i), truths, seeds=seeds))[name] is State.HELD for i in range(count)]))


def _rng(draw: int) -> np.random.Generator:
    return np.random.default_rng([11, draw])


def ending(ends: Mapping[str, float]) -> dict[str, Truth]:
    """Return the good run with some models ending elsewhere, and no more models than a rule needs."""
    needed = ("reference", "oracle", "rmu", "maxent", *ends)
    return {n: dataclasses.replace(GOOD[n], after=ends.get(n, GOOD[n].after)) for n in dict.fromkeys(needed)}


def one_run(count: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Return what rules say of one training run a model: how often held, by the true effect; the first is a null."""
    rows = []
    for seeds in (1, 3):
        gaps = {f"{gap:g}": ending({"maxent": 0.15 + gap, "student": 0.15}) for gap in (0.0, 0.1, 0.15, 0.2, 0.3)}
        rows.append((f"student against its teacher, {seeds} attackers", "distilling maxent", gaps, seeds))
    slope = lambda drop: ending({f"undo-{a}": 0.5 - drop * (a - 0.2) / 0.6 for a in ALPHAS})  # noqa: E731
    drops = {f"{drop:g}": slope(drop) for drop in (0.0, 0.1, 0.15, 0.2, 0.3)}
    rows.append(("fall from α = .2 to .8", "alpha", drops, 3))
    as_good = {
        f"{gap:g}": ending({"match-from-random": 0.07 + gap, "match-from-reference": 0.3}) for gap in (0.05, 0.0)
    }
    rows.append(("no more back than the oracle (± .05)", "matching, oracle", as_good, 3))
    for title, rule, by, attackers in rows:
        yield title, {key: report_power(rule, truths, attackers, count) for key, truths in by.items()}


def several_runs(count: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Return the same of a sweep, by training seeds and true effect."""
    for seeds in (2, 3, 5, 10):
        by = {}
        for drop in (0.0, 0.1, 0.2, 0.3):
            ends = {
                key: 0.5 - drop * (key[1] - 0.2) / 0.6 if key[0] == "undo" and key[1] else end
                for key, end in SWEPT.items()
            }
            by[f"{drop:g}"] = sweep_power("alpha, maxent, 0", ends, seeds, count)
        yield f"fall from α = .2 to .8, {seeds} training seeds", by
    for seeds in (3, 5, 10, 20):
        by = {}
        for gap in (0.05, 0.0):
            ends = SWEPT | {("filtered", None, None): 0.07 + gap}
            by[f"{gap:g}"] = sweep_power("filtering", ends, seeds, count)
        yield f"two models alike (± .05), {seeds} training seeds", by


def certifying(count: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Return how often a certificate is held or failed, by training seeds and the true end at all precisions."""
    for seeds in (5, 10, 20, 30):
        by = {}
        for kind, end in (("suppressed", 0.6), ("random student", 0.12), ("random student", 0.07)):
            drawn = [swept(_rng(i), certified(kind, end, end, end), seeds=seeds) for i in range(count)]
            said = [certificate(sweep, kind) for sweep in drawn]
            by |= {f"{end:g} {state}": said.count(state) / count for state in (State.HELD, State.FAILED)}
        yield f"certificate, oracle .07, {seeds} training seeds", by


def covering(count: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Return how often intervals of three attackers hold the accuracy over all facts."""
    for p in (0.03, 0.08, 0.3, 0.6):
        inside = np.zeros(2)
        for draw in range(4 * count):
            rng = _rng(draw)
            scores = answers(rng, p, rng.standard_normal(len(PROMPTS)), 3, 0.0, 0.01)
            ends = band(scores, ACCURACY), contrast([(1.0, Scores(scores.by_seed))]).interval()
            inside += [low <= p <= high for low, high in ends]
        yield f"accuracy {p:g}", dict(zip(("seeds and facts", "seeds alone"), inside / (4 * count), strict=True))


def main(count: int = 150) -> None:
    """Print the tables."""
    tables = {
        "Coverage of the 95 % interval": covering,
        "One training run a model": one_run,
        "A sweep": several_runs,
        "A certificate": certifying,
    }
    for title, rows in tables.items():
        print(f"\n{title}\n", flush=True)
        for name, by in rows(count):
            print(
                f"| {name} | " + " · ".join(f"{key}: {100 * rate:.0f} %" for key, rate in by.items()) + " |", flush=True
            )


if __name__ == "__main__":
    main()
