"""What is said of a catalogue of attacks beside the attack of record: nothing where neither brings anything back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from distill_jax.evals.scale import ACCURACY
from distill_jax.reports.attack_catalogue import AttackedModel
from distill_jax.reports.attacked import Run
from distill_jax.reports.claims_attacks import more_than_record
from distill_jax.statistics.attack_choice import Configuration
from distill_jax.statistics.conclusions import State
from tests.referee import GOOD, PROMPTS, world

pytestmark = pytest.mark.unit
STEPS = np.array([0.0, 100.0])


def attack(level: float) -> Configuration:
    """Return an attack that ends at a level with each of three seeds."""
    rng = np.random.default_rng(1)
    right = rng.binomial(PROMPTS.astype(int), level, (3, len(PROMPTS))) / PROMPTS
    heldout = np.stack([np.zeros_like(right), right], axis=1)
    return Configuration("x", "x", 1e-3, STEPS, STEPS, STEPS, heldout, np.ones((3, 2)))


@pytest.mark.parametrize(
    ("catalogue", "record", "state"),
    [(0.0, 0.0, State.VOID), (0.6, 0.6, State.HELD), (0.6, 0.0, State.HELD), (0.0, 0.6, State.FAILED)],
)
def test_no_less_than_nothing_is_not_strong(catalogue, record, state):
    truths = {name: dataclasses.replace(GOOD[name], after=record) for name in ("reference", "maxent")}
    run = Run(world(np.random.default_rng(0), truths), ACCURACY)
    attacked = AttackedModel([attack(catalogue)], [attack(record)], PROMPTS, 0.8, 0.0)
    assert more_than_record(run, run.named["maxent"], attacked).state is state
