"""Every implementation of attention is the same function, and each is chosen where it can be."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params
from parity.record import RECORDINGS, draw

from distill_jax import api
from distill_jax.config import ConfigError
from distill_jax.models import attention, attention_blockwise, attention_kernels, attention_triton, lora, transformer
from distill_jax.models.attention_rows import Logits, Rows
from distill_jax.models.presets import preset
from distill_jax.models.transformer_config import TransformerConfig, local_layers, sections
from distill_jax.perf import flops
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages.context import Context
from tests import mesh_worker
from tests.test_sharding import assert_same_numbers, outcome, start

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
unit = pytest.mark.unit

# Rows of 48 tokens: packed with padding on the right, on the left, and one segment.
SEGMENTS = np.stack(
    [
        np.repeat([1, 2, 3, 0], [20, 1, 18, 9]),
        np.repeat([0, 1, 2], [11, 30, 7]),
        np.repeat([1], [48]),
    ]
).astype(np.int32)
# (query heads, key-value heads, head width, cap, window)
SHAPES = [(4, 2, 16, 50.0, 0), (3, 1, 64, 5.0, 7), (2, 2, 80, 0.0, 17), (2, 1, 128, 0.0, 0), (4, 1, 256, 5.0, 40)]


class Case:
    """Arrays of attention over rows, what its result's gradient is, and how its logits come about."""

    def __init__(self, shape: tuple, stretch: int = 1):
        heads, kv_heads, width, cap, window = shape
        self.segments = np.repeat(SEGMENTS, stretch, axis=1)
        self.real = (self.segments > 0)[:, :, None, None]
        self.logits = Logits(scale=2 / width**0.5, softcap=cap, window=window * stretch)
        rng = np.random.default_rng(width)
        shapes = [(*self.segments.shape, n, width) for n in (heads, kv_heads, kv_heads, heads)]
        *self.inputs, gradient = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
        self.gradient = gradient * self.real

    def exact(self) -> list[np.ndarray]:
        """Return the result and the gradients of q, k and v, head by head in float64."""
        q, k, v, gradient = (x.astype(np.float64) for x in (*self.inputs, self.gradient))
        out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
        for row, segments in enumerate(self.segments):
            distance = np.subtract.outer(np.arange(len(segments)), np.arange(len(segments)))
            visible = (segments[:, None] == segments) & (segments > 0) & (distance >= 0)
            visible &= distance < (self.logits.window or len(segments))
            for n in range(q.shape[2]):
                m = n // (q.shape[2] // k.shape[2])
                keys, values = k[row, :, m], v[row, :, m]
                x = q[row, :, n] @ keys.T * self.logits.scale
                slope = np.ones_like(x)
                if self.logits.softcap:
                    tanh = np.tanh(x / self.logits.softcap)
                    x, slope = self.logits.softcap * tanh, 1 - tanh**2
                weights = np.where(visible, np.exp(x - x.max()), 0)
                weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
                out[row, :, n] = weights @ values
                d = gradient[row, :, n] @ values.T
                dx = weights * (d - (weights * d).sum(axis=1, keepdims=True)) * slope * self.logits.scale
                dq[row, :, n] = dx @ keys
                dk[row, :, m] += dx.T @ q[row, :, n]
                dv[row, :, m] += weights.T @ gradient[row, :, n]
        return [out * self.real, dq, dk, dv]

    def computed(self, implementation: str) -> list[jax.Array]:
        """Return the same of one of the implementations."""

        def both(q, k, v, gradient):
            out, backward = jax.vjp(functools.partial(self.attend, implementation), q, k, v)
            return [out * self.real, *backward(gradient)]

        return jit(both)(*self.inputs, self.gradient)

    def attend(self, implementation: str, q, k, v) -> jax.Array:
        """Attend over the rows."""
        segments, window = jnp.asarray(self.segments), self.logits.window
        if implementation != "plain":
            return attention.attention(implementation, Rows(q, k, v, segments), self.logits)
        cfg = preset("cpu", sliding_window=window)
        mask = transformer.causal_masks(cfg, jnp.arange(q.shape[1]), segments, segments)[0 if window else 1]
        return attention.masked(q, k, v, mask, self.logits)


