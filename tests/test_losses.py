"""The losses against float64 NumPy, its finite differences, and what padding, packing and chunks must not change."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.losses.chunked import over_tokens
from distill_jax.losses.cross_entropy import cross_entropy, target_mask, token_nll
from distill_jax.losses.distillation import Divergence
from distill_jax.losses.unlearning import gradient_ascent, max_entropy, squared_distance

ROWS, LENGTH, VOCAB = 2, 4, 5
few = settings(deadline=None, max_examples=25)
# These programs run for microseconds and compile for seconds: LLVM's optimiser is left out, XLA's own passes are not.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


# The same formulas in float64, a position at a time


def log_p(z):
    z = np.asarray(z, np.float64)
    return z - z.max() - math.log(np.exp(z - z.max()).sum())


def at_each(position, mask):
    """Sum a float64 function of a position's index over the positions that count."""
    return sum(position(i) for i in np.ndindex(mask.shape) if mask[i]), float((mask > 0).sum())


def kl64(z, t, mask, temperature=1.0):
    def one(i):
        q, p = log_p(t[i] / temperature), log_p(z[i] / temperature)
        return temperature**2 * sum(math.exp(a) * (a - b) for a, b in zip(q, p, strict=True))

    return at_each(one, mask)


def nll64(z, targets, mask):
    return at_each(lambda i: -log_p(z[i])[targets[i]], mask)


def ascent64(z, targets, mask):
    return at_each(lambda i: log_p(z[i])[targets[i]], mask)


def entropy64(z, mask):
    return at_each(lambda i: np.mean([-math.log(len(z[i])) - a for a in log_p(z[i])]), mask)


def distance64(h, target, mask):
    return at_each(lambda i: sum((a - b) ** 2 for a, b in zip(h[i], target, strict=True)) / len(target), mask)


def forward_kl(z, t, mask, temperature=1.0):
    return Divergence(temperature=temperature)(z, t, mask)


def case(scale: float, seed: int = 0):
    """Random logits, teacher logits, targets and a ragged mask; float64 copies of float32 numbers."""
    rng = np.random.default_rng(seed)
    z, t = (rng.normal(0, scale, (ROWS, LENGTH, VOCAB)).astype(np.float32).astype(np.float64) for _ in range(2))
    mask = np.array([[1, 0, 1, 1], [0, 1, 0, 1]], np.float32)
    return z, t, rng.integers(0, VOCAB, (ROWS, LENGTH)), mask


VECTOR = np.array([0.5, -1.0, 2.0, 0.25, -3.0])
LOSSES = {
    "forward_kl": (lambda z, t, y, m: forward_kl(z, t, m), lambda z, t, y, m: kl64(z, t, m)),
    "forward_kl_T4": (lambda z, t, y, m: forward_kl(z, t, m, 4.0), lambda z, t, y, m: kl64(z, t, m, 4.0)),
    "forward_kl_T0.5": (lambda z, t, y, m: forward_kl(z, t, m, 0.5), lambda z, t, y, m: kl64(z, t, m, 0.5)),
    "cross_entropy": (lambda z, t, y, m: cross_entropy(z, y, m), lambda z, t, y, m: nll64(z, y, m)),
    "gradient_ascent": (lambda z, t, y, m: gradient_ascent(z, y, m), lambda z, t, y, m: ascent64(z, y, m)),
    "max_entropy": (lambda z, t, y, m: max_entropy(z, m), lambda z, t, y, m: entropy64(z, m)),
    "squared_distance": (
        lambda z, t, y, m: squared_distance(z, jnp.asarray(VECTOR), m),
        lambda z, t, y, m: distance64(z, VECTOR, m),
    ),
}


@functools.cache
def compiled(name):
    """One compilation a loss: (z, t, y, m) -> ((sum, weight), gradient of the sum)."""

    def both(z, t, y, m):
        (total, weight), pull = jax.vjp(lambda z: LOSSES[name][0](z, t, y, m), z)
        return (total, weight), pull((jnp.ones_like(total), jnp.zeros_like(weight)))[0]

    return jit(both)


