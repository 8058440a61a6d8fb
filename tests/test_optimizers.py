"""Every optimiser that an attack may take: against float64, on a population, and over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import lora, transformer
from distill_jax.models.presets import preset
from distill_jax.sharding.mesh import make_mesh
from distill_jax.train.layout import ShardedMembers
from distill_jax.train.optimizers import MUON_RMS, OPTIMIZERS, matrix_axes
from distill_jax.train.settings import Optimizer
from distill_jax.train.state import Hyper

pytestmark = pytest.mark.unit
CFG = preset("cpu")
PLAIN = Optimizer(clip_norm=0.0, weight_decay=0.0)


def updates(name: str, grads: list[np.ndarray]) -> np.ndarray:
    """Return the last update that an optimiser makes of gradients of one weight."""
    transform = Optimizer(clip_norm=0.0, weight_decay=0.0, optimizer=name).transform()
    w = jnp.zeros(grads[0].shape)
    state = transform.init(w)
    for g in grads:
        out, state = transform.update(jnp.asarray(g, jnp.float32), state, w)
    return np.asarray(out)


@pytest.mark.parametrize("name", ["sgd", "lion", "sign"])
def test_it_is_what_its_paper_says(name):
    """Two steps by hand in float64; Lion is sign(β1 m + (1 - β1) g), and then m moves by β2."""
    g = np.random.default_rng(0).normal(size=(2, 3, 4))
    expected = {
        "sgd": PLAIN.beta1 * g[0] + g[1],
        "lion": np.sign(PLAIN.beta1 * (1 - PLAIN.beta2) * g[0] + (1 - PLAIN.beta1) * g[1]),
        "sign": np.sign(g[1]),
    }
    np.testing.assert_allclose(updates(name, list(g)), expected[name], rtol=1e-5)


def test_muon_makes_each_layers_matrix_orthogonal_and_leaves_the_rest_to_adam():
    """Its singular values come near one (times the RMS of AdamW's updates), whatever the gradient's are."""
    params = jax.jit(transformer.init, static_argnums=0)(CFG, jax.random.key(0))
    grads = jax.tree.map(lambda w: jax.random.normal(jax.random.key(1), w.shape) * jnp.exp(w), params)
    transform = Optimizer(clip_norm=0.0, weight_decay=0.0, optimizer="muon").transform()
    out = jax.jit(lambda g, p: transform.update(g, transform.init(p), p)[0])(grads, params)
    axes = matrix_axes(params)["layers"]
    assert axes["attention"]["query"] == ((1,), (2, 3)) and axes["attention"]["key_value"] == ((2,), (3, 4))
    for module, name, shape in (("attention", "query", (64, 64)), ("attention", "key_value", (64, 32))):
        update = np.asarray(out["layers"][module][name], np.float64)
        values = np.linalg.svd(update.reshape(-1, *shape), compute_uv=False) / (MUON_RMS * np.sqrt(max(shape)))
        assert np.mean((values > 0.6) & (values < 1.3)) > 0.95, values  # five iterations leave the least behind
        kept = np.asarray(grads["layers"][module][name]).reshape(-1, *shape)
        assert np.ptp(np.linalg.svd(kept, compute_uv=False)) > 3  # the gradient was far from orthogonal
    first = np.asarray(out["embedding"])  # of Adam's first step only the sign is left, with Nesterov's momentum more
    np.testing.assert_allclose(first, np.sign(grads["embedding"]) * (1 + 0.9 * 0.1 / (1 - 0.9**2)), rtol=1e-3)


def test_muon_knows_the_adapters_of_a_matrix():
    adapters = jax.eval_shape(lambda key: lora.init(CFG, 4, key), jax.random.key(0))
    axes = matrix_axes(adapters)["attention"]["key_value"]
    assert axes == {"a": ((2,), (3,)), "b": ((2,), (3, 4))}  # [L, 2, D, r] and [L, 2, r, K, H]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_moments_lie_where_their_weights_do(name):
    """On two devices a member's moments are on the member's device, those of Muon's two halves too."""
    mesh = make_mesh(2, devices=jax.devices()[:2])
    layout = ShardedMembers(mesh, CFG)
    optimizer = Optimizer(optimizer=name).transform()
    params = jax.eval_shape(lambda key: transformer.init(CFG, key), jax.random.key(0))
    state = jax.eval_shape(lambda p: layout.make([p], optimizer, Hyper.of([1e-3, 1e-3])), params)
    at = layout.state_shardings(state)
    by_shape = {w.shape: s.spec for w, s in zip(jax.tree.leaves(state.params), jax.tree.leaves(at.params), strict=True)}
    moments = list(zip(jax.tree.leaves(state.opt), jax.tree.leaves(at.opt), strict=True))
    large = [(leaf, sharding) for leaf, sharding in moments if leaf.ndim > 1 and leaf.shape in by_shape]
    assert all(sharding.spec == by_shape[leaf.shape] for leaf, sharding in large)
    counted = sum(leaf.size for leaf, _ in large)
    weights = sum(w.size for w in jax.tree.leaves(state.params))
    trees = {"adamw": (2, 2), "sgd": (1, 1), "lion": (1, 1), "muon": (1, 2), "sign": (0, 0)}[name]  # of moments
    assert trees[0] * weights <= counted <= trees[1] * weights