@pytest.fixture
def small_blocks(monkeypatch):
    """Make 48 tokens three blocks, and give cuDNN, which is not here, what JAX computes of the same arguments."""
    monkeypatch.setattr(attention_blockwise, "BLOCK", 16)
    without = functools.partial(jax.nn.dot_product_attention, implementation="xla")

    def stand_in(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return without(*args, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)


def kernels() -> Iterator[object]:
    """Yield (implementation, shape); of cuDNN those without a cap, which it does not have."""
    for shape in SHAPES:
        for name in ("plain", "blockwise", "splash", "triton"):
            yield pytest.param(name, shape, marks=[pytest.mark.thorough] if shape[2] == 128 else [])
        if not shape[3]:
            yield "cudnn", shape


@unit
@pytest.mark.parametrize(("implementation", "shape"), list(kernels()), ids=str)
def test_values_and_gradients_are_those_of_float64(implementation, shape, small_blocks):
    case = Case(shape, stretch=6 if implementation in ("splash", "triton") else 1)  # three blocks of either
    for name, ours, exact in zip(("out", "dq", "dk", "dv"), case.computed(implementation), case.exact(), strict=True):
        scale = np.abs(exact).max()
        assert scale > 0.1
        np.testing.assert_allclose(ours, exact, atol=2e-5 * scale, rtol=0, err_msg=name)


@unit
def test_cudnn_takes_a_population(monkeypatch):
    """Each member's rows become rows of one batch, with their mask: JAX's own rule asks for a mask of each head.

    Traced and lowered for a GPU, where cuDNN is asked for nothing but its version.
    """
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91200)
    q, k = (jax.ShapeDtypeStruct((3, 2, 128, n, 64), jnp.bfloat16) for n in (4, 2))
    segments = jax.ShapeDtypeStruct((2, 128), jnp.int32)

    def total(q, k, v, segments):
        return jnp.sum(attention.attention("cudnn", Rows(q, k, v, segments), Logits(0.1)).astype(jnp.float32))

    population = jax.vmap(jax.value_and_grad(total, argnums=(0, 1, 2)), in_axes=(0, 0, 0, None))
    text = jax.jit(population).trace(q, k, k, segments).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @__cudnn\$fmha.*", text)
    assert "Backward" in calls[-1] and all("tensor<6x1x128x128xbf16>" in call for call in calls)  # 3 members of 2 rows


@unit
@pytest.mark.parametrize("implementation", ["blockwise", "cudnn", "triton"])
def test_members_attend_as_each_alone(implementation, small_blocks):
    """With rows of their own or those of all, where some train and others are frozen, as in a step."""
    case = Case((4, 2, 16, 0.0, 7))
    own = np.stack([case.segments, np.ones_like(case.segments)])

    def member(name, weight, segments, active):
        def total(weight):
            q, k, v = (weight * x for x in case.inputs)
            return jnp.sum(jnp.sin(attention.attention(name, Rows(q, k, v, segments), case.logits)) * case.real)

        return jax.lax.cond(active, jax.value_and_grad(total), lambda weight: (weight, weight), weight)

    weights, active = jnp.array([1.0, 2.0]), jnp.array([True, False])
    for axis, segments in ((None, case.segments), (0, own)):
        ours = jit(jax.vmap(functools.partial(member, implementation), in_axes=(0, axis, 0)))(weights, segments, active)
        alone = jit(functools.partial(member, "blockwise"))(weights[0], case.segments, True)
        np.testing.assert_allclose(ours, np.stack([alone, [2.0, 2.0]], axis=1), rtol=1e-4)


# Whole models

BOTH = ("blockwise", "plain")
PACKED = ("gemma2_packed", "gemma2_grouped_8_4", "gemma3_packed", "llama3_packed", "mistral_packed", "qwen2_packed")
OTHERS = ("gemma2_left_padded", "gemma2_right_padded", "gemma2_window", "mistral_padded", "mistral_window")
RECORDED = (*PACKED, *OTHERS, "gemma3_grouped", "qwen2_window", "qwen3_packed")


