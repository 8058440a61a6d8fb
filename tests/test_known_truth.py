"""Known truth: what is erased is gone weight by weight, and a run says if its attack tells it from what is hidden."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from distill_jax.experiment.roles import Role, role_of
from distill_jax.models import transformer
from distill_jax.models.presets import preset
from distill_jax.reports.claims import judge
from distill_jax.stages import Erase, Finetune, Pretrain, Unlearn
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
    })  # fmt: skip
    roles = [Role.ORACLE, Role.REFERENCE, Role.SUPPRESSED, Role.ERASED, Role.FINETUNED]
    assert [role_of(nodes[name], nodes) for name in "abcde"] == roles


@pytest.fixture(autouse=True)
def one_training(monkeypatch):
    """All models go back to one training run, so no luck of training tells them apart."""
    monkeypatch.setattr(referee, "RUN_SD", 0.0)


def states(rng: np.random.Generator, **after: float) -> dict[str, State]:
    """Return what a run of known truth says, by the models' true accuracy after the attack."""
    names = ("reference", "oracle", "maxent")
    truths = {name: dataclasses.replace(GOOD[name], after=after.get(name, GOOD[name].after)) for name in names}
    truths["erased"] = Truth(0.0, after["erased"])
    models = [
        dataclasses.replace(m, role=Role.ERASED) if m.name == "erased" else m for m in world(rng, truths, seeds=10)
    ]
    return {one.name: one.state for one in judge(models)}


def counted(count: int, name: str, state: State, **after: float) -> int:
    return sum(states(np.random.default_rng([3, i]), **after)[name] is state for i in range(count))


def test_an_attack_that_brings_all_back_and_nothing_erased_is_a_good_one():
    assert counted(20, HIDDEN, State.HELD, maxent=0.97, reference=0.97, erased=0.01, oracle=0.01) > 15
    assert counted(20, ERASED, State.HELD, erased=0.01, oracle=0.01) > 15


def test_an_attack_that_leaves_part_of_what_is_hidden_is_told(request):
    count = draws(request)
    assert counted(20, HIDDEN, State.FAILED, maxent=0.6, erased=0.07) == 20
    edge = 0.95 * GOOD["reference"].before + 0.05 * GOOD["oracle"].after
    assert counted(count, HIDDEN, State.HELD, maxent=edge, erased=0.07) <= bound(count)


def test_what_comes_back_of_the_erased_is_told():
    assert counted(20, ERASED, State.FAILED, erased=0.4) == 20


def test_an_attack_without_power_shows_nothing_of_the_erased():
    assert counted(10, ERASED, State.VOID, maxent=0.0, erased=0.0, oracle=0.0) == 10
