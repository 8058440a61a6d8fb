"""LoRA: adapters beside frozen weights are the same function as weights with the adapters merged in."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.io.checkpoint import FINAL, Checkpoints
from distill_jax.models import lora, transformer
from distill_jax.models.presets import preset
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages import Distill, Finetune, Relearn, Unlearn
from distill_jax.stages.compiled_step import compiled_step
from distill_jax.train.batch import PackedRows
from distill_jax.train.layout import ShardedMembers
from distill_jax.train.population import draw_weights
from distill_jax.train.state import Hyper

GEMMA = TransformerConfig(
    vocab=37, layers=3, hidden=24, mlp=40, heads=4, kv_heads=2, head_dim=6, query_scale=6.0, init_std=0.3
)
LLAMA = dataclasses.replace(
    GEMMA, activation="silu", post_norms=False, scale_embedding=False, tied=False, attention_softcap=0.0
)
RANK, ALPHA = 3, 7.0
apply = jax.jit(transformer.apply, static_argnums=0)
init = jax.jit(transformer.init, static_argnums=0)
draw = jax.jit(lora.init, static_argnums=(0, 1))
merge = jax.jit(lora.merge)
residual_at = jax.jit(transformer.residual_at, static_argnums=(0, 4))


def drawn(cfg: TransformerConfig, seed: int = 0):
    """Return weights, and adapters none of whose matrices is zero."""
    params = init(cfg, jax.random.key(seed))
    adapters = draw(cfg, RANK, jax.random.key(seed + 1))
    noise = np.random.RandomState(seed)
    return params, jax.tree.map(lambda x: x + 0.2 * noise.standard_normal(x.shape).astype(np.float32), adapters)


def batch(cfg: TransformerConfig, rows: int = 2, length: int = 11):
    rng = np.random.RandomState(3)
    tokens = rng.randint(0, cfg.vocab, (rows, length)).astype(np.int32)
    segments = np.ones_like(tokens)
    segments[:, 7:] = 2
    return tokens, segments


@pytest.mark.property
@pytest.mark.parametrize("cfg", [GEMMA, LLAMA], ids=["gemma", "llama"])
def test_beside_the_weights_and_merged_into_them_they_are_one_function(cfg):
    params, adapters = drawn(cfg)
    merged = merge(params, adapters, ALPHA)
    beside = lora.attach(adapters, lora.base(params, RANK, ALPHA))
    tokens, segments = batch(cfg)
    theirs = apply(cfg, merged, tokens, segments)
    # fp32 through three layers; a wrong scale or axis shows in the first digit.
    np.testing.assert_allclose(apply(cfg, beside, tokens, segments), theirs, atol=1e-4 * np.abs(theirs).max())
    assert np.abs(theirs - apply(cfg, params, tokens, segments)).max() > 0.1  # and not the function without them
    for layer in (1, cfg.layers):
        ours, theirs = (residual_at(cfg, p, tokens, segments, layer) for p in (beside, merged))
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.unit
def test_merging_is_the_outer_product_in_float64():
    params, adapters = drawn(GEMMA)
    merged = merge(params, adapters, ALPHA)
    contract = {
        "query": "LDr,LrNH->LDNH",
        "key_value": "LiDr,LirKH->LiDKH",
        "output": "LNHr,LrD->LNHD",
        "gate_up": "LiDr,LirF->LiDF",
        "down": "LFr,LrD->LFD",
    }
    seen = set()
    for module, group in params["layers"].items():
        for name, w in group.items():
            expected = np.asarray(w, np.float64)
            if name in contract:
                seen.add(name)
                pair = {k: np.asarray(x, np.float64) for k, x in adapters[module][name].items()}
                expected = expected + ALPHA / RANK * np.einsum(contract[name], pair["a"], pair["b"])
            np.testing.assert_allclose(merged["layers"][module][name], expected, atol=1e-5)
    assert seen == set(contract)
    for name in ("embedding", "final_norm"):
        np.testing.assert_array_equal(*(jax.tree.leaves(tree[name])[0] for tree in (merged, params)))


@pytest.mark.unit
@pytest.mark.parametrize("cfg", [GEMMA, LLAMA], ids=["gemma", "llama"])
def test_frozen_weights_take_half_the_memory_and_give_the_same_bits(cfg, tmp_path):
    """Also when they are read from disk into the smaller dtype."""
    cfg = dataclasses.replace(cfg, dtype="bfloat16")
    params = init(cfg, jax.random.key(0))
    saved = Checkpoints(tmp_path)
    saved.save(FINAL, params)
    read = saved.restore(FINAL, transformer.frozen(cfg, jax.eval_shape(lambda: params)))
    tokens, segments = batch(cfg)
    for frozen in (transformer.frozen(cfg, params), read):
        np.testing.assert_array_equal(apply(cfg, frozen, tokens, segments), apply(cfg, params, tokens, segments))
        sizes = [sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (frozen, params)]
        assert sizes[0] < 0.52 * sizes[1]


@pytest.mark.unit
def test_fresh_adapters_change_nothing():
    params, fresh = init(GEMMA, jax.random.key(0)), draw(GEMMA, RANK, jax.random.key(1))
    whole = lora.attach(fresh, lora.base(params, RANK, ALPHA))
    tokens, segments = batch(GEMMA)
    np.testing.assert_array_equal(apply(GEMMA, whole, tokens, segments), apply(GEMMA, params, tokens, segments))
    a = np.asarray(fresh["mlp"]["down"]["a"])
    assert abs(a.std() * np.sqrt(GEMMA.mlp) - 1) < 0.15 and not np.any(fresh["mlp"]["down"]["b"])


@pytest.mark.property
def test_gradients_follow_from_those_of_the_merged_weights():
    """dA = s dW Bᵀ and dB = s Aᵀ dW, with dW from the model without any adapter code."""
    params, adapters = drawn(GEMMA, seed=5)
    tokens, segments = batch(GEMMA)

    def loss(whole):
        return jnp.mean(jnp.square(transformer.apply(GEMMA, whole, tokens, segments)))

    base = lora.base(params, RANK, ALPHA)
    ours = jax.jit(jax.grad(lambda trained: loss(lora.attach(trained, base))))(adapters)
    dense = jax.jit(jax.grad(loss))(merge(params, adapters, ALPHA))["layers"]["attention"]["output"]
    dense = np.asarray(dense, np.float64)
    pair = {k: np.asarray(x, np.float64) for k, x in adapters["attention"]["output"].items()}
    a = ALPHA / RANK * np.einsum("LNHD,LrD->LNHr", dense, pair["b"])
    b = ALPHA / RANK * np.einsum("LNHr,LNHD->LrD", pair["a"], dense)
    got = ours["attention"]["output"]
    np.testing.assert_allclose(got["a"], a, atol=2e-4 * np.abs(a).max())
    np.testing.assert_allclose(got["b"], b, atol=2e-4 * np.abs(b).max())


@pytest.mark.unit
@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.thorough), 2])
def test_a_population_of_adapters_trains_beside_one_base(devices):
    """Members share the base, which stays as it is; each comes out as it does beside a twin of its own."""
    mesh = make_mesh(2, devices=jax.devices()[:devices])
    settings = Finetune(batch=4, warmup=0, lora_rank=RANK, lora_alpha=ALPHA)
    step = compiled_step(settings.compile_key(GEMMA, 0), mesh)
    base = lora.base(draw_weights(GEMMA, mesh, jax.random.key(0)), RANK, ALPHA)
    before = jax.tree.map(np.array, base)
    starts = [draw_weights(GEMMA, mesh, jax.random.key(i), RANK) for i in (1, 2)]
    tokens, segments = (x[None] for x in batch(GEMMA, rows=4))
    rows = PackedRows(tokens, segments, np.ones_like(tokens))

    def trained(starts, rates):
        state = ShardedMembers(mesh, GEMMA).make(starts, settings.transform(), Hyper.of(rates))
        losses = []
        for _ in range(6):
            state, metrics = step(state, None, rows, base)
            losses.append(np.asarray(metrics["cross_entropy"])[: len(rates)])
        return state, np.array(losses)

    state, losses = trained(starts, [1e-2, 3e-3])
    assert (losses[-1] < losses[0] - 0.1).all() and np.abs(losses[-1, 0] - losses[-1, 1]) > 1e-3
    for i, rate in enumerate([1e-2, 3e-3]):
        np.testing.assert_allclose(losses[:, i], trained([starts[i]] * 2, [rate] * 2)[1][:, 0], rtol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, base))
    moved = jax.tree.leaves(state.opt)
    assert sum(x.size for x in moved) < 2.1 * 2 * sum(x.size for x in jax.tree.leaves(starts[0]))  # no moment of W


@pytest.mark.unit
def test_flops_are_those_of_the_traced_step():
    cfg = preset("cpu", hidden=256, mlp=1024, head_dim=64, layers=2)
    tokens = jnp.zeros((4, 64), jnp.int32)
    for rank in (8, 64):
        base = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
        adapters = jax.eval_shape(lambda r=rank: lora.init(cfg, r, jax.random.key(0)))

        def loss(trained, base, r=rank):
            return transformer.apply(cfg, lora.attach(trained, lora.base(base, r, 1.0)), tokens, tokens + 1).sum()

        traced = jax.jit(jax.grad(loss)).trace(adapters, base).jaxpr.jaxpr
        assert flops.train_step(cfg, 4, 64, lora_rank=rank) == pytest.approx(flops.executed(traced), rel=0.05)
    assert flops.train_step(cfg, 4, 64, lora_rank=8) < 0.75 * flops.train_step(cfg, 4, 64)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Distill(teacher="t", lora_rank=4), "needs a start"),
        (lambda: Unlearn(start="s", method="rmu", lora_rank=4), "RMU trains weights themselves"),
        (lambda: Relearn(start="s", lora_rank=-1), "must not be negative"),
        (lambda: Relearn(start="s", lora_rank=4, lora_alpha=0.0), "must be positive"),
        (lambda: Relearn(start="s", lora_alpha=8.0), "does nothing without lora_rank"),
    ],
)
def test_adapters_without_something_to_attach_them_to_are_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()
