"""What makes unlearning robust in training: each rule by hand in float64, and right under pieces of a batch."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import transformer
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages.compiled_step import compiled_step
from distill_jax.stages.methods import METHODS
from distill_jax.stages.robust import ROBUSTIFIERS
from distill_jax.stages.robust.latent import entering_length
from distill_jax.stages.unlearn import Unlearn
from distill_jax.train.gradient_rules import ProjectedOut, SharpnessAware, TamperResistant
from distill_jax.train.layout import ShardedMembers
from distill_jax.train.state import Hyper
from tests.test_methods import APART, CFG, NEEDED, NOW, PADDED, SETS, START, batch_of, lay

pytestmark = pytest.mark.unit
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
MEMBERS = 2


# Rules, of quadratic losses ½ xᵀ A x + b x with a matrix and a vector for each term


def quadratics(seed=0, size=5):
    rng = np.random.default_rng(seed)
    half = {term: rng.normal(size=(size, size)) for term in ("forget", "retain", "attack")}
    return {term: (m @ m.T / size, rng.normal(size=size)) for term, m in half.items()}


TERMS = quadratics()
AT = np.random.default_rng(1).normal(size=(MEMBERS, 5))


def slope(term, x):
    A, b = TERMS[term]
    return A @ x + b


def gradient(params, only):
    x = params["x"]
    grads = sum(jnp.asarray(TERMS[t][0]) @ x[..., None] + jnp.asarray(TERMS[t][1])[:, None] for t in only)[..., 0]
    values = {t: 0.5 * jnp.einsum("pi,ij,pj->p", x, *TERMS[t][:1], x) + x @ TERMS[t][1] for t in only}
    return {"x": grads}, values


def each(f, *trees):
    return jax.vmap(f)(*trees)


def unit(x):
    return x / np.sqrt((x**2).sum())


@pytest.mark.parametrize("rest", [("retain",), ()])
def test_sharpness_takes_the_forget_gradient_uphill_and_the_retain_gradient_where_it_is(rest):
    grads, values = jit(lambda p: SharpnessAware(0.3, rest)(gradient, p, each))({"x": np.float32(AT)})
    for x, found in zip(AT, np.asarray(grads["x"]), strict=True):
        expected = slope("forget", x + 0.3 * unit(slope("forget", x))) + sum(slope(term, x) for term in rest)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    here = [0.5 * x @ TERMS["forget"][0] @ x + TERMS["forget"][1] @ x for x in AT]
    np.testing.assert_allclose(values["forget"], here, rtol=1e-4)  # what is shown is the model's own loss
    assert sorted(values) == sorted(("forget", *rest))


def test_tampering_takes_the_mean_forget_gradient_along_the_attack():
    grads, values = jit(lambda p: TamperResistant(3, 0.2, ("retain",))(gradient, p, each))({"x": np.float32(AT)})
    for x, found in zip(AT, np.asarray(grads["x"]), strict=True):
        path = [x]
        for _ in range(3):
            path.append(path[-1] - 0.2 * unit(slope("attack", path[-1])))
        expected = np.mean([slope("forget", at) for at in path], axis=0) + slope("retain", x)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert sorted(values) == ["attack", "forget", "retain"]


def matrix_of(name, leaf):
    """One layer's matrices of a tensor, as [inputs, outputs]; gate and up, key and value lie in one tensor."""
    shape = {"query": (CFG.hidden, -1), "output": (-1, CFG.hidden), "down": (CFG.mlp, -1), "embedding": leaf.shape}
    if name in shape:
        return [leaf.reshape(shape[name])]
    return [part.reshape(CFG.hidden, -1) for part in leaf]


