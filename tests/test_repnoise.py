"""RepNoise: its distance to noise against draws of noise and against float64, wherever documents lie."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses.noise_distance import WIDTHS, mean_over_layers, squared_mmd_to_noise
from distill_jax.losses.preference import Documents
from distill_jax.models import transformer
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.stages.unlearn import Unlearn
from tests.traced import TINY, traced_step

pytestmark = pytest.mark.unit
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SIZE, SCALE = 5, 0.7
RNG = np.random.default_rng(0)
DOCUMENTS = [np.float32(RNG.normal(0.3, 1.2, (n, SIZE))) for n in (4, 1, 3)]
COUNTED = [np.array([1, 1, 0, 1], bool), np.array([1], bool), np.array([0, 1, 1], bool)]


def lay(places, rows, width):
    """States and documents with each at (row, column); elsewhere lie arbitrary states, which no document has."""
    states = np.float32(np.random.default_rng(9).normal(0, 3, (rows, width, SIZE)))
    numbers, mask = np.zeros((rows, width), int), np.zeros((rows, width), np.float32)
    for (row, at), document, counted in zip(places, DOCUMENTS, COUNTED, strict=True):
        part = slice(at, at + len(document))
        states[row, part], mask[row, part], numbers[row, part] = document, counted, numbers[row].max() + 1
    return states, Documents(numbers, mask)


APART, PACKED, PADDED = [(0, 0), (1, 0), (2, 0)], [(0, 0), (0, 4), (0, 5)], [(0, 2), (1, 3), (0, 7)]


@functools.cache
def compiled():
    def both(states, documents):
        (total, weight), pull = jax.vjp(lambda s: squared_mmd_to_noise(s, documents, SCALE), states)
        return total, weight, pull((jnp.ones_like(total), jnp.zeros_like(weight)))[0]

    return jit(both)


def run(places, rows, width):
    """Return the sum, the weight, and the gradient by each document's own states."""
    total, weight, gradient = compiled()(*lay(places, rows, width))
    inside = [np.asarray(gradient[row, at : at + len(d)]) for (row, at), d in zip(places, DOCUMENTS, strict=True)]
    assert np.abs(gradient).sum() == pytest.approx(sum(np.abs(g).sum() for g in inside), rel=1e-6)  # none elsewhere
    return float(total), float(weight), np.concatenate(inside)


def mmd64(document, width):
    """MMD² of a document's states to noise in float64, a pair at a time; kernels of `WIDTHS` times a width s²."""
    n, out = len(document), 0.0
    for s2 in np.array(WIDTHS) * width:
        among = np.mean([np.exp(-((x - y) ** 2).sum() / (2 * s2)) for x in document for y in document])
        shrink = (s2 / (s2 + SCALE**2)) ** (SIZE / 2)
        to_noise = sum(shrink * np.exp(-(x**2).sum() / (2 * (s2 + SCALE**2))) for x in document) / n
        out += among - 2 * to_noise + (s2 / (s2 + 2 * SCALE**2)) ** (SIZE / 2)
    return out / len(WIDTHS)


def width_of(document):
    return ((document**2).sum(-1).mean() + SIZE * SCALE**2) / 2


CHOSEN = [np.float64(d[c]) for d, c in zip(DOCUMENTS, COUNTED, strict=True)]


def test_the_distance_is_that_to_noise_that_is_drawn():
    """The textbook's estimate from 40,000 draws of noise, by kernels of a document's own widths."""
    document, rng = CHOSEN[0], np.random.default_rng(1)
    noise, other = (rng.normal(0, SCALE, (40_000, SIZE)) for _ in range(2))
    estimate = []
    for s2 in np.array(WIDTHS) * width_of(document):

        def k(x, y, s2=s2):
            return np.exp(-((x - y) ** 2).sum(-1) / (2 * s2))

        among = k(document[:, None], document[None]).mean()
        estimate.append(among - 2 * k(document[:, None], noise[None]).mean() + k(noise, other).mean())
    assert mmd64(document, width_of(document)) == pytest.approx(np.mean(estimate), abs=3e-3)
    assert np.mean(estimate) > 0.1  # there is something to compare


