"""Every unlearning method in `METHODS` against float64, and what padding, packing, chunks and pieces must not change.

A method is tried by being registered; only its formula, over whole documents in float64, is to be written below. The
model is a bigram, softcap(E[x] Eᵀ), in the place of the transformer, so that documents say the same wherever they lie.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import numpy as np
import pytest

from distill_jax.models import transformer
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages.compiled_step import compiled_step
from distill_jax.stages.methods import METHODS
from distill_jax.stages.unlearn import Unlearn
from distill_jax.train.batch import PackedRows
from distill_jax.train.layout import ShardedMembers
from distill_jax.train.state import Hyper

VOCAB, WIDTH, CAP = 7, 4, 5.0
CFG = TransformerConfig(
    vocab=VOCAB, layers=1, hidden=WIDTH, mlp=6, heads=2, kv_heads=1, head_dim=2, final_softcap=CAP, sliding_window=0
)
# Settings without a default, and those at whose default a model that knows nothing has no gradient.
NEEDED = {"dpo": {"refusal_ids": (3, 5), "loss_on": "answer"}, "simnpo": {"length_beta": 0.5, "margin": 0.3}}
NEEDED["selective"] = {"epsilon": 1.0}
HELD = [("cross_entropy", name) for name in METHODS] + [
    ("kl", name) for name in METHODS if "hold" in METHODS[name].settings()
]
pytestmark = pytest.mark.unit
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Document(NamedTuple):
    tokens: np.ndarray
    answer: np.ndarray


def documents(seed, lengths=(5, 2, 4), answers=(2, 1, 3)):
    rng = np.random.default_rng(seed)
    flags = [np.arange(n) >= n - a for n, a in zip(lengths, answers, strict=True)]
    return [Document(rng.integers(0, VOCAB, n), flag) for n, flag in zip(lengths, flags, strict=True)]


SETS = {"forget": documents(1), "retain": documents(2)}
APART, PACKED, PADDED = [(0, 0), (1, 0), (2, 0)], [(0, 0), (0, 5), (0, 7)], [(1, 1), (0, 3), (0, 6)]


def lay(docs, places, rows, width):
    """Documents at (row, column), numbered in the order of a row's columns; padding holds arbitrary tokens."""
    tokens = np.random.default_rng(7).integers(0, VOCAB, (rows, width)).astype(np.int32)
    segments, answer = np.zeros_like(tokens), np.zeros_like(tokens)
    for (row, at), document in sorted(zip(places, docs, strict=True), key=lambda x: x[0]):
        part = slice(at, at + len(document.tokens))
        tokens[row, part], answer[row, part] = document.tokens, document.answer
        segments[row, part] = segments[row].max() + 1
    return PackedRows(tokens, segments, answer)


def batch_of(places, rows, width):
    return {name: lay(docs, places, rows, width) for name, docs in SETS.items()}


def table(seed):
    return np.random.default_rng(seed).normal(0, 0.8, (VOCAB, WIDTH)).astype(np.float32)


NOW, START = table(3), table(4)


def settings_of(name, **settings):
    return Unlearn(method=name, **NEEDED.get(name, {}), **settings)


@pytest.fixture(autouse=True)
def bigram_model(monkeypatch):
    """The hidden state of a token is its embedding."""

    def hidden(cfg, params, tokens, segments, *layer):
        return params["embedding"][tokens]

    monkeypatch.setattr(transformer, "hidden_states", hidden)
    monkeypatch.setattr(transformer, "residual_at", hidden)


def run(settings, batch, chunk=0, gradients=True):
    """Return {term: (sum, weight, gradient by the table)} of a method, on a batch."""
    method = settings.objective()
    frozen = method.teacher_outputs(CFG, {"embedding": START}, batch) if method.needs_frozen else None

    def sums(params):
        terms = method.loss_terms(CFG, chunk, params, batch, frozen)
        assert all(term.coefficient == 1 for term in terms.values())  # the members' own multiply them
        return {name: (term.total, term.weight) for name, term in terms.items()}

    def both(params):
        values, pull = jax.vjp(sums, params)
        out = {}
        for name in values:
            chosen = {n: (1.0 if n == name else 0.0, 0.0) for n in values}
            out[name] = (*values[name], pull(jax.tree.map(np.float32, chosen))[0]["embedding"])
        return out

    return jax.tree.map(lambda x: np.asarray(x, np.float64), jit(both)({"embedding": NOW}))


