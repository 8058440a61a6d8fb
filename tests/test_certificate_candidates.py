"""Several candidates for a certificate in one sweep: all that are given are right at once, however many ask."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from distill_jax.reports.certificate import PRECISIONS, certificates
from distill_jax.reports.sweep_evidence import MARGIN, Sweep
from distill_jax.statistics.conclusions import Conclusion, State
from distill_jax.statistics.estimates import Scores
from tests.referee import Setting, swept

pytestmark = pytest.mark.unit
ORACLE, SPREAD, DRAWS = 0.2, 0.03, 100


def candidates(count: int, seeds: int) -> Sweep:
    """Return a sweep's runs: so many UNDO models, a suppressed one and the oracle, at every precision."""
    rows: dict[Setting, float] = {("reference", None, None): 0.94}
    for bits in ((), (8,), (4,)):
        rows |= {("oracle", None, None, *bits): ORACLE, ("suppressed", None, None, *bits): 0.6}
        rows |= {("undo", float(i), 0.0, *bits): ORACLE for i in range(count)}
    return swept(np.random.default_rng(0), rows, seeds=seeds)


def drawn(sweep: Sweep, rng: np.random.Generator, gap: float) -> tuple[Sweep, Mapping[str, float]]:
    """Return the sweep with normal scores and those by id: at fp32 UNDO gives back `gap` more than the oracle.

    Rounded, all give back what the oracle does but for a hair, so that fp32 alone decides.
    """
    score = {}
    for run in sweep.runs:
        more = gap if run["kind"] == "undo" else 0.4 if "suppressed" in (run["kind"], run["rounded"]) else 0.0
        score[run["id"]] = ORACLE + more + SPREAD * (0.01 if run["rounded"] else 1) * rng.standard_normal()
    return Sweep(sweep.runs, sweep.before, {key: Scores(np.array([x])) for key, x in score.items()}), score


def of_undo(conclusions: list[Conclusion]) -> list[Conclusion]:
    return [one for one in conclusions if one.name.startswith("certificate, undo")]


@pytest.mark.parametrize("count", [1, 6])
def test_intervals_are_those_of_paired_t_tests_at_the_level_over_the_number_of_candidates(count):
    sweep, score = drawn(candidates(count, seeds=7), np.random.default_rng(1), 0.02)
    conclusions = of_undo(certificates(sweep))
    assert len(conclusions) == count
    for i, one in enumerate(conclusions):
        for bits, effect in zip(PRECISIONS, one.effects, strict=True):
            suffix, names = [] if bits is None else [bits], (f"undo {float(i)} 0.0", "oracle None None")
            pair = [[score[f"{name} {s} {suffix}"] for s in range(7)] for name in names]
            ends = stats.ttest_rel(*pair).confidence_interval(1 - 0.05 / (count + 1))  # the suppressed one asks too
            assert (effect.low, effect.high) == pytest.approx(tuple(ends)), (one.name, bits)


def test_all_candidates_together_are_wrong_at_most_one_time_in_twenty():
    """Each lies the margin from the oracle, where nothing may be given and nothing refused."""
    sweep, rng = candidates(10, seeds=5), np.random.default_rng(2)
    given = refused = 0
    for _ in range(DRAWS):
        states = {one.state for one in of_undo(certificates(drawn(sweep, rng, MARGIN)[0]))}
        given, refused = given + (State.HELD in states), refused + (State.FAILED in states)
    assert max(given, refused) <= 0.05 * DRAWS, (given, refused)


def test_twins_of_the_oracle_are_not_refused_and_a_suppressed_model_beside_them_gets_nothing():
    sweep, rng = candidates(5, seeds=12), np.random.default_rng(3)
    refused, held = 0, 0
    for _ in range(12):
        conclusions = certificates(drawn(sweep, rng, 0.0)[0])
        hidden = [one.state for one in conclusions if one.name.startswith("certificate, suppressed")]
        assert hidden == [State.FAILED]
        states = [one.state for one in of_undo(conclusions)]
        refused, held = refused + (State.FAILED in states), held + states.count(State.HELD)
    assert not refused and held > 0.5 * 12 * 5
