"""Gradient routing: forget data move the part and nothing else, retain data the rest, and the part can be cut off."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from distill_jax.data.arithmetic.equations import ArithmeticConfig
from distill_jax.models import transformer
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.models.weight_selection import WeightSelection
from distill_jax.perf import flops
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages import Perturb, Route
from distill_jax.stages.compiled_step import compiled_step
from distill_jax.train.gradient_rules import Routed
from distill_jax.train.layout import ShardedMembers
from distill_jax.train.state import Hyper
from tests.test_methods import CFG, PACKED, PADDED, VOCAB, documents, lay
from tests.test_reinitialise import leaves
from tests.traced import TINY, traced_step

pytestmark = pytest.mark.unit
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
NEURONS = 2
PART = WeightSelection(neurons=NEURONS)


def weights(cfg=CFG, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), transformer.shapes(cfg))


def inside(name, leaf, neurons=NEURONS):
    """Return which weights belong to the last neurons of an MLP, by their indices alone."""
    out = np.zeros(leaf.shape, bool)
    if name == "layers/mlp/gate_up":
        out[..., leaf.shape[-1] - neurons :] = True
    if name == "layers/mlp/down":
        out[..., leaf.shape[-2] - neurons :, :] = True
    return out


def test_the_rule_takes_each_gradient_where_its_data_may_move():
    forget, retain = weights(seed=1), weights(seed=2)
    stacked = jax.tree.map(lambda x: np.stack([x, 3 * x]), {"forget": forget, "retain": retain})

    def gradient(params, only):
        return stacked[only[0]], {only[0]: np.zeros(2)}

    grads, values = Routed(PART)(gradient, None, lambda f, *trees: jax.vmap(f)(*trees))
    assert sorted(values) == ["forget", "retain"]
    for member in (0, 1):
        found, f, r = (leaves(jax.tree.map(lambda x: x[member], t)) for t in (grads, *stacked.values()))  # noqa: B023
        for name in found:
            np.testing.assert_array_equal(found[name], np.where(inside(name, f[name]), f[name], r[name]))
            assert found[name].any()


@pytest.fixture
def narrow_model(monkeypatch):
    """One gated layer over embeddings in the place of the transformer, so that packing cannot change what it says."""

    def hidden(cfg, params, tokens, segments, disturbance=None):
        x, mlp = params["embedding"][tokens], jax.tree.map(lambda w: w[0], params["layers"]["mlp"])
        gate, up = (x @ mlp["gate_up"][i] for i in (0, 1))
        return x + (jax.nn.relu(gate) * up) @ mlp["down"]

    monkeypatch.setattr(transformer, "hidden_states", hidden)


def stepped(forget, retain, microbatches=1, places=PADDED):
    """Return the weights after a step of two members, on rows of a set to forget and of one to retain."""
    stage = Route(
        neurons=NEURONS, batch=2, microbatches=microbatches, steps=1, warmup=0, learning_rate=0.1,
        final_learning_rate=0.1, clip_norm=0.0, weight_decay=0.0, epsilon=1.0,
    )  # fmt: skip
    start, mesh = weights(), make_mesh(1)
    batch = {"forget": lay(documents(forget), places, 2, 12), "retain": lay(documents(retain), places, 2, 12)}
    state = ShardedMembers(mesh, CFG).make([start, start], stage.transform(), Hyper([0.1, 0.2], [0, 0], {}))
    step = compiled_step(stage.compile_key(CFG, 0), mesh)
    state, metrics = step(state, None, jax.tree.map(lambda x: x[None], batch))
    assert sorted(metrics) == ["active", "forget", "gradient_norm", "retain"]
    return leaves(jax.tree.map(lambda x: np.asarray(x[1]), state.params))


def test_what_forget_data_say_reaches_the_part_alone(narrow_model):
    """To the bit: other forget data change no weight outside of the part, and other retain data none in it."""
    before, first = leaves(weights()), stepped(1, 2)
    other_forget, other_retain = stepped(3, 2), stepped(1, 4)
    moved = {name for name in first if not np.array_equal(first[name], before[name])}
    assert moved >= {"embedding", "layers/mlp/gate_up", "layers/mlp/down"}
    for name in first:
        part = inside(name, first[name])
        np.testing.assert_array_equal(other_forget[name][~part], first[name][~part])
        np.testing.assert_array_equal(other_retain[name][part], first[name][part])
    for name in ("layers/mlp/gate_up", "layers/mlp/down"):
        part = inside(name, first[name])
        assert np.abs(other_forget[name] - first[name])[part].max() > 1e-4
        assert np.abs(other_retain[name] - first[name])[~part].max() > 1e-4


def test_neither_microbatches_nor_packing_change_a_step(narrow_model):
    first = stepped(1, 2)
    for other in (stepped(1, 2, microbatches=2), stepped(1, 2, places=PACKED)):
        for name in first:
            np.testing.assert_allclose(other[name], first[name], rtol=1e-5, atol=1e-6)


def test_a_model_whose_part_is_cut_off_is_the_smaller_model():
    """Its outputs are those of an MLP that never had the neurons."""
    cfg = dataclasses.replace(CFG, layers=2, post_norms=False)
    params, small = weights(cfg), dataclasses.replace(cfg, mlp=cfg.mlp - NEURONS)
    stage = Perturb(start="x", alpha=1.0, beta=0.0, neurons=NEURONS)
    stage.validate(cfg, ArithmeticConfig())
    cut = stage.damaged(cfg, params, jax.random.key(0))
    for name, leaf in leaves(cut).items():
        np.testing.assert_array_equal(leaf, np.where(inside(name, leaf), 0.0, leaves(params)[name]))
    mlp = {
        "gate_up": params["layers"]["mlp"]["gate_up"][..., :-NEURONS],
        "down": params["layers"]["mlp"]["down"][:, :-NEURONS],
    }
    fewer = {**params, "layers": {**params["layers"], "mlp": mlp}}
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 6)).astype(np.int32)
    segments = np.ones_like(tokens)
    outputs = jit(
        lambda a, b: (transformer.apply(cfg, a, tokens, segments), transformer.apply(small, b, tokens, segments))
    )
    np.testing.assert_allclose(*outputs(cut, fewer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "neurons = 0: the part that forget data move is the whole network"),
        ({"neurons": -1}, "neurons = -1"),
        ({"neurons": 7}, "model.mlp = 6"),
        ({"layers": (3,)}, "layers = .3,.: the model has layers 0 to 0"),
        ({"neurons": 2, "loss_on": "unmarked"}, "documents are routed, not tokens"),
        ({"neurons": 2, "forget": "dropped"}, "forget = 'dropped': there is a filter only with data.filter_labels"),
        ({"neurons": 2, "modules": ("embedding",)}, "together they mean no weight"),
    ],
)
def test_parts_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Route(**settings).validate(CFG, ArithmeticConfig())


def test_neurons_are_cut_off_as_a_whole():
    with pytest.raises(ValueError, match=r"share = 0\.5: neurons are meant as a whole"):
        Perturb(start="x", neurons=2, share=0.5)
    assert "neurons" not in Perturb(start="x").fingerprint_fields()


def test_a_step_executes_the_flops_that_are_counted():
    """Two batches forwards and backwards; of weights outside of the MLPs only one gradient is made."""
    cfg = TransformerConfig(**TINY)
    job, _, traced = traced_step(cfg, Route(neurons=32, batch=8, microbatches=2), jax.devices()[:1])
    assert flops.executed(traced.jaxpr.jaxpr) == pytest.approx(job.step_flops(), rel=0.02)
    assert job.step_flops() < 5.5 * flops.forward(cfg, 8, 64)