def run(name, z, t, y, m):
    (total, weight), gradient = compiled(name)(np.float32(z), np.float32(t), np.int32(y), np.float32(m))
    return float(total), float(weight), np.asarray(gradient, np.float64)


@pytest.mark.unit
@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0, 3000.0])
@pytest.mark.parametrize("name", LOSSES)
def test_value_equals_float64(name, scale):
    z, t, y, m = case(scale)
    total, weight, _ = run(name, z, t, y, m)
    expected, count = LOSSES[name][1](z, t, y, m)
    # A float32 logarithm of a sum is good to a few units in the last place of the logits.
    assert total == pytest.approx(expected, rel=2e-6, abs=1e-6 * max(1, scale) * count)
    assert weight == count == 5


@pytest.mark.unit
@pytest.mark.parametrize("scale", [1.0, 20.0, 3000.0])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_finite_differences(name, scale):
    z, t, y, m = case(scale)
    reference, step = LOSSES[name][1], 1e-4
    expected = np.zeros_like(z)
    for i in np.ndindex(z.shape):
        z[i] += step
        above = reference(z, t, y, m)[0]
        z[i] -= 2 * step
        expected[i] = (above - reference(z, t, y, m)[0]) / (2 * step)
        z[i] += step
    gradient = run(name, z, t, y, m)[2]
    assert np.abs(expected).max() > 1e-2  # there is something to compare
    np.testing.assert_allclose(gradient, expected, atol=2e-5 * max(1, np.abs(expected).max()), rtol=0)
    assert not gradient[m == 0].any()


@pytest.mark.unit
def test_losses_of_bfloat16_logits_are_computed_in_float32():
    z, t, y, m = case(4.0)
    z16, t16 = (jnp.asarray(x, jnp.bfloat16) for x in (z, t))
    z, t = (np.asarray(x, np.float64) for x in (z16, t16))
    for name, (ours, reference) in LOSSES.items():
        total, _ = jit(ours)(z16, t16, y, m)
        assert total.dtype == jnp.float32, name
        assert float(total) == pytest.approx(reference(z, t, y, m)[0], rel=1e-5), name


# What each formula says at points where its value is known


@pytest.mark.unit
@pytest.mark.parametrize("name", ["forward_kl", "forward_kl_T4", "forward_kl_T0.5"])
@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_kl_of_a_distribution_with_itself_is_zero(name, scale):
    z, _, y, m = case(scale)
    total, _, gradient = run(name, z, z, y, m)
    assert total == 0
    assert np.abs(gradient).max() < 1e-6


@pytest.mark.property
@few
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.3, 3.0, 30.0]), shift=st.floats(-50, 50))
def test_kl_is_not_negative_and_blind_to_a_shift(seed, scale, shift):
    z, t, y, m = case(scale, seed)
    total, *_ = run("forward_kl", z, t, y, m)
    assert total > 0
    assert run("forward_kl", z + shift, t - shift, y, m)[0] == pytest.approx(total, rel=1e-3, abs=1e-4)


@pytest.mark.unit
def test_temperature_keeps_the_size_of_the_gradient():
    """T² makes it T·(softmax(z/T) - softmax(t/T)), which tends to ((z - mean z) - (t - mean t)) / V."""
    z, t, _, m = case(1.0)
    gradient = jit(jax.grad(lambda z, temperature: forward_kl(z, t, m, temperature)[0]), static_argnums=1)
    for temperature in (0.5, 1.0, 4.0):
        p, q = (np.exp(np.apply_along_axis(log_p, -1, x / temperature)) for x in (z, t))
        expected = temperature * (p - q) * m[..., None]
        np.testing.assert_allclose(gradient(np.float32(z), temperature), expected, atol=2e-6)
    centred = (z - z.mean(-1, keepdims=True)) - (t - t.mean(-1, keepdims=True))
    limit = centred / VOCAB * m[..., None]
    np.testing.assert_allclose(gradient(np.float32(z), 100.0), limit, atol=0.02 * np.abs(limit).max())


