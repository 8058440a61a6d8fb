"""A certificate: a model is as robust as retraining, at the precision that it was trained in and rounded to fewer bits.

Equivalence is shown, not the lack of a difference: at every precision, after the worst of the attack's rates, the whole
interval of the difference to the oracle lies within the margin (two one-sided tests, Schuirmann 1987). All precisions
must pass (an intersection-union test), so none is corrected for the others. Several candidates are several
certificates: with N each is tested at 1 / N of the level (Bonferroni), so that all that are given are right at once.
The unit is the training seed. Rounding belongs to it as INT4 brings back what unlearning moved by less than half a step
(DurableUn, arXiv 2605.02196).
"""

from __future__ import annotations

from collections.abc import Sequence

from distill_jax.experiment.roles import Role
from distill_jax.reports.sweep_evidence import (
    MARGIN,
    Run,
    Sweep,
    by_training_seed,
    difference,
    grouped,
    lacking,
    left_out,
    premises_on,
)
from distill_jax.statistics.conclusions import Conclusion, Effect, conclude, not_run

PRECISIONS = {None: "fp32", 8: "INT8", 4: "INT4"}
TRAINING_SEEDS = 5
CANDIDATES = (Role.SUPPRESSED, Role.RANDOM_STUDENT, Role.UNDO, Role.FILTERED)


def certificates(sweep: Sweep) -> list[Conclusion]:
    """Return a conclusion for each model whose rounded versions were attacked too; one that is not run if none was."""
    attacked = [r for r in sweep.runs if r["id"] in sweep.after and r["rounded"] in CANDIDATES]
    candidates = [same for same in grouped(attacked, "rounded_recipe").values()]
    if not candidates:
        return [
            not_run("certificate", "A model is as robust as retraining, rounded or not.", "attack on rounded models")
        ]
    return [_certificate(sweep, same, len(candidates)) for same in candidates]


def _certificate(sweep: Sweep, rounded: Sequence[Run], candidates: int) -> Conclusion:
    """Compare one recipe with the oracle, rounded like it, at every precision.

    Args:
      rounded: its rounded runs.
      candidates: how many recipes may get a certificate.
    """
    one = rounded[0]
    label, method, recipe = one["label"].partition(" of ")[2], one["method"], one["rounded_recipe"]
    claim = f"{label} is as robust as retraining on filtered data, in fp32 and rounded to INT8 and INT4 (certificate)."
    setting = (one["rounded"], method, one["alpha"], one["beta"])
    name = "certificate, " + ", ".join(str(part) for part in setting if part is not None)

    def pairs(sweep: Sweep, bits: int | None) -> list[tuple[Run, Run]]:
        own = {"recipe": recipe} if bits is None else {"rounded_recipe": recipe}
        return _pairs(_at(sweep, one["rounded"], bits, **own), _at(sweep, Role.ORACLE, bits))

    def compared(sweep: Sweep) -> list[tuple[Run, Run]]:
        each = [pairs(sweep, bits) for bits in PRECISIONS]
        return [pair for same in each for pair in same] if min(map(len, each)) >= TRAINING_SEEDS else []

    if not compared(sweep):
        what = f"set of {TRAINING_SEEDS} training seeds of it and of the oracle at every precision"
        return lacking(sweep, name, claim, what, compared)
    each = {precision: pairs(sweep, bits) for bits, precision in PRECISIONS.items()}
    effects = [_gap(sweep, precision, same, candidates) for precision, same in each.items()]
    counts = ", ".join(f"{precision} {len(same)}" for precision, same in each.items())
    text = f"Difference to the oracle after the attack, {counts} training seeds; held within {MARGIN:g} at each."
    text += f" Intervals are simultaneous for {candidates} candidates." if candidates > 1 else ""
    premises = premises_on(sweep, method or _hiding(sweep))  # a filtered model has no method of its own
    return conclude(name, claim, premises=premises, effects=effects, evidence=text + left_out(sweep))


def _hiding(sweep: Sweep) -> str:
    """Return a method whose suppressed models were attacked, by which the attack is seen to work; "" for none."""
    attacked = (r["method"] for r in sweep.runs if r["kind"] == Role.SUPPRESSED and r["id"] in sweep.after)
    return next(filter(None, attacked), "")


def _at(sweep: Sweep, kind: str | None, bits: int | None, **wanted: object) -> list[Run]:
    """Return the usable models of a kind as trained, or the rounded ones that were of that kind."""
    if bits is None:
        return sweep.of(kind, **wanted) if kind else []
    return sweep.of(Role.QUANTISED, rounded=kind, bits=bits, **wanted)


def _pairs(models: Sequence[Run], oracles: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return each model beside the oracle of its training seed."""
    by_seed = {run["seed"]: run for run in oracles}
    return [(run, by_seed[run["seed"]]) for run in models if run["seed"] in by_seed]


def _gap(sweep: Sweep, precision: str, pairs: Sequence[tuple[Run, Run]], candidates: int) -> Effect:
    sides = [by_training_seed(sweep, [pair[i] for pair in pairs]) for i in (0, 1)]
    return difference(f"{precision}: model − oracle", [(1.0, sides[0]), (-1.0, sides[1])], "within", MARGIN, candidates)