@unit
@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("implementation", ["blockwise", pytest.param("splash", marks=pytest.mark.thorough)])
def test_logits_equal_hugging_face(implementation, name):
    with np.load(RECORDINGS / f"{name}.npz") as file:
        cfg = TransformerConfig(**json.loads(str(file["config"])), attention=implementation)
        tokens, segments = file["tokens"].astype(np.int32), file["segments"].astype(np.int32)
        params, logits = draw(cfg, int(file["seed"])), file["logits"]
    ours = np.asarray(jit(functools.partial(transformer.apply, cfg))(params, tokens, segments))
    np.testing.assert_allclose(ours[segments > 0], logits[segments > 0], atol=1e-4, rtol=0)


@pytest.mark.property
@given(st.integers(1, 24), st.integers(0, 7), st.integers(0, 7))
@settings(deadline=None)
def test_sections_are_the_layers_in_order(layers, every, first):
    """They hold each layer once, in a number that does not grow with the layers."""
    cfg = preset("cpu", layers=layers, global_every=every, global_first=first, sliding_window=4)
    kinds = local_layers(cfg)
    found = sections(kinds, first, every)
    assert [kind for section in found for kind in section.kinds * section.times] == kinds
    assert [section.start for section in found] == [
        sum(len(s.kinds) * s.times for s in found[:i]) for i in range(len(found))
    ]
    assert len(found) <= 3 and all(len(section.kinds) <= max(every, 1) for section in found)