@pytest.mark.unit
@pytest.mark.parametrize("vocab", [2, 10, 1000])
def test_max_entropy_is_zero_for_uniform_logits(vocab):
    both = jit(jax.value_and_grad(lambda x: max_entropy(x, jnp.ones((1, 3)))[0]))
    for level in (0.0, -3.0):
        value, gradient = both(jnp.full((1, 3, vocab), level))
        assert float(value) == pytest.approx(0, abs=3e-6)
        assert np.abs(gradient).max() < 1e-6


@pytest.mark.unit
@pytest.mark.parametrize("vocab", [2, 10, 1000])
def test_max_entropy_of_a_spike(vocab):
    """One logit s above the others: KL(U ‖ p) = log(e^s + V - 1) - s / V - log V, near s (1 - 1 / V) - log V."""
    loss = jit(max_entropy)
    for s in (1.0, 5.0, 80.0):
        logits = np.zeros((1, 1, vocab), np.float32)
        logits[0, 0, 1] = s
        value = float(loss(logits, np.ones((1, 1), np.float32))[0])
        assert value == pytest.approx(math.log(math.exp(s) + vocab - 1) - s / vocab - math.log(vocab), abs=2e-5)
    assert value == pytest.approx(s * (1 - 1 / vocab) - math.log(vocab), abs=2e-5)


@pytest.mark.unit
def test_token_nll_of_a_sure_and_of_an_impossible_target():
    logits = jnp.array([[0.0, 200.0, 0.0]])
    assert float(token_nll(logits, jnp.array([1]))[0]) == 0
    assert float(token_nll(logits, jnp.array([2]))[0]) == pytest.approx(200)


@pytest.mark.unit
def test_squared_distance_takes_a_vector_or_a_state():
    rng = np.random.default_rng(1)
    h, frozen = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    mask = np.array([[1, 1, 0], [0, 1, 0]], np.float32)
    expected = sum(((h[i] - frozen[i]) ** 2).mean() for i in [(0, 0), (0, 1), (1, 1)])
    loss = jit(squared_distance)
    total, weight = loss(h, frozen, mask)
    assert (float(total), float(weight)) == (pytest.approx(expected, rel=1e-6), 3)
    assert float(loss(h, h, mask)[0]) == 0


# Which targets count

layouts = st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=4)


@pytest.mark.property
@settings(deadline=None, max_examples=60)
@given(layout=layouts, data=st.data())
def test_targets_that_count_are_those_inside_a_document(layout, data):
    """Documents, some with padding before them, in a row of 16; the mask is told from the documents' own tokens."""
    row, expected_all, expected_answer = np.zeros(16, int), np.zeros(15), np.zeros(15)
    answer = np.zeros(16, int)
    place = 0
    for number, (length, gap) in enumerate(layout, 1):
        place += gap
        if place + length > 16:
            break
        row[place : place + length] = number
        answer[place : place + length] = data.draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
        for token in range(place + 1, place + length):  # the first token of a document is no target
            expected_all[token - 1] = 1
            expected_answer[token - 1] = answer[token]
        place += length
    mask = jit(target_mask)(row[None])
    assert mask.dtype == jnp.float32
    np.testing.assert_array_equal(mask[0], expected_all)
    np.testing.assert_array_equal(jit(target_mask)(row[None], answer[None])[0], expected_answer)


DOCUMENTS, LONGEST = 3, 6


