"""The model against Hugging Face's recorded logits, a plain NumPy forward pass, and what a decoder must satisfy."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from parity.record import CASES, RECORDINGS, WINDOW, draw

from distill_jax.models import head as model_head
from distill_jax.models import transformer
from distill_jax.models.head import softcap
from distill_jax.models.presets import PRESETS, preset
from distill_jax.models.transformer import CachedInputs
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.models.transformer_layers import rope, rotary

few = settings(deadline=None, max_examples=25)
# These programs run for microseconds and compile for seconds: LLVM's optimiser is left out, XLA's own passes are not.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
init = jit(transformer.init, static_argnums=0)
apply = jit(transformer.apply, static_argnums=0)
hidden_states = jit(transformer.hidden_states, static_argnums=0)
residual_at = jit(transformer.residual_at, static_argnums=(0, 4))
unembed = jit(model_head.unembed, static_argnums=0)
decode_step = jit(transformer.decode_step, static_argnums=0)


@functools.cache
def mild(cfg: TransformerConfig):
    """Weights whose logits stay near 1, where fp32 leaves room to ask for 1e-5."""
    return jax.tree.map(lambda w: jnp.asarray(0.3 * w), draw(cfg, seed=0))


def some_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, WINDOW.vocab, shape)


def ones(tokens: np.ndarray) -> np.ndarray:
    return np.ones_like(tokens)


def lm_loss(cfg, params, tokens, segments):
    """Summed next-token cross-entropy within segments."""
    log_p = jax.nn.log_softmax(transformer.apply(cfg, params, tokens, segments)[:, :-1])
    scored = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return -jnp.sum(jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0] * scored)


gradient = jit(jax.grad(lm_loss, argnums=1), static_argnums=0)


def dtypes(function, *args) -> set[str]:
    return {leaf.dtype.name for leaf in jax.tree.leaves(jax.eval_shape(function, *args))}


def assert_trees_close(ours, theirs, tolerance):
    """Compare leaf by leaf, in units of the leaf's largest entry."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        scale = np.abs(b).max()
        assert scale > 0, path
        np.testing.assert_allclose(a / scale, b / scale, atol=tolerance, rtol=0, err_msg=str(path))


# Against others


def recording(name):
    with np.load(RECORDINGS / f"{name}.npz") as file:
        cfg = TransformerConfig(**json.loads(str(file["config"])))
        tokens, segments = file["tokens"].astype(np.int32), file["segments"].astype(np.int32)
        return cfg, draw(cfg, int(file["seed"])), tokens, segments, file["logits"]


@pytest.mark.unit
@pytest.mark.parametrize("name", CASES)
def test_logits_equal_hugging_face(name):
    cfg, params, tokens, segments, logits = recording(name)
    ours = np.asarray(apply(cfg, params, tokens, segments))
    np.testing.assert_allclose(ours[segments > 0], logits[segments > 0], atol=1e-4, rtol=0)


@pytest.mark.unit
@pytest.mark.parametrize(
    "change",
    [
        {"attention_softcap": 0.0},
        {"final_softcap": 0.0},
        {"sliding_window": 0},
        {"sliding_window": 4},
    ],
    ids=str,
)
def test_recordings_would_notice(change):
    """The caps and the window matter at the recorded weights: without them the logits are far off."""
    cfg, params, tokens, segments, logits = recording("gemma2_window")
    ours = np.asarray(apply(dataclasses.replace(cfg, **change), params, tokens, segments))
    assert np.abs(ours - logits).max() > 1e-2