def test_value_and_gradient_equal_float64_and_its_differences():
    total, weight, gradient = run(PACKED, 2, 9)
    widths = [width_of(d) for d in CHOSEN]  # which get no gradient
    assert total == pytest.approx(sum(map(mmd64, CHOSEN, widths)), rel=1e-5) and weight == len(DOCUMENTS)
    expected, step = [], 1e-5
    for document, counted, width in zip(DOCUMENTS, COUNTED, widths, strict=True):
        of_document = np.zeros((len(document), SIZE))
        for i in np.ndindex(of_document.shape):
            for sign in (1, -1):
                moved = np.float64(document)
                moved[i] += sign * step
                of_document[i] += sign * mmd64(moved[counted], width) / (2 * step)
        expected.append(of_document)
    np.testing.assert_allclose(gradient, np.concatenate(expected), atol=2e-6)
    assert np.abs(gradient).max() > 0.02


@pytest.mark.parametrize(("places", "rows", "width"), [(APART, 3, 4), (PADDED, 2, 12)], ids=["apart", "padded"])
def test_neither_padding_nor_packing_changes_it(places, rows, width):
    for a, b in zip(run(PACKED, 2, 9), run(places, rows, width), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_descent_makes_noise_of_states():
    """Descended, the states' mean square becomes the noise's, from below as from above."""
    descend = jit(
        lambda s, d: jax.lax.fori_loop(
            0, 300, lambda _, s: s - 20.0 * jax.grad(lambda s: squared_mmd_to_noise(s, d, SCALE)[0])(s), s
        )
    )
    documents = Documents(np.ones((1, 40), int), np.ones((1, 40), np.float32))
    for size in (0.2, 1.4):
        states = np.float32(np.random.default_rng(3).normal(0, size, (1, 40, SIZE)))
        after = np.asarray(descend(states, documents))
        assert after.std() == pytest.approx(SCALE, rel=0.2)


# Of a decoder

CFG = TransformerConfig(
    vocab=11, layers=2, hidden=8, mlp=12, heads=2, kv_heads=1, head_dim=4, sliding_window=3, global_every=2
)  # fmt: skip


@pytest.mark.parametrize("attention", ["plain", "blockwise"])
def test_the_streams_that_leave_each_layer_are_those_of_the_first_layers_alone(attention):
    cfg, rng = dataclasses.replace(CFG, attention=attention), np.random.default_rng(2)
    params = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.5, x.shape)), transformer.shapes(cfg))
    tokens = rng.integers(0, 11, (2, 8)).astype(np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 0, 0]], np.int32)

    def both(params):
        alone = [transformer.residual_at(cfg, params, tokens, segments, layer) for layer in (1, 2)]
        return transformer.residuals(cfg, params, tokens, segments), jnp.stack(alone)

    streams, alone = jit(both)(params)
    assert streams.shape == (2, 2, 8, 8)
    np.testing.assert_allclose(streams, alone, rtol=1e-5, atol=1e-5)


def test_the_mean_over_layers_is_that_of_each():
    states, documents = lay(PACKED, 2, 9)
    total, weight = jit(lambda s: mean_over_layers(s, documents, SCALE))(np.stack([states, 2 * states]))
    each = [jit(lambda s: squared_mmd_to_noise(s, documents, SCALE))(s)[0] for s in (states, 2 * states)]
    assert float(total) == pytest.approx(np.mean(each), rel=1e-6) and float(weight) == len(DOCUMENTS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"repnoise_weight": 0.0}, "repnoise_weight = 0.0: must be positive"),
        ({"repnoise_scale": -1.0}, "repnoise_scale = -1.0: must be positive"),
        ({"method": "rmu"}, "not with method = 'rmu', which steers the states"),
        ({"method": "selective", "epsilon": 1.0}, "not with method = 'selective', whose gradient has a rule"),
        ({"robust": "", "repnoise_weight": 2.0}, "repnoise_weight = 2.0"),
    ],
)
def test_what_cannot_be_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Unlearn(**{"robust": "repnoise", **settings})


def test_adapters_can_train_where_the_method_lets_them():
    assert Unlearn(robust="repnoise", lora_rank=2).lora_rank == 2
    with pytest.raises(ValueError, match="SAM trains weights themselves"):
        Unlearn(robust="sam", lora_rank=2)
    with pytest.raises(ValueError, match="RMU trains weights themselves"):
        Unlearn(method="rmu", lora_rank=2)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_step_executes_the_flops_that_are_counted(lora_rank):
    cfg = TransformerConfig(**TINY)
    stage = Unlearn(start="t", robust="repnoise", batch=4, lora_rank=lora_rank)
    job, _, traced = traced_step(cfg, stage, jax.devices()[:1])
    assert flops.executed(traced.jaxpr.jaxpr) == pytest.approx(job.step_flops(), rel=0.05)
