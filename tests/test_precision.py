"""Weights kept in bf16: which steps are lost, against ml_dtypes' own rounding; and what a report makes of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from test_train import CFG, weights

from distill_jax.experiment.roles import Role
from distill_jax.reports.claims import judge
from distill_jax.reports.premises import Model
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages import Pretrain, Unlearn
from distill_jax.statistics.estimates import Scores
from distill_jax.train.layout import ShardedMembers
from distill_jax.train.settings import Optimizer
from distill_jax.train.state import Hyper
from distill_jax.train.step import StepConfig, Term, make_step
from tests import referee

pytestmark = pytest.mark.unit
RATES = (2e-5, 1e-3)  # the paper's for MaxEnt on WMDP, and its attack's largest


def stepped(dtype: str) -> tuple[list[np.ndarray], list[np.ndarray], list[list[np.ndarray]]]:
    """Return weights as large as models', the signs of their gradients, and what a step at each rate makes of them."""
    start = weights(scale=0.02)
    signs = jax.tree.map(lambda w: np.where(np.arange(w.size).reshape(w.shape) % 3, 1.0, -1.0), start)
    settings = Optimizer(warmup=0, weight_decay=0.0, clip_norm=0.0)

    def slope(params, batch, _):
        total = sum(
            jnp.vdot(w.astype(jnp.float32), s) for w, s in zip(*map(jax.tree.leaves, (params, signs)), strict=True)
        )
        return {"slope": Term(1.0, total, jnp.float32(1))}

    layout = ShardedMembers(make_mesh(2, devices=jax.devices()[:1]), CFG)
    step = make_step(slope, lambda params, batch: None, StepConfig(settings, 1, layout))
    state = layout.make([start], settings.transform(), Hyper.of(RATES), dtype)
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.opt)) if leaf.ndim > 1}
    assert kinds == {dtype}  # the moments too
    after = jax.tree.leaves(step(state, None, {"x": np.zeros((1, 1))})[0].params)
    members = [[np.asarray(w[i]) for w in after] for i in range(len(RATES))]
    return jax.tree.leaves(start), jax.tree.leaves(signs), members


def test_small_steps_are_lost_in_bfloat16():
    """Adam's first step is the rate, to the rounding of its own moments: what is left of it is what bf16 can hold."""
    start, signs, members = stepped("bfloat16")
    lost = []
    for rate, after in zip(RATES, members, strict=True):
        same = []
        for w, sign, new in zip(start, signs, after, strict=True):
            assert new.dtype == ml_dtypes.bfloat16
            old = w.astype(ml_dtypes.bfloat16).astype(np.float32)
            near, far = (
                (old - share * rate * sign).astype(ml_dtypes.bfloat16).astype(np.float32) for share in (0.98, 1.02)
            )
            got = new.astype(np.float32)
            assert np.all((np.minimum(near, far) <= got) & (got <= np.maximum(near, far)))
            same.append((got == old).ravel())
        lost.append(np.concatenate(same).mean())
    assert lost[0] > 0.6 and lost[1] < 0.02


def test_none_are_lost_in_float32():
    start, signs, members = stepped("float32")
    for rate, after in zip(RATES, members, strict=True):
        for w, sign, new in zip(start, signs, after, strict=True):
            np.testing.assert_allclose(new, w.astype(np.float64) - rate * sign, rtol=0, atol=1e-8)


def test_a_younger_setting_leaves_kept_results_known_as_they_were():
    for younger, value in {"weights": "bfloat16", "hold": "kl"}.items():
        assert younger not in Unlearn(start="a").fingerprint_fields()
        assert Unlearn(start="a", **{younger: value}).fingerprint_fields()[younger] == value


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="weights = 'float16': choose 'float32' or 'bfloat16'"):
        Pretrain(weights="float16")


@pytest.mark.parametrize(("half", "state"), [(0.3, "held"), (0.6, "open"), (0.8, "failed")])
def test_the_report_says_what_precision_did_to_the_attack(half, state):
    truths = referee.GOOD | {"maxent": referee.Truth(0.0, 0.6, bf16=half)}
    claim = judge(referee.world(np.random.default_rng(1), truths))[-1]
    assert claim.name == "precision" and claim.state == state
    assert "in fp32" in claim.evidence and "in bf16" in claim.evidence


def test_one_model_that_ends_a_thousandth_apart_shows_nothing():
    scores = {kind: Scores(np.array([end]), facts=105) for kind, end in (("float32", 0.571), ("bfloat16", 0.570))}
    hidden, back = Scores(np.zeros(3), facts=105), Scores(np.array([0.5, 0.6, 0.55]), facts=105)
    seen = {"before": hidden, "after": back, "by_weights": scores}
    model = Model("maxent", "M", 0.9, 0.0, unlearned=True, role=Role.SUPPRESSED, **seen)
    claim = judge([model])[-1]
    assert claim.state == "open" and "M 0.57 in fp32, 0.57 in bf16" in claim.evidence
