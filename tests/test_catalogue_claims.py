"""What is said of a catalogue of attacks beside the attack of record: nothing where neither brings anything back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from distill_jax.evals.scale import ACCURACY
from distill_jax.experiment.roles import Role
from distill_jax.reports.attack_catalogue import AttackedModel
from distill_jax.reports.attacked import Run
from distill_jax.reports.claims_attacks import judge_attacks, more_than_record
from distill_jax.statistics.attack_choice import Configuration
from distill_jax.statistics.conclusions import State
from tests.referee import GOOD, PROMPTS, world

pytestmark = pytest.mark.unit
STEPS = np.array([0.0, 100.0])


def attack(level: float, kept: float = 1.0) -> Configuration:
    """Return an attack that ends at a level with each of three seeds, and keeps so much of the retain score."""
    rng = np.random.default_rng(1)
    right = rng.binomial(PROMPTS.astype(int), level, (3, len(PROMPTS))) / PROMPTS
    heldout = np.stack([np.zeros_like(right), right], axis=1)
    return Configuration("x", "x", 1e-3, STEPS, STEPS, STEPS, heldout, np.broadcast_to([1.0, kept], (3, 2)))


@pytest.mark.parametrize(
    ("catalogue", "record", "state"),
    [(0.0, 0.0, State.VOID), (0.6, 0.6, State.HELD), (0.6, 0.0, State.HELD), (0.0, 0.6, State.FAILED)],
)
def test_no_less_than_nothing_is_not_strong(catalogue, record, state):
    truths = {name: dataclasses.replace(GOOD[name], after=record) for name in ("reference", "maxent")}
    run = Run(world(np.random.default_rng(0), truths), ACCURACY)
    attacked = AttackedModel([attack(catalogue)], [attack(record)], PROMPTS, 0.8, 0.0)
    assert more_than_record(run, run.named["maxent"], attacked).state is state


@pytest.mark.parametrize(("kept", "state"), [(1.0, State.OPEN), (0.1, State.VOID)])
def test_where_every_attack_breaks_the_model_nothing_is_said_of_its_robustness(kept, state):
    """Its worst case would be the model before any attack, which gives back nothing."""
    run = Run(world(np.random.default_rng(0), GOOD), ACCURACY)
    students = [model.name for model in run.models if model.role is Role.RANDOM_STUDENT]
    attacked = {name: AttackedModel([attack(0.0, kept)], [], PROMPTS, 0.8, 0.0) for name in students}
    attacked["oracle"] = AttackedModel([attack(0.0)], [], PROMPTS, 0.8, 0.0)
    judged = {one.name: one for one in judge_attacks(run, attacked)}
    found = judged[f"catalogue, oracle: {students[0]}"]
    assert found.state is state and ("leaves 80% of its retain score" in found.evidence) == (state is State.VOID)
