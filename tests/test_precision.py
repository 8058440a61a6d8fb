"""Weights kept in bf16: which steps are lost, against ml_dtypes' own rounding; and what a report makes of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from test_train import CFG, weights

from distill_jax.evals.claims import judge
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages import Unlearn
from distill_jax.train.population import make_state
from distill_jax.train.settings import Training
from distill_jax.train.step import make_step

pytestmark = pytest.mark.unit
RATES = (2e-5, 1e-3)  # the paper's for MaxEnt on WMDP, and its attack's largest


def stepped(dtype: str) -> tuple[list[np.ndarray], list[np.ndarray], list[list[np.ndarray]]]:
    """Return weights as large as models', the signs of their gradients, and what a step at each rate makes of them."""
    start = weights(scale=0.02)
    signs = jax.tree.map(lambda w: np.where(np.arange(w.size).reshape(w.shape) % 3, 1.0, -1.0), start)
    settings = Training(steps=1, batch=1, warmup=0, weight_decay=0.0, clip_norm=0.0, weights=dtype)

    def slope(params, batch, _):
        total = sum(
            jnp.vdot(w.astype(jnp.float32), s) for w, s in zip(*map(jax.tree.leaves, (params, signs)), strict=True)
        )
        return {"slope": (1.0, total, jnp.float32(1))}

    mesh, optimizer = make_mesh(2, devices=jax.devices()[:1]), settings.optimizer()
    step = make_step(slope, lambda params, batch: None, optimizer, settings.schedule(), mesh)
    state = make_state(CFG, mesh, [start], optimizer, RATES, dtype=dtype)
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
    assert "weights" not in Training().known_by() and Training(weights="bfloat16").known_by()["weights"] == "bfloat16"
    assert "hold" not in Unlearn(start="a").known_by() and Unlearn(start="a", hold="kl").known_by()["hold"] == "kl"


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="weights = 'float16': choose 'float32' or 'bfloat16'"):
        Training(weights="float16")


@pytest.mark.parametrize(("full", "half", "held"), [((0.6, 0.5), (0.4, 0.3), True), ((0.6, 0.3), (0.4, 0.5), None)])
def test_the_report_says_what_precision_did_to_the_attack(full, half, held):
    def attack(last: float, **more: object) -> dict:
        part = {"worst": [0.2, last], "by_seed": [[0.2, last]]}
        return {"steps": [0, 9], "forget_heldout": part, "forget_shown": part, **more}

    models = [
        {"name": f"m{i}", "label": f"M{i}", "settings": {}, "forget": 0.2}
        | {"attack": attack(full[i], weights="float32", other_weights={"bfloat16": attack(half[i])})}
        for i in range(2)
    ]
    claim = judge(models)[-1]
    assert "bf16" in claim["claim"] and claim["held"] is held
    assert f"M0 {full[0]:.2f} in fp32, {half[0]:.2f} in bf16" in claim["evidence"]
