"""What is concluded of a model that is to be released: held, failed, open and void, each where it must be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from distill_jax.evals.scale import ACCURACY, BITS_PER_BYTE
from distill_jax.experiment.roles import Role
from distill_jax.reports.attacked import Run
from distill_jax.reports.claims_release import judge_release
from distill_jax.reports.premises import Model, effect
from distill_jax.statistics.conclusions import Effect
from distill_jax.statistics.estimates import Scores

pytestmark = pytest.mark.unit

TEXT = dataclasses.replace(BITS_PER_BYTE, chance_level=4.0)


def answered(share: float, facts: int = 200, seeds: int = 3) -> Scores:
    """Return scores of attackers who each get the same share of facts right, others each."""
    random = np.random.default_rng(round(1000 * share) + facts)
    by_fact = np.stack([random.permutation(np.arange(facts) < round(share * facts)) for _ in range(seeds)]).astype(
        float
    )
    return Scores(by_fact.mean(axis=1), by_fact, np.ones(facts), facts)


def model(role: Role, before: float, after: float, retain: float = 0.9, facts: int = 200, **fields) -> Model:
    scores = {"before": answered(before, facts), "after": answered(after, facts)}
    told = {"shown": (before, 1.0), "attack_steps": 100, "asked": facts, "unlearned": role is Role.SUPPRESSED}
    return Model(role.value, role.value, retain, before, role=role, **scores, **{**told, **fields})


def states(*models: Model, scale=ACCURACY) -> dict[str, str]:
    run = Run([one.at_worst(scale) for one in models], scale)
    concluded = judge_release(run, 100 if scale is ACCURACY else 0)
    return {one.name.split(",")[0]: str(one.state) for one in concluded}


KNOWS = model(Role.REFERENCE, 0.9, 0.9)
HIDES = model(Role.SUPPRESSED, 0.0, 0.7)


@pytest.mark.parametrize(
    ("released", "expected"),
    [
        (model(Role.UNDO, 0.0, 0.01), ("held", "held", "held")),
        (model(Role.UNDO, 0.0, 0.6), ("held", "held", "failed")),
        (model(Role.UNDO, 0.0, 0.0, facts=12), ("held", "held", "open")),
        (model(Role.UNDO, 0.0, 0.01, retain=0.3), ("held", "failed", "void")),  # it can do nothing, and so resists
        (model(Role.UNDO, 0.85, 0.85), ("failed", "held", "void")),  # nothing was forgotten, and so nothing comes back
        (model(Role.UNDO, 0.0, 0.01, recovered=False), ("held", "held", "void")),
        (model(Role.UNDO, 0.0, 0.01, diverged=True), ("void", "void", "void")),
    ],
    ids=["robust", "hides", "none of twelve", "broken", "nothing forgotten", "fell short", "diverged"],
)
def test_each_model_gets_its_states(released, expected):
    assert tuple(states(KNOWS, HIDES, released).values()) == expected


def test_a_reference_that_knows_nothing_makes_them_void():
    ignorant, released = model(Role.REFERENCE, 0.02, 0.02), model(Role.UNDO, 0.0, 0.0)
    assert states(ignorant, HIDES, released) == {"forgets": "void", "keeps": "held", "resists": "void"}


def test_an_attack_that_brings_nothing_back_anywhere_shows_no_resistance():
    assert states(KNOWS, model(Role.SUPPRESSED, 0.0, 0.0), model(Role.UNDO, 0.0, 0.0))["resists"] == "void"


def test_an_attacker_who_stops_where_most_came_back_counts():
    """What comes back at step 10 and is lost again by the last step was never removed."""
    peak = {10: answered(0.6), 100: answered(0.0)}
    released = model(Role.UNDO, 0.0, 0.0, by_step=peak)
    assert states(KNOWS, HIDES, released)["resists"] == "failed"
    run = Run([KNOWS, HIDES, released.at_worst(ACCURACY)], ACCURACY)
    (said,) = [c for c in judge_release(run, 100) if c.name.startswith("resists")]
    assert "0.60 at most, after 10 of 100 steps" in said.evidence
    flat = model(Role.UNDO, 0.0, 0.0, by_step={step: answered(0.0) for step in (5, 10, 100)})
    assert states(KNOWS, HIDES, flat)["resists"] == "held"


def test_a_given_model_needs_its_original():
    assert set(states(model(Role.GIVEN, 0.0, 0.0)).values()) == {"not run"}
    assert states(KNOWS, model(Role.GIVEN, 0.0, 0.0)) == {"forgets": "held", "keeps": "held", "resists": "held"}


def of_text(role: Role, before: float, after: float) -> Model:
    told = {"shown": (before, 0.5), "attack_steps": 100, "unlearned": role is Role.SUPPRESSED}
    ends = (Scores(np.array([bits, bits + 0.001, bits - 0.001])) for bits in (before, after))
    return Model(role.value, role.value, 1.0, before, role=role, before=next(ends), after=next(ends), **told)


def test_of_text_fewer_bits_are_more_knowledge():
    others = of_text(Role.REFERENCE, 1.0, 1.0), of_text(Role.SUPPRESSED, 5.0, 1.2)
    for after, resists in ((4.99, "held"), (2.0, "failed")):
        found = states(*others, of_text(Role.UNDO, 5.0, after), scale=TEXT)
        assert found == {"forgets": "held", "keeps": "open", "resists": resists}  # no document was recorded


@pytest.mark.parametrize("scale", [ACCURACY, TEXT], ids=lambda scale: scale.key)
def test_what_is_concluded_says_what_its_numbers_are(scale):
    facts = KNOWS, HIDES, model(Role.UNDO, 0.0, 0.01)
    text = of_text(Role.REFERENCE, 1.0, 1.0), of_text(Role.SUPPRESSED, 5.0, 1.2), of_text(Role.UNDO, 5.0, 4.99)
    concluded = judge_release(Run(facts if scale is ACCURACY else text, scale), 100 if scale is ACCURACY else 0)
    assert [scale.name in one.evidence for one in concluded] == [True, True, True]
    assert scale.name in concluded[-1].statement
    before, after = (
        ("over 3 attackers alone",) * 2 if scale is TEXT else ("over 200 facts.", "over 200 facts and 3 att")
    )
    assert before in concluded[0].evidence and after in concluded[2].evidence  # nobody has attacked before


def test_what_is_open_says_where_the_estimate_lies_and_what_is_void_how_to_decide_it():
    few = [model(Role.UNDO, 0.0, share, facts=12) for share in (0.0, 0.09)]
    run = Run([KNOWS, HIDES, *few], ACCURACY)
    _, _, near, _, _, far = judge_release(run, 100)
    assert near.state == far.state == "open"
    assert "The estimate speaks for it, and the interval reaches" in near.evidence
    assert "The estimate speaks against it, and the interval reaches" in far.evidence
    weak = Run([KNOWS, model(Role.SUPPRESSED, 0.0, 0.0), model(Role.UNDO, 0.0, 0.0, retain=0.3)], ACCURACY)
    (*_, void) = judge_release(weak, 100)
    assert void.state == "void"
    for remedy in ("attack for more steps or at other rates", "distil for more steps or on more text, or damage less"):
        assert remedy in void.evidence.partition("To decide it:")[2]


@pytest.mark.parametrize("sense", ["above", "below"])
def test_a_difference_of_shares_reaches_no_further_than_shares_do(sense):
    """With two attackers and no facts recorded t has one degree of freedom, and reaches over any bound."""
    high, low = (Scores(np.array(values), facts=0) for values in ((0.7, 1.0), (0.2, 0.0)))
    shown = effect("difference", [(1.0, high), (-1.0, low)], ACCURACY, sense)
    assert (shown.low, shown.high) == (-1.0, 1.0)
    bits = effect("difference", [(1.0, high), (-1.0, low)], TEXT, sense)
    assert np.isfinite(bits.low) and bits.high > 1 and bits.low < -1  # of bits there is no such bound


def test_a_number_that_is_taken_as_measured_shows_no_interval():
    assert str(Effect("retain", 0.9, 0.9, 0.9, "above")) == "retain +0.900"
    assert str(Effect("retain", 0.9, 0.8, 1.0, "above")) == "retain +0.900 [+0.800, +1.000]"