def test_what_retain_data_use_of_a_matrix_is_out_of_the_update():
    """The retain gradient has rank 2: with both directions out, the update is 0 on either side of them, and else F."""
    rng, shapes, rank = np.random.default_rng(3), transformer.shapes(CFG), 2
    forget = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)

    def low_rank(path, s):
        layers = s.shape[0] if path[0].key == "layers" else 1
        leaf = rng.normal(size=(layers, *s.shape[-len(s.shape) + (path[0].key == "layers") :]))
        return leaf.reshape(s.shape).astype(np.float32)

    retain = jax.tree_util.tree_map_with_path(low_rank, shapes)
    for path, leaf in jax.tree_util.tree_leaves_with_path(retain):
        for layer in leaf if path[0].key == "layers" else [leaf]:
            if path[-1].key != "scale":
                for m in matrix_of(path[-1].key, layer):
                    u, _, v = np.linalg.svd(m, full_matrices=False)
                    m[...] = (u[:, :rank] * [50.0, 3.0]) @ v[:rank]

    def of(params, only):
        return jax.tree.map(lambda x: x[None], forget if only == ("forget",) else retain), {only[0]: jnp.zeros(1)}

    grads, _ = jit(lambda: ProjectedOut(rank)(of, None, each))()
    for (path, total), f, r in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(forget), jax.tree.leaves(retain), strict=True
    ):
        update = np.asarray(total[0], np.float64) - r
        if path[-1].key == "scale":
            assert np.abs(update).max() < 1e-6
            continue
        stacked = path[0].key == "layers"
        for one, whole, shared in zip(*((x if stacked else x[None]) for x in (update, f, r)), strict=True):
            for m, before, known in zip(*(matrix_of(path[-1].key, x) for x in (one, whole, shared)), strict=True):
                keep = min(rank, min(m.shape) // 2)
                u, _, v = np.linalg.svd(known, full_matrices=False)
                u, v = u[:, :keep], v[:keep]
                expected = before - u @ (u.T @ before)
                expected = expected - expected @ v.T @ v
                np.testing.assert_allclose(m, expected, atol=2e-3)


# Steps, of the bigram model


@pytest.fixture
def bigram_model(monkeypatch):
    def hidden(cfg, params, tokens, segments, disturbance=None):
        return params["embedding"][tokens] + (0.0 if disturbance is None else disturbance)

    def every_layer(cfg, params, tokens, segments):
        return hidden(cfg, params, tokens, segments)[None]

    monkeypatch.setattr(transformer, "hidden_states", hidden)
    monkeypatch.setattr(transformer, "residuals", every_layer)


def settings_of(method, **settings):
    return Unlearn(method=method, **{**NEEDED.get(method, {}), **settings})


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dpo", {"robust": "sam"}),
        ("undial", {"robust": "tar", "tar_steps": 2, "hold": "kl"}),
        ("npo", {"robust": "latent"}),
        ("maxent", {"robust": "repnoise"}),
    ],
    ids=lambda x: x if isinstance(x, str) else x["robust"],
)
def test_pieces_of_a_batch_do_not_change_a_robust_step(bigram_model, method, settings):
    """A step of two ragged microbatches is that of the whole batch, and another than the plain method's."""
    weights = jax.tree.map(np.zeros_like, transformer.init(CFG, jax.random.key(0))) | {"embedding": NOW}
    batch = jax.tree.map(lambda x: x[None], batch_of(PADDED, 2, 12))
    batch["attack"] = jax.tree.map(lambda x: x[None], lay(SETS["retain"], PADDED, 2, 12))

    def stepped(microbatches, **more):
        stage = settings_of(
            method, batch=2, microbatches=microbatches, steps=1, warmup=0, learning_rate=0.1, final_learning_rate=0.1,
            clip_norm=0.0, **{"epsilon": 1.0, **more},
        )  # fmt: skip
        state = ShardedMembers(make_mesh(1), CFG).make([weights], stage.transform(), Hyper.of([0.1]))
        read = {part: batch[part] for part in stage.reads()}
        step = compiled_step(stage.compile_key(CFG, 0), make_mesh(1))
        state, metrics = step(state, {**weights, "embedding": START}, read)
        return jax.tree.map(np.asarray, (state.params["embedding"][0], metrics))

    (whole, metrics), (pieces, of_pieces) = stepped(1, **settings), stepped(2, **settings)
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=2e-6)
    assert np.abs(whole - NOW).max() > 1e-3
    for key, value in metrics.items():
        np.testing.assert_allclose(of_pieces[key], value, rtol=2e-5, atol=1e-6)