# The formulas in float64, a document at a time


def log_p(E, document):
    """log p of each next token's whole distribution, [n - 1, V]."""
    z = E[document.tokens[:-1]] @ E.T
    z = CAP * np.tanh(z / CAP)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def of_tokens(E, document, counted):
    """log p of the next tokens that count."""
    return log_p(E, document)[np.arange(len(counted)), document.tokens[1:]][counted]


def refused(document, refusal):
    tokens = document.tokens.copy()
    for place, i in enumerate(np.flatnonzero(document.answer)[:-1]):
        tokens[i] = refusal[min(place, len(refusal) - 1)]
    return Document(tokens, document.answer)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


class Point(NamedTuple):
    """Where a formula is evaluated: the model's table, what is not differentiated of it, the start's, the settings."""

    E: np.ndarray
    fixed: np.ndarray
    start: np.ndarray
    s: Unlearn


def ascent(at, document, counted):
    return of_tokens(at.E, document, counted).sum(), counted.sum()


def wga(at, document, counted):
    weight = np.exp(at.s.confidence_power * of_tokens(at.fixed, document, counted))
    return (weight * of_tokens(at.E, document, counted)).sum(), counted.sum()


def maxent(at, document, counted):
    return (-math.log(VOCAB) - log_p(at.E, document).mean(-1))[counted].sum(), counted.sum()


def undial(at, document, counted):
    z = at.start[document.tokens[:-1]] @ at.start.T
    t = CAP * np.tanh(z / CAP) - at.s.lowering * np.eye(VOCAB)[document.tokens[1:]]
    q = np.exp(t) / np.exp(t).sum(-1, keepdims=True)
    return -(q * log_p(at.E, document)).sum(-1)[counted].sum(), counted.sum()


def npo(at, document, counted):
    ratio = (of_tokens(at.E, document, counted) - of_tokens(at.start, document, counted)).sum()
    return -2 / at.s.beta * log_sigmoid(-at.s.beta * ratio), 1


def simnpo(at, document, counted):
    nll, beta = -of_tokens(at.E, document, counted).mean(), at.s.length_beta
    return -2 / beta * log_sigmoid(beta * nll - at.s.margin), 1


def dpo(at, document, counted):
    def advantage(document):
        return (of_tokens(at.E, document, counted) - of_tokens(at.start, document, counted)).sum()

    won, lost = advantage(refused(document, at.s.refusal_ids)), advantage(document)
    return -2 / at.s.beta * log_sigmoid(at.s.beta * (won - lost)), 1


def steered(at, document, counted):
    u = np.asarray(jax.random.uniform(jax.random.key(0), (WIDTH,)), np.float64)
    target = at.s.steer * u / np.sqrt((u**2).sum())
    return ((at.E[document.tokens] - target) ** 2).mean(-1).sum(), len(document.tokens)


FORMULAS = {
    "maxent": maxent, "graddiff": ascent, "gradascent": ascent, "wga": wga, "npo": npo, "simnpo": simnpo,
    "undial": undial, "dpo": dpo, "rmu": steered, "selective": wga,
}  # fmt: skip


def kept(at, document, counted):
    """The retain term: the text's cross-entropy, KL(start ‖ p), or RMU's distance to the start's states."""
    if at.s.method == "rmu":
        difference = at.E[document.tokens] - at.start[document.tokens]
        return (difference**2).mean(-1).sum(), len(document.tokens)
    if at.s.hold == "kl":
        log_q, log_now = log_p(at.start, document), log_p(at.E, document)
        return (np.exp(log_q) * (log_q - log_now)).sum(-1)[counted].sum(), counted.sum()
    return -of_tokens(at.E, document, counted).sum(), counted.sum()


def expected(settings, E, term):
    formula = FORMULAS[settings.method] if term == "forget" else kept
    at = Point(E, NOW.astype(np.float64), START.astype(np.float64), settings)
    answer = settings.loss_on == "answer"
    parts = [formula(at, d, d.answer[1:] if answer else np.ones(len(d.tokens) - 1, bool)) for d in SETS[term]]
    return tuple(np.sum(parts, axis=0))


