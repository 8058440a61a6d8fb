"""The certificate before a referee: of suppressed models, of twins of the oracle, and of what only rounding shows."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from distill_jax.statistics.conclusions import State
from tests.referee import certificate, certified, swept, swept_states
from tests.test_referee import bound, draws

pytestmark = pytest.mark.unit
ORACLE = 0.07


def states(count: int, kind: str, *ends: float, seeds: int, **changes) -> collections.Counter[State]:
    """Return how often the certificate of a candidate with these true ends is in each state."""
    out: collections.Counter[State] = collections.Counter()
    for draw in range(count):
        sweep = swept(np.random.default_rng([5, draw]), certified(kind, *ends), seeds=seeds, **changes)
        out[certificate(sweep, kind)] += 1
    return out


@pytest.mark.parametrize("seeds", [5, 20])
def test_a_suppressed_model_gets_no_certificate(request, seeds):
    assert not states(draws(request), "suppressed", 0.6, 0.6, 0.6, seeds=seeds)[State.HELD]


@pytest.mark.parametrize("seeds", [5, 20])
@pytest.mark.parametrize("edge", [0.05, -0.05])
def test_what_is_the_margin_away_is_certified_at_most_one_time_in_twenty(request, seeds, edge):
    count = draws(request)
    said = states(count, "random student", *[ORACLE + edge] * 3, seeds=seeds)
    assert said[State.HELD] <= bound(count) and not said[State.VOID], said


def test_a_twin_of_the_oracle_is_certified_with_enough_seeds_and_hardly_ever_refused(request):
    count = draws(request)
    few, many = (states(count, "random student", *[ORACLE] * 3, seeds=seeds) for seeds in (5, 30))
    assert few[State.FAILED] <= bound(count) and many[State.FAILED] <= bound(count)
    assert many[State.HELD] > 0.8 * count and few[State.HELD] < many[State.HELD], (few, many)


@pytest.mark.parametrize("leak", [1, 2])
def test_what_comes_back_by_rounding_alone_is_seen(leak):
    ends = [ORACLE] * 3
    ends[leak] = 0.3
    said = states(20, "random student", *ends, seeds=20)
    assert said[State.FAILED] == 20, said


def test_without_five_seeds_or_where_rounding_breaks_the_model_nothing_is_certified():
    assert states(10, "random student", *[ORACLE] * 3, seeds=4)[State.NOT_RUN] == 10
    assert states(10, "random student", *[ORACLE] * 3, seeds=30, quantised={"retain": 0.5})[State.VOID] == 10


def test_a_sweep_that_rounds_nothing_says_so():
    assert swept_states(swept(np.random.default_rng(0)))["certificate"] is State.NOT_RUN


def test_a_filtered_model_gets_no_certificate_of_an_attack_that_brings_nothing_back():
    """It has no method of its own; that the attack works is seen on a suppressed model, or not at all."""
    ends = certified("filtered", *[0.0] * 3)
    weak = ends | {("suppressed", None, None): 0.0}
    alone = {key: end for key, end in ends.items() if key[0] != "suppressed"}
    nothing = {key: 0.0 if key[0] == "oracle" else end for key, end in weak.items()}
    for truths in (weak, alone, nothing):
        assert certificate(swept(np.random.default_rng(0), truths, seeds=20), "filtered") is State.VOID
    twin = certified("filtered", *[ORACLE] * 3)
    assert certificate(swept(np.random.default_rng(0), twin, seeds=60), "filtered") is State.HELD