@unit
@pytest.mark.parametrize(
    "change",
    [
        {"layers": 5, "global_every": 3, "global_first": 1, "local_rope_theta": 100.0, "unroll": 1},
        pytest.param({"layers": 4, "remat": "full", "unroll": 2}, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_layers_in_sections_have_the_gradients_of_layers_one_by_one(change):
    """Of weights and adapters, and of a population, whose members the compiler sees at once."""
    plain = preset("cpu", sliding_window=5, **change)
    params = transformer.init(plain, jax.random.key(0))
    adapters = jax.tree.map(lambda w: w + 0.05, lora.init(plain, 2, jax.random.key(1)))
    tokens, segments = np.random.RandomState(0).randint(0, plain.vocab, SEGMENTS.shape), jnp.asarray(SEGMENTS)

    def computed(cfg):
        def loss(trained, scale):
            weights, adapters = trained
            x = transformer.hidden_states(cfg, lora.attach(adapters, (weights, scale)), tokens, segments)
            return jnp.sum(jnp.sin(jnp.where(segments[:, :, None] > 0, x, 0)))

        gradient = jax.vmap(jax.grad(loss), in_axes=(None, 0))((params, adapters), jnp.array([0.5, 2.0]))
        middle = transformer.residual_at(cfg, params, tokens, segments, 2)
        return gradient, jnp.where(segments[:, :, None] > 0, middle, 0)

    ours, expected = (jit(computed, static_argnums=0)(dataclasses.replace(plain, attention=a)) for a in BOTH)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        scale = np.abs(b).max()
        assert scale > 0, path
        np.testing.assert_allclose(a / scale, b / scale, atol=2e-5, rtol=0, err_msg=str(path))


# A population of attackers with adapters, accumulating, in every way divided; and heads that do not divide as keys do.
JOBS = [
    ("pretrain", 2, 8, 2, 2, "blockwise"),
    ("pretrain", 1, 8, 2, 4, "splash"),
]
THOROUGH = [("adapters", 2, 8, 2, 2, "blockwise"), ("adapters", 2, 8, 2, 2, "splash")]


@pytest.mark.end_to_end
def test_a_mesh_changes_nothing(tmp_path, request):
    """Each device attends for its rows and heads, and recomputes: the numbers are those of one device that does not."""
    mesh_worker.write_data(tmp_path)
    jobs = JOBS + (THOROUGH if request.config.getoption("--thorough") else [])
    alone = [(stage, 1, 1, 1, 1) for stage in dict.fromkeys(stage for stage, *_ in jobs)]
    numbers = outcome(start(tmp_path, tmp_path / "out.json", [*alone, *jobs], 8), tmp_path / "out.json")
    results = dict(zip([*alone, *jobs], numbers, strict=True))
    for job in jobs:
        assert_same_numbers(results[job], results[job[0], 1, 1, 1, 1])


# What is computed


def shapes(jaxpr) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of all that a program computes, of the functions inside it too."""
    for one in jaxpr.eqns:
        yield from (var.aval.shape for var in one.outvars)
        for inner in jaxprs_in_params(one.params):
            yield from shapes(inner)


@unit
@pytest.mark.parametrize(("implementation", "exists"), [("plain", True), ("blockwise", False)])
def test_no_array_has_all_queries_and_all_keys(implementation, exists):
    cfg = preset("cpu", attention=implementation)
    tokens = jax.ShapeDtypeStruct((1, 2048), jnp.int32)

    def loss(params, tokens):
        return jnp.sum(transformer.hidden_states(cfg, params, tokens, jnp.ones_like(tokens)))

    gradient = jax.make_jaxpr(jax.grad(loss))(transformer.shapes(cfg), tokens)
    assert any(shape.count(2048) > 1 for shape in shapes(gradient.jaxpr)) is exists


@unit
@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize(("implementation", "products"), [("blockwise", 2 + 5), ("splash", 2 + 3 + 4)])
def test_only_blocks_with_something_visible_are_computed(implementation, products, window):
    """By the program's own products: of 4 × 4 blocks the 10 up to the diagonal, or with a window the 7 next to it."""
    q, k = (jax.ShapeDtypeStruct((2, 2048, n, 64), jnp.bfloat16) for n in (4, 2))
    segments = jax.ShapeDtypeStruct((2, 2048), jnp.int32)

    def total(q, k, v, segments):
        logits = Logits(scale=1.0, window=window)
        return jnp.sum(attention.attention(implementation, Rows(q, k, v, segments), logits).astype(jnp.float32))

    gradient = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(q, k, k, segments)
    one_block = 2 * 2 * 4 * 512 * 512 * 64
    assert flops.executed(gradient.jaxpr) == pytest.approx(products * (7 if window else 10) * one_block, rel=2e-3)


@unit
@pytest.mark.parametrize("implementation", ["blockwise", "splash"])
def test_what_a_policy_keeps_is_not_computed_again(implementation):
    """A policy that keeps what is named "attention" leaves nothing of the forward pass to the backward pass."""
    q, k = (jax.ShapeDtypeStruct((2, 512, n, 64), jnp.bfloat16) for n in (4, 2))
    segments = jax.ShapeDtypeStruct((2, 512), jnp.int32)

    def executed(policy):
        def total(q, k, v, segments):
            out = attention.attention(implementation, Rows(q, k, v, segments), Logits(scale=1.0))
            return jnp.sum(jnp.square(out.astype(jnp.float32)))

        again = jax.checkpoint(total, policy=policy)
        both = jax.value_and_grad(again, argnums=(0, 1, 2))
        return flops.executed(jax.make_jaxpr(both)(q, k, k, segments).jaxpr)

    policies = jax.checkpoint_policies
    kept, again = executed(policies.save_only_these_names("attention")), executed(policies.nothing_saveable)
    assert again - kept == pytest.approx(2 * 2 * 2 * 4 * 512 * 512 * 64)


# What is chosen


def device(platform: str, capability: str = "") -> types.SimpleNamespace:
    return types.SimpleNamespace(platform=platform, compute_capability=capability)


CPU, TPU, V100, A100, H100 = (
    device(*args) for args in (("cpu",), ("tpu",), ("gpu", "7.0"), ("gpu", "8.0"), ("gpu", "9.0"))
)
GEMMA = preset("gemma-2-2b", dtype="bfloat16")
LLAMA = preset("llama-3.3-70b", dtype="bfloat16")
WIDE = dataclasses.replace(LLAMA, head_dim=256)


@pytest.fixture
def on(monkeypatch):
    """Return on(device), which makes it the one that is traced for."""

    def use(device):
        for module in (attention, attention_kernels, attention_triton):
            monkeypatch.setattr(module, "first_device", lambda: device)

    return use


@unit
@pytest.mark.parametrize(
    ("where", "cfg", "length", "expected"),
    [
        (CPU, GEMMA, 2048, "plain"),
        (TPU, GEMMA, 2048, "splash"),
        (TPU, LLAMA, 257, "splash"),
        (TPU, GEMMA, 256, "plain"),
        (H100, LLAMA, 2048, "cudnn"),
        (H100, LLAMA, 128, "plain"),
        (H100, WIDE, 2048, "cudnn"),
        (A100, WIDE, 2048, "blockwise"),
        (H100, GEMMA, 2048, "triton"),
        (A100, GEMMA, 2048, "blockwise"),
        (H100, dataclasses.replace(LLAMA, dtype="float32"), 2048, "blockwise"),
        (device("gpu", "gfx90a"), LLAMA, 2048, "blockwise"),
    ],
)
def test_auto_is_by_platform_and_shape(on, where, cfg, length, expected):
    on(where)
    assert attention.choose(cfg, length).implementation == expected


@unit
@pytest.mark.parametrize(
    ("where", "cfg", "name", "reason"),
    [
        (H100, GEMMA, "splash", "a kernel for TPUs, and this is a GPU"),
        (H100, GEMMA, "cudnn", "no soft cap, and model.attention_softcap = 50"),
        (H100, dataclasses.replace(LLAMA, dtype="float32"), "cudnn", "bfloat16, and model.dtype = float32"),
        (A100, WIDE, "cudnn", "up to 128 wide, and model.head_dim = 256"),
        (TPU, LLAMA, "cudnn", "runs on NVIDIA GPUs"),
        (CPU, LLAMA, "cudnn", "runs on NVIDIA GPUs"),
        (TPU, GEMMA, "triton", "for NVIDIA GPUs, and this is a TPU"),
        (A100, GEMMA, "triton", "this GPU is older"),
        (H100, dataclasses.replace(GEMMA, dtype="float32"), "triton", "bfloat16, and model.dtype = float32"),
        (H100, dataclasses.replace(GEMMA, head_dim=512), "triton", "up to 256 wide, and model.head_dim = 512"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(on, where, cfg, name, reason):
    on(where)
    with pytest.raises(ConfigError, match=f'model.attention = "{name}": .*{reason}; set it to'):
        attention.choose(dataclasses.replace(cfg, attention=name), 2048)


@unit
def test_what_cannot_be_is_refused_before_there_are_data(tmp_path):
    run = api.open_run("language:smoke", tmp_path, {"model.attention": "cudnn"})
    with pytest.raises(ConfigError, match="cuDNN runs on NVIDIA GPUs"):
        run.compute()
    assert not list(tmp_path.glob("nodes/*"))


@unit
@pytest.mark.parametrize(("name", "note"), [("auto", ""), ("blockwise", "attention: blockwise (named in the config)")])
def test_a_run_says_how_rows_attend_where_there_is_a_choice(name, note):
    ctx = types.SimpleNamespace(model=preset("cpu", attention=name), row_length=128)
    assert Context.attention_note(ctx, make_mesh(1)) == note


@unit
def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"model.attention = 'flash': choose one of auto, plain, blockwise"):
        preset("cpu", attention="flash")


@unit
@pytest.mark.parametrize("width", [16, 64, 80, 256])
@pytest.mark.parametrize(
    ("implementation", "where", "platform", "call"),
    [("splash", TPU, "tpu", "@tpu_custom_call"), ("triton", H100, "cuda", "xla.gpu.triton")],
)
def test_kernels_lower_for_platforms_that_are_not_here(on, implementation, where, platform, call, width):
    """Three of them: the forward pass, the queries' gradient, and the keys' and values'."""
    on(where)
    q, k = (jax.ShapeDtypeStruct((2, 512, n, width), jnp.bfloat16) for n in (4, 2))
    segments = jax.ShapeDtypeStruct((2, 512), jnp.int32)

    def total(q, k, v, segments):
        logits = Logits(scale=1.0, softcap=50.0, window=300)
        return jnp.sum(attention.attention(implementation, Rows(q, k, v, segments), logits).astype(jnp.float32))

    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k, segments)
    assert traced.lower(lowering_platforms=(platform,)).as_text().count(call) == 3