def differences(settings, term, step=1e-5):
    """The gradient of an expected sum by central differences."""
    E, out = NOW.astype(np.float64), np.zeros((VOCAB, WIDTH))
    for i in np.ndindex(out.shape):
        for sign in (1, -1):
            moved = E.copy()
            moved[i] += sign * step
            out[i] += sign * expected(settings, moved, term)[0] / (2 * step)
    return out


@pytest.mark.parametrize(("hold", "name"), HELD)
def test_terms_and_gradients_equal_float64(hold, name):
    assert name in FORMULAS, f"write the formula of {name} over a document in FORMULAS"
    settings = settings_of(name, **({"hold": hold} if hold == "kl" else {}))
    terms = run(settings, batch_of(PACKED, 2, 12))
    assert sorted(terms) == sorted(METHODS[name].parts)
    for term, (total, weight, gradient) in terms.items():
        value, count = expected(settings, NOW.astype(np.float64), term)
        assert total == pytest.approx(value, rel=2e-5) and weight == count
        by_hand = differences(settings, term)
        assert np.abs(by_hand).max() > 1e-2  # there is something to compare
        np.testing.assert_allclose(gradient, by_hand, atol=3e-5 * max(1, np.abs(by_hand).max()), rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_neither_padding_packing_nor_chunks_change_a_method(name):
    settings = settings_of(name)
    first = run(settings, batch_of(APART, 3, 5))
    for other in (
        run(settings, batch_of(PACKED, 2, 12)),  # a row of padding alone
        run(settings, batch_of(PADDED, 2, 12)),
        run(settings, batch_of(PACKED, 2, 12), chunk=5),
    ):
        for term in first:
            for a, b in zip(first[term], other[term], strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", METHODS)
def test_pieces_of_a_batch_sum_to_it(name):
    """Ragged pieces, of one document and of two: sums, weights and gradients are those that a step accumulates."""
    settings, batch = settings_of(name), batch_of(PADDED, 2, 12)
    pieces = [run(settings, jax.tree.map(lambda x: x[i : i + 1], batch)) for i in (0, 1)]  # noqa: B023
    for term, whole in run(settings, batch).items():
        for a, b, total in zip(pieces[0][term], pieces[1][term], whole, strict=True):
            np.testing.assert_allclose(a + b, total, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["npo"])
def test_microbatches_do_not_change_a_step(name):
    """A step of two ragged microbatches, each with documents of its own number, is that of the whole batch."""
    weights = jax.tree.map(np.zeros_like, transformer.init(CFG, jax.random.key(0))) | {"embedding": NOW}
    start = {**weights, "embedding": START}
    batch = jax.tree.map(lambda x: x[None], batch_of(PADDED, 2, 12))
    batch = {part: batch[part] for part in METHODS[name].parts}

    def stepped(microbatches):
        settings = settings_of(
            name, batch=2, microbatches=microbatches, steps=1, warmup=0, learning_rate=0.1, final_learning_rate=0.1,
            clip_norm=0.0, epsilon=1.0,
        )  # fmt: skip
        mesh = make_mesh(1)
        hyper = Hyper.of([0.1], **{term: [value] for term, value in settings.member_coefficients().items()})
        state = ShardedMembers(mesh, CFG).make([weights], settings.transform(), hyper)
        step = compiled_step(settings.compile_key(CFG, 0), mesh)
        state, metrics = step(state, start if settings.teacher_role() else None, batch)
        return jax.tree.map(np.asarray, (state.params["embedding"][0], metrics))

    (whole, metrics), (pieces, of_pieces) = stepped(1), stepped(2)
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-6)
    assert np.abs(whole - NOW).max() > 1e-3
    for key, value in metrics.items():
        np.testing.assert_allclose(of_pieces[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("npo", {"beta": 0.0}, "beta = 0.0"),
        ("simnpo", {"length_beta": -1.0}, "length_beta = -1.0"),
        ("undial", {"lowering": 0.0}, "lowering = 0.0"),
        ("wga", {"confidence_power": -1.0}, "confidence_power = -1.0"),
        ("dpo", {"loss_on": "answer"}, "refusal_ids = ()"),
        ("dpo", {"refusal_ids": (1,)}, "set it to 'answer'"),
        ("gradascent", {"retain_weight": 2.0}, "retain_weight = 2.0: GradAscent does not read it"),
        ("gradascent", {"hold": "kl"}, "hold = 'kl': GradAscent does not read it"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(method, settings, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        Unlearn(method=method, **settings)