@pytest.mark.property
@settings(deadline=None, max_examples=10)
@given(
    lengths=st.lists(st.integers(2, LONGEST), min_size=DOCUMENTS, max_size=DOCUMENTS),
    pad=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_neither_padding_nor_packing_changes_a_loss(lengths, pad, seed):
    """The same documents a row each, packed in one row, and packed after padding: equal sums, equal gradients."""
    rng = np.random.default_rng(seed)
    docs = [(rng.normal(0, 2, (n, VOCAB)), rng.normal(0, 2, (n, VOCAB)), rng.integers(0, VOCAB, n)) for n in lengths]

    def lay(rows, width, places):
        z, t = (rng.normal(0, 2, (rows, width, VOCAB)) for _ in range(2))  # what lies in padding is arbitrary
        y, segments = rng.integers(0, VOCAB, (rows, width)), np.zeros((rows, width), int)
        for number, ((row, at), (dz, dt, dy)) in enumerate(zip(places, docs, strict=True), 1):
            part = slice(at, at + len(dy))
            z[row, part], t[row, part], y[row, part], segments[row, part] = dz, dt, dy, number
        return z, t, y, segments

    def gather(gradient, places):
        return np.concatenate([gradient[r, a : a + n - 1] for (r, a), n in zip(places, lengths, strict=True)])

    starts = np.cumsum([0, *lengths[:-1]])
    width = DOCUMENTS * LONGEST + 2
    layouts = {
        "apart": (DOCUMENTS, LONGEST + 2, [(i, pad) for i in range(DOCUMENTS)]),
        "packed": (1, width, [(0, int(s)) for s in starts]),
        "shifted": (1, width, [(0, int(s) + pad) for s in starts]),
    }
    for name in ("forward_kl", "cross_entropy", "max_entropy"):
        expected = None
        for rows, columns, places in layouts.values():
            z, t, y, segments = lay(rows, columns, places)
            mask = np.asarray(jit(target_mask)(segments))
            total, weight, gradient = run(name, z[:, :-1], t[:, :-1], y[:, 1:], mask)
            assert weight == sum(lengths) - DOCUMENTS
            assert np.count_nonzero(np.abs(gradient).max(-1)) == weight  # nothing outside, nothing across
            found = np.append(gather(gradient, places), total)
            if expected is None:
                expected = found
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)


# Chunks


def in_head(table, hidden, target, mask):
    return cross_entropy(hidden @ table.T, target, mask)


@functools.cache
def head_inputs():
    rng = np.random.default_rng(3)
    hidden, table = rng.normal(size=(2, 6, 3)).astype(np.float32), rng.normal(size=(7, 3)).astype(np.float32)
    mask = np.array([[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1]], np.float32)
    return table, hidden, rng.integers(0, 7, (2, 6)), mask


@pytest.mark.unit
@pytest.mark.parametrize("chunk", [0, 1, 4, 5, 12, 100])
def test_chunks_change_neither_value_nor_gradient(chunk):
    """Of the hidden states and of the head that the loss closes over; 12 positions, chunks that divide and do not."""
    table, hidden, target, mask = head_inputs()

    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def chunked(table, hidden):
        return over_tokens(lambda *x: in_head(table, *x), chunk, hidden, target, mask)

    (total, weight), (of_table, of_hidden) = jit(chunked)(table, hidden)
    z = hidden.astype(np.float64) @ table.T.astype(np.float64)
    assert float(total) == pytest.approx(nll64(z, target, mask)[0], rel=1e-6)
    assert float(weight) == mask.sum() == 8
    p = np.exp(np.apply_along_axis(log_p, -1, z)) - np.eye(7)[target]
    p *= mask[..., None]
    np.testing.assert_allclose(of_hidden, p @ table, atol=1e-6)
    np.testing.assert_allclose(of_table, np.einsum("btv,btd->vd", p, hidden), atol=2e-6)


def largest(jaxpr) -> int:
    """Return the size of the largest array that a program computes."""
    sizes = [1]
    for equation in jaxpr.eqns:
        sizes += [math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                sizes.append(largest(inner))
    return max(sizes)


@pytest.mark.unit
def test_all_logits_never_exist_at_once():
    """12 positions of 50 logits: with chunks of 3 no array of the gradient's program is as large as 600."""
    hidden, table = jnp.ones((2, 6, 3)), jnp.ones((50, 3))
    target, mask = jnp.zeros((2, 6), jnp.int32), jnp.ones((2, 6))

    def program(chunk):
        def loss(table, hidden):
            return over_tokens(lambda *x: in_head(table, *x), chunk, hidden, target, mask)[0]

        return largest(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(table, hidden).jaxpr)

    assert program(0) == 2 * 6 * 50
    assert program(3) == 3 * 50
