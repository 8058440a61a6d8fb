"""Token-masked distillation against float64: at marked tokens a student learns nothing, and elsewhere all it would."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses.distillation import Divergence
from distill_jax.models import transformer
from distill_jax.stages.distill import Imitation
from tests.test_methods import APART, CFG, NOW, PACKED, PADDED, START, VOCAB, WIDTH, Document, lay, log_p

pytestmark = pytest.mark.unit
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
MARKS = [np.array([0, 0, -1, 1, -1]), np.array([0, 1]), np.array([0, -1, -1, 0])]


def documents():
    rng = np.random.default_rng(5)
    return [Document(rng.integers(0, VOCAB, len(marks)), marks) for marks in MARKS]


@pytest.fixture(autouse=True)
def bigram_model(monkeypatch):
    """The hidden state of a token is its embedding."""

    def hidden(cfg, params, tokens, segments, disturbance=None):
        return params["embedding"][tokens]

    monkeypatch.setattr(transformer, "hidden_states", hidden)


def run(rows, chunk=0):
    """Return the sum, its weight and its gradient by the student's table."""
    objective = Imitation(Divergence(), "unmarked")
    outputs = objective.teacher_outputs(CFG, {"embedding": START}, rows)

    def sums(params):
        term = objective.loss_terms(CFG, chunk, params, rows, outputs)["kl"]
        return term.total, term.weight

    def both(params):
        (total, weight), pull = jax.vjp(sums, params)
        return total, weight, pull((jnp.ones_like(total), jnp.zeros_like(weight)))[0]["embedding"]

    return [np.asarray(x, np.float64) for x in jit(both)({"embedding": NOW})]


def expected(E):
    """KL(teacher ‖ student) of the next tokens that are not marked, a document at a time."""
    total, count = 0.0, 0
    for document in documents():
        log_q, log_now = log_p(np.float64(START), document), log_p(E, document)
        unmarked = document.answer[1:] >= 0
        total += (np.exp(log_q) * (log_q - log_now)).sum(-1)[unmarked].sum()
        count += unmarked.sum()
    return total, count


def test_value_and_gradient_equal_float64():
    total, weight, gradient = run(lay(documents(), PACKED, 2, 12))
    value, count = expected(np.float64(NOW))
    assert total == pytest.approx(value, rel=2e-5) and weight == count == 4
    by_hand, step = np.zeros((VOCAB, WIDTH)), 1e-5
    for i in np.ndindex(by_hand.shape):
        for sign in (1, -1):
            moved = np.float64(NOW)
            moved[i] += sign * step
            by_hand[i] += sign * expected(moved)[0] / (2 * step)
    np.testing.assert_allclose(gradient, by_hand, atol=3e-5)
    assert np.abs(by_hand).max() > 1e-2


def test_neither_padding_packing_chunks_nor_pieces_change_it():
    first = run(lay(documents(), APART, 3, 5))
    rows = lay(documents(), PADDED, 2, 12)
    pieces = [run(jax.tree.map(lambda x: x[i : i + 1], rows)) for i in (0, 1)]  # noqa: B023
    summed = [a + b for a, b in zip(*pieces, strict=True)]
    for other in (run(lay(documents(), PACKED, 2, 12), chunk=5), run(rows), summed):
        for a, b in zip(first, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
