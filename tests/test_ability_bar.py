"""One bar of ability for every finding of a sweep: a recipe counts with all of its training seeds, or not at all."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from distill_jax.reports.findings import distilling, filtering, rises_with_alpha
from distill_jax.reports.sweep_evidence import Sweep
from distill_jax.statistics.conclusions import State
from tests.referee import SWEPT, swept

pytestmark = pytest.mark.unit


def spoilt(kind: str, seed: int, alpha: float | None = None, **changes: Any) -> Sweep:
    """Return a sweep of five seeds in which one run of a recipe is changed."""
    sweep = swept(np.random.default_rng(0), SWEPT, seeds=5)
    runs = [r | changes if (r["kind"], r["alpha"], r["seed"]) == (kind, alpha, seed) else r for r in sweep.runs]
    return dataclasses.replace(sweep, runs=runs)


def test_the_bar_is_a_tenth_below_the_mean_of_those_that_learned_it_all_and_the_same_for_all():
    """The best of five references is lucky by .08: what lies a tenth below the mean counts, and less does not."""
    lucky = {f"reference None None {seed} []": retain for seed, retain in enumerate((0.98, 0.88, 0.88, 0.88, 0.88))}
    for retain, counts in ((0.801, True), (0.799, False)):
        sweep = spoilt("random student", 2, retain=retain)
        runs = [r | {"retain": lucky.get(r["id"], r["retain"] if r["retain"] != 0.9 else 0.85)} for r in sweep.runs]
        sweep = dataclasses.replace(sweep, runs=runs)
        assert (distilling(sweep, "maxent").state is State.HELD) is counts
        assert (filtering(sweep).state is not State.VOID) is counts


def test_a_value_of_alpha_of_which_a_seed_lost_its_ability_is_left_out_whole():
    sweep = spoilt("undo", 3, 0.8, retain=0.5)
    evidence = rises_with_alpha(sweep, "maxent", 0.0).evidence
    assert "5 seeds" in evidence and "0.5:" in evidence and "0.8:" not in evidence
    assert {run["alpha"] for run in sweep.usable if run["kind"] == "undo"} == {0.2, 0.5}


@pytest.mark.parametrize("change", [{"diverged": True}, {"recovered": False}, {"retain": None}])
def test_what_came_to_no_end_makes_findings_on_it_void_with_its_reason(change):
    finding = distilling(spoilt("random student", 1, **change), "maxent")
    assert finding.state is State.VOID and "1 of 5 training seeds" in finding.evidence
