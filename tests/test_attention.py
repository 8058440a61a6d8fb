"""Every implementation of attention is the same function, and each is chosen where it can be."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import attention, attention_kernels, transformer
from distill_jax.models.attention_kernels import Logits, Rows
from distill_jax.models.presets import preset
from distill_jax.perf import flops

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
    monkeypatch.setattr(attention_kernels, "BLOCK", 16)
    without = functools.partial(jax.nn.dot_product_attention, implementation="xla")

    def stand_in(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return without(*args, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)


@unit
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("implementation", ["plain", "blockwise", "splash", "cudnn"])
def test_values_and_gradients_are_those_of_float64(implementation, shape, small_blocks):
    if implementation == "cudnn" and shape[3]:
        pytest.skip("cuDNN has no soft cap, and its refusal is tested below")
    case = Case(shape, stretch=6 if implementation == "splash" else 1)  # three blocks of either
    for name, ours, exact in zip(("out", "dq", "dk", "dv"), case.computed(implementation), case.exact(), strict=True):
        scale = np.abs(exact).max()
        assert scale > 0.1
        np.testing.assert_allclose(ours, exact, atol=2e-5 * scale, rtol=0, err_msg=name)


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