def test_a_disturbance_recalls_the_text_within_its_ball_and_minds_no_packing(bigram_model):
    stage = settings_of("npo", robust="latent", latent_radius=0.4, latent_steps=3)
    params, objective = {"embedding": NOW}, stage.objective()

    def found(rows):
        return np.asarray(jit(lambda: objective.disturbance(CFG, 0, params, rows))())

    apart, packed = lay(SETS["forget"], APART, 3, 5), lay(SETS["forget"], PADDED, 2, 12)
    delta = found(apart)
    radius = 0.4 * 2.0 * np.sqrt((NOW.astype(np.float64) ** 2).sum(-1).mean())  # √D = 2 multiplies embeddings
    assert float(entering_length(CFG, params)) == pytest.approx(radius / 0.4, rel=1e-5)
    sizes = np.sqrt((delta**2).sum(-1))
    assert sizes.max() == pytest.approx(radius, rel=1e-4) and (sizes <= radius * (1 + 1e-5)).all()

    def recall(delta):
        hidden = NOW[apart.tokens] + delta
        z = 5.0 * np.tanh(hidden[:, :-1] @ NOW.T / 5.0)
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        mask = apart.target_mask("all") > 0
        return -np.take_along_axis(log_p, apart.tokens[:, 1:, None], -1)[..., 0][mask].mean()

    assert recall(delta) < recall(np.zeros_like(delta)) - 0.1
    of_packed = found(packed)
    for (row, at), (where, place), document in zip(APART, PADDED, SETS["forget"], strict=True):
        n = len(document.tokens)
        np.testing.assert_allclose(of_packed[where, place : place + n], delta[row, at : at + n], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"robust": "sma"}, "robust = 'sma'"),
        ({"sam_radius": 0.1}, "sam_radius = 0.1"),
        ({"robust": "tar", "sam_radius": 0.1}, "sam_radius = 0.1"),
        ({"robust": "sam", "sam_radius": 0.0}, "sam_radius = 0.0"),
        ({"robust": "tar", "tar_steps": 0}, "tar_steps = 0"),
        ({"robust": "latent", "latent_radius": 0.0}, "latent_radius = 0.0"),
        ({"robust": "sam", "lora_rank": 2}, "SAM trains weights themselves"),
        ({"method": "rmu", "robust": "tar"}, "not with method = 'rmu', which moves a few weights"),
        ({"method": "rmu", "robust": "latent"}, "not with method = 'rmu', which acts on states"),
        ({"method": "selective", "epsilon": 1.0, "robust": "sam"}, "not with method = 'selective'"),
        ({"method": "selective", "epsilon": 1.0, "robust": "tar"}, "not with method = 'selective'"),
        ({"method": "selective", "epsilon": 1.0, "optimizer": "sign"}, "optimizer = 'sign': Selective"),
        ({"method": "selective", "epsilon": 1.0, "optimizer": "muon"}, "set it to 'sgd'"),
        ({"method": "selective"}, "takes steps along the gradient"),
        ({"method": "selective", "robust": "latent"}, "takes steps along the gradient"),
    ],
    ids=str,
)
def test_combinations_that_are_not_right_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Unlearn(**settings)


def test_plain_descent_is_along_the_gradient():
    assert Unlearn(method="selective", optimizer="sgd").objective().needs_descent


@pytest.mark.parametrize("robust", ROBUSTIFIERS)
def test_a_robust_method_reads_what_its_method_reads(robust):
    """So that no two that differ share a step, and every method that is claimed is made."""
    for name in METHODS:
        try:
            stage = settings_of(name, robust=robust)
        except ValueError as error:
            assert f"not with method = {name!r}" in str(error)
            continue
        plain = settings_of(name).objective()
        assert set(plain.read_settings()) < set(stage.objective().read_settings())
        assert stage.objective() != plain
        flops = [one.step_flops(CFG, 4, 12, 0)["student"] for one in (plain, stage.objective())]
        assert flops[1] > flops[0]


def test_every_set_of_rows_of_the_forget_term_is_counted():
    """DPO's forget term reads answers and refusals: its second gradient under SAM is of both, one of MaxEnt of one."""
    counted = {
        name: [
            settings_of(name, robust=robust).objective().step_flops(CFG, 4, 12, 0)["student"] for robust in ("", "sam")
        ]
        for name in ("maxent", "dpo")
    }
    one = counted["maxent"][0] / 2
    assert counted["maxent"] == pytest.approx([2 * one, 3 * one])
    assert counted["dpo"] == pytest.approx([3 * one, 5 * one])