@pytest.mark.unit
@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": ()},
        {"rope_scaling": (8.0, 1.0, 5.0, 12.0)},
        {"activation": "gelu"},
        {"scale_embedding": True},
        {"query_scale": 9.0},
    ],
    ids=str,
)
def test_recordings_of_llama_would_notice(change):
    cfg, params, tokens, segments, logits = recording("llama3_untied")
    ours = np.asarray(apply(dataclasses.replace(cfg, **change), params, tokens, segments))
    assert np.abs(ours - logits).max() > 1e-2


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma3_grouped", {"global_every": 5}),
        ("gemma3_grouped", {"local_rope_theta": 0.0}),
        ("gemma3_grouped", {"rope_scaling": ()}),
        ("gemma3_grouped", {"sliding_window": 6}),
        ("gemma3_grouped", {"qk_norm": False}),
        ("qwen3_tied", {"qk_norm": False}),
        ("qwen3_tied", {"rope_theta": 500.0}),
        ("qwen2_tied", {"qkv_bias": False}),
        ("qwen2_window", {"global_first": 1}),
        ("qwen2_window", {"sliding_window": 6}),
        ("mistral_window", {"global_every": 2}),
        ("mistral_window", {"sliding_window": 6}),
    ],
    ids=str,
)
def test_recordings_of_later_families_would_notice(name, change):
    cfg, params, tokens, segments, logits = recording(name)
    ours = np.asarray(apply(dataclasses.replace(cfg, **change), params, tokens, segments))
    assert np.abs(ours - logits).max() > 1e-2


