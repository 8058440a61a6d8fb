"""Known truth: what is erased is gone weight by weight, and a run says if its attack tells it from what is hidden."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from distill_jax.experiment.roles import Role, role_of
from distill_jax.models import transformer
from distill_jax.models.presets import preset
from distill_jax.reports.claims import judge
from distill_jax.stages import Erase, Finetune, Lock, Pretrain, Unlearn
from distill_jax.stages.erase import subtract
from distill_jax.statistics.conclusions import State
from tests import referee
from tests.referee import GOOD, Truth, world
from tests.test_referee import bound, draws
from tests.test_roles import nodes_of

pytestmark = pytest.mark.unit
HIDDEN, ERASED = "known truth, hidden", "known truth, erased"


def test_what_was_learned_is_taken_out_and_no_more():
    """Of a model that was only taught, the untaught one is left; of one that was changed since, that change on top."""
    cfg = preset("cpu")
    untaught, taught, other = (transformer.init(cfg, jax.random.key(seed)) for seed in range(3))
    change = jax.tree.map(lambda w: np.float32(0.1) * w, other)
    for started, expected in ((taught, untaught), (jax.tree.map(np.add, taught, change), None)):
        left = subtract(started, taught, untaught)
        expected = expected or jax.tree.map(np.add, untaught, change)
        for ours, theirs in zip(jax.tree.leaves(left), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_one_who_teaches_the_oracle_makes_a_reference():
    nodes = nodes_of({
        "a": Pretrain(data="retain"), "b": Finetune(start="a", data="all"), "c": Unlearn(start="b"),
        "d": Erase(start="c", taught="b", untaught="a"), "e": Finetune(start="a", data="retain"),
        "f": Lock(start="b", password=(3,)),
    })  # fmt: skip
    roles = [Role.ORACLE, Role.REFERENCE, Role.SUPPRESSED, Role.ERASED, Role.FINETUNED, Role.LOCKED]
    assert [role_of(nodes[name], nodes) for name in "abcdef"] == roles


@pytest.fixture(autouse=True)
def one_training(monkeypatch):
    """All models go back to one training run, so no luck of training tells them apart."""
    monkeypatch.setattr(referee, "RUN_SD", 0.0)


KNOWN = {
    "reference": GOOD["reference"], "oracle": Truth(0.01, 0.01),
    "hidden": Truth(0.0, 0.97, unlocked=0.93), "erased": Truth(0.0, 0.01),
}  # fmt: skip


def counted(count: int, name: str, state: State, **truths: Truth) -> int:
    """Return of how many runs of known truth this is said; `truths` are what differs from a good one."""
    drawn = (world(np.random.default_rng([3, i]), KNOWN | truths, seeds=10) for i in range(count))
    return sum({one.name: one.state for one in judge(models)}[name] is state for models in drawn)


def test_an_attack_that_brings_all_back_and_nothing_erased_is_a_good_one():
    assert counted(20, HIDDEN, State.HELD) > 15
    assert counted(20, ERASED, State.HELD) > 15


def test_an_attack_that_leaves_part_of_what_is_hidden_is_told(request):
    count = draws(request)
    assert counted(20, HIDDEN, State.FAILED, hidden=Truth(0.0, 0.6, unlocked=0.93)) == 20
    edge = 0.95 * 0.93 + 0.05 * KNOWN["oracle"].after
    assert counted(count, HIDDEN, State.HELD, hidden=Truth(0.0, edge, unlocked=0.93)) <= bound(count)


@pytest.mark.parametrize("unlocked", [0.0, 0.05, 0.6])
def test_a_password_that_does_not_give_the_ability_back_leaves_nothing_to_be_found(unlocked):
    """All that is known to be hidden comes back, be it nothing, and still nothing is said of the attack."""
    assert counted(10, HIDDEN, State.VOID, hidden=Truth(0.0, unlocked, unlocked=unlocked)) == 10
    assert counted(10, HIDDEN, State.VOID, hidden=Truth(0.0, 0.97, unlocked=unlocked)) == 10


def test_a_lock_that_hides_nothing_or_was_never_asked_says_nothing():
    assert counted(10, HIDDEN, State.VOID, hidden=Truth(0.93, 0.97, unlocked=0.93)) == 10
    assert counted(10, HIDDEN, State.NOT_RUN, hidden=Truth(0.0, 0.97)) == 10


def test_what_comes_back_of_the_erased_is_told():
    assert counted(20, ERASED, State.FAILED, erased=Truth(0.0, 0.4)) == 20


def test_an_attack_without_power_shows_nothing_of_the_erased():
    assert counted(10, ERASED, State.VOID, hidden=Truth(0.0, 0.0, unlocked=0.93)) == 10