def numpy_forward(cfg: TransformerConfig, params, tokens):
    """The decoder on one unpadded sequence [T], in float64 and one head at a time: (residuals, hidden, logits)."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    length, half = len(tokens), cfg.head_dim // 2
    turn = np.exp(1j * np.arange(length)[:, None] * cfg.rope_theta ** (-np.arange(half) / half))

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + cfg.norm_eps) * (1 + scale)

    def cap(x, c):
        return c * np.tanh(x / c) if c else x

    def rotate(x):
        z = (x[:, :half] + 1j * x[:, half:]) * turn
        return np.concatenate([z.real, z.imag], axis=-1)

    def attend(x, w, local):
        out = 0
        for head in range(cfg.heads):
            shared = head // (cfg.heads // cfg.kv_heads)
            q = rotate(x @ w["query"][:, head])
            k, v = rotate(x @ w["key_value"][0][:, shared]), x @ w["key_value"][1][:, shared]
            for t in range(length):
                first = max(0, t - cfg.sliding_window + 1) if local else 0
                logits = cap(k[first : t + 1] @ q[t] / math.sqrt(cfg.query_scale), cfg.attention_softcap)
                weights = np.exp(logits - logits.max())
                q[t] = weights / weights.sum() @ v[first : t + 1]  # q[t] is used up: it becomes the head's output
            out = out + q @ w["output"][head]
        return out

    def geglu(x, w):
        gate, up = x @ w["gate_up"][0], x @ w["gate_up"][1]
        gelu = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        return (gelu * up) @ w["down"]

    x = p["embedding"][tokens] * math.sqrt(cfg.hidden)
    residuals = [x]
    for i in range(cfg.layers):
        w = jax.tree.map(operator.itemgetter(i), p["layers"])
        scale = {name: w[name]["scale"] for name in w if name.endswith("norm")}
        y = attend(norm(x, scale["pre_attention_norm"]), w["attention"], i % 2 == 0 and cfg.sliding_window > 0)
        x = x + norm(y, scale["post_attention_norm"])
        x = x + norm(geglu(norm(x, scale["pre_mlp_norm"]), w["mlp"]), scale["post_mlp_norm"])
        residuals.append(x)
    hidden = norm(x, p["final_norm"]["scale"])
    return residuals, hidden, cap(hidden @ p["embedding"].T, cfg.final_softcap)


SHAPES = [
    WINDOW,
    dataclasses.replace(WINDOW, layers=2, heads=6, kv_heads=1, head_dim=10, sliding_window=0, query_scale=3.0),
    dataclasses.replace(WINDOW, layers=1, heads=3, kv_heads=3, attention_softcap=0.0, final_softcap=0.0),
]


@pytest.mark.unit
@pytest.mark.parametrize("cfg", SHAPES, ids=["window", "multi-query", "uncapped"])
def test_forward_equals_plain_numpy(cfg):
    tokens, params = some_tokens(13), draw(cfg, seed=5)
    expected = numpy_forward(cfg, params, tokens)[2]
    np.testing.assert_allclose(apply(cfg, params, tokens[None], ones(tokens[None]))[0], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.unit
@pytest.mark.parametrize("layer", range(1, WINDOW.layers + 1))
def test_residual_at_equals_plain_numpy(layer):
    tokens, params = some_tokens(1, 13), mild(WINDOW)
    ours = residual_at(WINDOW, params, tokens, ones(tokens), layer)
    np.testing.assert_allclose(ours[0], numpy_forward(WINDOW, params, tokens[0])[0][layer], atol=1e-4, rtol=1e-5)


@pytest.mark.unit
def test_last_residual_normalised_is_the_hidden_state():
    tokens, params = some_tokens(1, 13), mild(WINDOW)
    x = np.asarray(residual_at(WINDOW, params, tokens, ones(tokens), WINDOW.layers))
    x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + WINDOW.norm_eps) * (1 + params["final_norm"]["scale"])
    np.testing.assert_allclose(x, hidden_states(WINDOW, params, tokens, ones(tokens)), atol=1e-5)


@pytest.mark.unit
@pytest.mark.parametrize("layer", [-1, 0, WINDOW.layers + 1])
def test_residual_at_refuses_a_layer_that_is_not_there(layer):
    with pytest.raises(ValueError, match=f"layer = {layer}"):
        transformer.residual_at(WINDOW, mild(WINDOW), some_tokens(1, 4), ones(some_tokens(1, 4)), layer)


# Presets and config


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "count", "unit"),
    [
        ("gemma-0.1b", 112_904_000, 1),
        ("llama-3.3-70b", 70_553_706_496, 1),
        ("gemma-0.3b", 328.8, 1e6),
        ("gemma-0.6b", 602.0, 1e6),
        ("gemma-0.9b", 933.3, 1e6),
        ("gemma-2-2b", 2_614_341_888, 1),  # as published by Google
        ("gemma-2-9b", 9_241_705_984, 1),
    ],
)
def test_presets_have_the_published_parameter_counts(name, count, unit):
    assert round(transformer.parameter_count(preset(name)) / unit, 1) == count


@pytest.mark.unit
def test_cpu_preset_runs():
    cfg = preset("cpu", remat="full")
    assert (cfg.vocab, cfg.remat) == (256, "full")
    tokens = some_tokens(2, 8)
    logits = apply(cfg, init(cfg, jax.random.key(0)), tokens, ones(tokens))
    assert logits.shape == (2, 8, 256)
    assert np.isfinite(logits).all()


@pytest.mark.unit
def test_preset_leaves_the_table_alone():
    before = PRESETS["cpu"]
    assert preset("cpu", layers=5).layers == 5
    assert PRESETS["cpu"] is before
    assert before.layers == 2


@pytest.mark.unit
def test_preset_names_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"unknown model preset 'gemma_0\.1b': did you mean 'gemma-0\.1b'"):
        preset("gemma_0.1b")
    with pytest.raises(ValueError, match=r"unknown model field 'model\.kvheads': did you mean 'model\.kv_heads'"):
        preset("cpu", kvheads=2)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("heads", 3),
        ("kv_heads", 3),
        ("head_dim", 15),
        ("head_dim", 0),
        ("layers", 0),
        ("vocab", -1),
        ("remat", "everything"),
        ("dtype", "float16"),
    ],
)
def test_config_errors_name_the_key(key, value):
    with pytest.raises(ValueError, match=rf"model\.{key} = {value!r}"):
        preset("cpu", **{key: value})


# Parameters


@pytest.mark.unit
def test_logical_axes_match_the_parameters():
    """Every axis has the size of its name; all sizes differ, so no two axes can be confused."""
    cfg = TransformerConfig(vocab=67, layers=3, hidden=48, mlp=80, heads=12, kv_heads=6, head_dim=16)
    size = {"vocab": 67, "layers": 3, "embed": 48, "mlp": 80, "heads": 12, "kv_heads": 6, "head_dim": 16, "two": 2}
    shapes = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
    axes = transformer.logical_axes(cfg)
    named = jax.tree.map(lambda spec: tuple(size[name] for name in spec), axes, is_leaf=is_spec)
    assert named == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert jax.tree.structure(axes, is_leaf=is_spec) == jax.tree.structure(shapes)


def is_spec(x):
    return isinstance(x, PartitionSpec)


@pytest.mark.unit
def test_fresh_weights_are_normal_with_the_given_deviation():
    params = init(dataclasses.replace(WINDOW, init_std=0.05), jax.random.key(3))
    layers = params["layers"]
    for stacked in (*layers["attention"].values(), *layers["mlp"].values(), params["embedding"][None]):
        for w in np.asarray(stacked):
            assert w.dtype == np.float32
            assert abs(w.std() / 0.05 - 1) < 5 / math.sqrt(2 * w.size)  # five standard errors
            assert abs(w.mean()) < 5 * 0.05 / math.sqrt(w.size)
            assert np.abs(w).max() > 0.05 * 2.5  # not truncated at two deviations, nor uniform
        assert len({w.tobytes() for w in np.asarray(stacked)}) == len(stacked)  # no two layers alike
    for scale in (*(layers[name]["scale"] for name in layers if name.endswith("norm")), params["final_norm"]["scale"]):
        assert not np.asarray(scale).any()


@pytest.mark.unit
def test_key_decides_the_fresh_weights():
    cfg = dataclasses.replace(WINDOW, init_std=0.05)
    draws = [init(cfg, jax.random.key(seed)) for seed in (0, 0, 1)]
    first, again, other = (np.asarray(draw["layers"]["mlp"]["down"]) for draw in draws)
    assert (first == again).all()
    assert (first != other).mean() > 0.99


# Cached decoding, padding, packing, causality


@pytest.mark.unit
@pytest.mark.parametrize(
    "change",
    [{"sliding_window": 5}, {"sliding_window": 0}, {"global_every": 0, "global_first": 2, "qkv_bias": True}],
    ids=str,
)
@pytest.mark.parametrize("prefill", [1, 8])
def test_cached_decoding_equals_the_full_pass(change, prefill):
    """Prompts of 3, 8 and 5 tokens, left-padded to 8 and prefilled, then six tokens one at a time."""
    cfg = dataclasses.replace(WINDOW, **change)
    params, width, new = mild(cfg), 8, 6
    lengths = np.array([3, 8, 5])
    tokens = some_tokens(3, width + new)
    padding = (width - lengths)[:, None]
    index = np.arange(width + new)
    positions = np.maximum(index - padding, 0)
    # Three slots more than tokens, claimed by key_segments: causality has to hide them.
    key_segments = (np.arange(width + new + 3) >= padding).astype(np.int32)

    cache, outs, slot = transformer.empty_cache(cfg, 3, width + new + 3), [], 0
    for count in [prefill] * (width // prefill) + [1] * new:
        now = slice(slot, slot + count)
        out, cache = decode_step(
            cfg, params, cache, slot, CachedInputs(tokens[:, now], positions[:, now], key_segments)
        )
        outs.append(unembed(cfg, params, out))
        slot += count
    ours = np.concatenate(outs, axis=1)

    # The full pass has its padding on the other side.
    left_aligned = np.array([np.roll(row, -pad) for row, pad in zip(tokens, padding, strict=True)])
    full = apply(cfg, params, left_aligned, (index < width + new - padding).astype(np.int32))
    for row, pad in enumerate(padding[:, 0]):
        np.testing.assert_allclose(ours[row, pad:], full[row, : width + new - pad], atol=1e-5, rtol=1e-5)


@pytest.mark.property
@given(pad=st.integers(0, 8), junk=st.integers(0, 10**6))
@few
def test_padding_does_not_change_logits(pad, junk):
    """Eight tokens anywhere among sixteen slots, whatever tokens the padding holds."""
    alone, tokens = some_tokens(1, 8), some_tokens(1, 16, seed=junk)
    segments = np.zeros((1, 16), np.int32)
    tokens[:, pad : pad + 8], segments[:, pad : pad + 8] = alone, 1
    expected = apply(WINDOW, mild(WINDOW), alone, ones(alone))
    ours = apply(WINDOW, mild(WINDOW), tokens, segments)[:, pad : pad + 8]
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.unit
def test_a_row_of_padding_is_harmless():
    tokens, params = some_tokens(2, 16), mild(WINDOW)
    segments = ones(tokens)
    segments[1] = 0
    assert np.isfinite(apply(WINDOW, params, tokens, segments)).all()
    with_row, without = (gradient(WINDOW, params, tokens[:rows], segments[:rows]) for rows in (2, 1))
    assert_trees_close(with_row, without, 1e-5)


@pytest.mark.unit
def test_packing_changes_neither_logits_nor_gradients():
    params, tokens = mild(WINDOW), some_tokens(1, 16)
    segments = np.repeat([[1, 2, 3, 0]], [6, 7, 1, 2], axis=1)  # the third has one token, so nothing to predict
    apart, apart_segments = np.zeros((2, 2, 16), np.int32)
    for row, (start, end) in enumerate([(0, 6), (6, 13)]):
        apart[row, : end - start], apart_segments[row, : end - start] = tokens[0, start:end], 1

    packed, separate = apply(WINDOW, params, tokens, segments), apply(WINDOW, params, apart, apart_segments)
    np.testing.assert_allclose(packed[0, :13], separate[apart_segments > 0], atol=1e-5, rtol=1e-5)
    ours, theirs = gradient(WINDOW, params, tokens, segments), gradient(WINDOW, params, apart, apart_segments)
    assert_trees_close(ours, theirs, 1e-5)


@pytest.mark.unit
def test_segment_positions_count_from_each_start():
    segments = np.array([[0, 0, 1, 1, 1, 2, 2, 0], [3, 1, 1, 1, 1, 1, 1, 2]])
    expected = [[0, 1, 0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4, 5, 0]]
    np.testing.assert_array_equal(transformer.segment_positions(jnp.asarray(segments)), expected)


@pytest.mark.property
@given(place=st.integers(0, 15), by=st.integers(1, WINDOW.vocab - 1))
@few
def test_later_tokens_never_change_earlier_logits(place, by):
    tokens = some_tokens(1, 16)
    changed = tokens.copy()
    changed[0, place] = (changed[0, place] + by) % WINDOW.vocab
    before, after = (np.asarray(apply(WINDOW, mild(WINDOW), t, ones(t)))[0] for t in (tokens, changed))
    np.testing.assert_array_equal(after[:place], before[:place])
    assert (np.abs(after[place:] - before[place:]).max(axis=-1) > 1e-4).all()


@pytest.mark.property
@given(place=st.integers(0, 15), by=st.integers(1, WINDOW.vocab - 1))
@few
def test_a_local_layer_sees_its_window_and_no_further(place, by):
    cfg = dataclasses.replace(WINDOW, layers=1)
    tokens = some_tokens(1, 16)
    changed = tokens.copy()
    changed[0, place] = (changed[0, place] + by) % WINDOW.vocab
    before, after = (np.asarray(apply(cfg, mild(cfg), t, ones(t)))[0] for t in (tokens, changed))
    moved = np.abs(after - before).max(axis=-1) > 0
    np.testing.assert_array_equal(np.flatnonzero(moved), np.arange(place, min(place + cfg.sliding_window, 16)))


# Numerics


@pytest.mark.unit
@pytest.mark.parametrize(
    "change",
    [{"remat": "full"}, {"remat": "dots"}, {"unroll": 3}],
    ids=str,
)
def test_remat_and_unroll_do_not_change_gradients(change):
    tokens, params = some_tokens(2, 16), mild(WINDOW)
    expected = gradient(WINDOW, params, tokens, ones(tokens))
    ours = gradient(dataclasses.replace(WINDOW, **change), params, tokens, ones(tokens))
    assert_trees_close(ours, expected, 1e-5)


@pytest.mark.unit
def test_remat_policies_recompute_what_they_say():
    """Count matrix products: "dots" recomputes those of attention, which have batch axes; "full" all of them."""
    tokens, params = some_tokens(2, 16), mild(WINDOW)

    def products(remat):
        cfg = dataclasses.replace(WINDOW, remat=remat)
        program = jax.make_jaxpr(jax.grad(lambda p: lm_loss(cfg, p, tokens, ones(tokens))))(params)
        return str(program).count("dot_general")

    assert products("none") < products("dots") < products("full")


@pytest.mark.unit
def test_bf16_compute_keeps_fp32_weights_and_gradients():
    cfg = dataclasses.replace(WINDOW, dtype="bfloat16")
    tokens, params = some_tokens(2, 16), mild(WINDOW)
    batch = (params, tokens, ones(tokens))
    assert dtypes(lambda: transformer.init(cfg, jax.random.key(0))) == {"float32"}
    assert dtypes(functools.partial(jax.grad(lm_loss, argnums=1), cfg), *batch) == {"float32"}
    assert dtypes(functools.partial(transformer.hidden_states, cfg), *batch) == {"bfloat16"}
    assert dtypes(lambda: transformer.empty_cache(cfg, 1, 1)) == {"bfloat16"}

    logits, exact = apply(cfg, *batch), apply(WINDOW, *batch)
    assert logits.dtype == jnp.float32
    error = np.abs(logits - exact).max() / np.std(exact)
    assert 2**-10 < error < 0.2  # bf16 has 8 bits: not exact, and not far off


@pytest.mark.unit
@pytest.mark.parametrize(("vocab", "primitive"), [(1024, "dot_general"), (1025, "gather")])
def test_look_up_is_indexing(vocab, primitive):
    """Value to the bit, and a gradient that adds up over repeated tokens, by a product and by a gather."""
    rng = np.random.RandomState(0)
    table, index = rng.standard_normal((vocab, 12)).astype(np.float32), rng.randint(0, 9, (3, 20))
    index[0, :3] = vocab - 1
    weight = rng.standard_normal((3, 20, 12)).astype(np.float32)
    assert f" {primitive}[" in str(jax.make_jaxpr(transformer.look_up)(table, index))

    np.testing.assert_array_equal(transformer.look_up(table, index), table[index])
    expected = np.zeros_like(table)
    np.add.at(expected, index, weight)
    ours = jax.grad(lambda t: jnp.sum(transformer.look_up(t, index) * weight))(table)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def rotated(x, position):
    x, position = jnp.asarray(x, jnp.float32)[None, None, None], jnp.full((1, 1), position)
    return np.asarray(rope(x, rotary(WINDOW, position)))[0, 0, 0]


@pytest.mark.property
@given(m=st.integers(0, 300), n=st.integers(0, 300), shift=st.integers(1, 300), seed=st.integers(0, 10**6))
@few
def test_rotary_products_depend_on_distance_only(m, n, shift, seed):
    q, k = np.random.RandomState(seed).standard_normal((2, WINDOW.head_dim))
    np.testing.assert_allclose(rotated(q, m) @ rotated(k, n), rotated(q, m + shift) @ rotated(k, n + shift), atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(rotated(q, m)), np.linalg.norm(q), rtol=1e-5)
    assert np.abs(rotated(q, m) - rotated(q, m + shift)).max() > 1e-3


@pytest.mark.property
@given(x=st.floats(-1e6, 1e6, width=32), cap=st.sampled_from([1.0, 30.0, 50.0]))
@few
def test_softcap_bounds_and_keeps_order(x, cap):
    y = float(softcap(jnp.float32(x), cap))
    assert abs(y) <= min(cap, abs(x) * (1 + 1e-6))
    assert y == pytest.approx(cap * math.tanh(x / cap), rel=1e-5, abs=1e-30)
    assert float(softcap(jnp.float32(x), 0.0)) == x
