"""The divergences against float64 NumPy and its finite differences, what ties them together, and what they cost."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.losses.chunked import over_tokens
from distill_jax.losses.distillation import DIVERGENCES, Divergence
from distill_jax.models import transformer
from distill_jax.models.head import unembed
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf.memory import kl_memory
from distill_jax.stages import distill
from distill_jax.train.batch import PackedRows
from tests.fast_xla import xla_flags

ROOT = Path(__file__).parent.parent
VOCAB = 7
few = settings(deadline=None, max_examples=25)
# These programs run for microseconds and compile for seconds: LLVM's optimiser is left out, XLA's own passes are not.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ALL = {
    "forward_kl": Divergence(),
    "reverse_kl": Divergence("reverse_kl"),
    "jsd": Divergence("jsd", beta=0.3),
    "skew_kl": Divergence("skew_kl", skew=0.2),
    "skew_reverse_kl": Divergence("skew_reverse_kl", skew=0.2),
    "top_k_kl": Divergence("top_k_kl", top_k=3),
}
TOLD = {
    **ALL,
    "forward_kl T=4": Divergence(temperature=4.0),
    "forward_kl T=4 without T²": Divergence(temperature=4.0, times_t_squared=False),
    "jsd T=2": Divergence("jsd", temperature=2.0, beta=0.8),
    "top_k_kl T=0.5": Divergence("top_k_kl", temperature=0.5, top_k=1),
}


# The same formulas in float64, a position at a time


def normal(z):
    z = np.asarray(z, np.float64)
    return z - z.max() - math.log(np.exp(z - z.max()).sum())


def sum_of_logs(logs):
    """log Σ exp of a list, which may be empty."""
    return max(logs) + math.log(sum(math.exp(x - max(logs)) for x in logs)) if len(logs) else -math.inf


def kl64(first, second):
    return sum(math.exp(a) * (a - b) for a, b in zip(first, second, strict=True) if math.exp(a))


def mix64(share, first, second):
    pairs = zip(first, second, strict=True)
    return [sum_of_logs([math.log(share) + a, math.log(1 - share) + b]) for a, b in pairs]


def position64(d, z, t):
    p, q = normal(z / d.temperature), normal(t / d.temperature)
    if d.name == "forward_kl":
        value = kl64(q, p)
    elif d.name == "reverse_kl":
        value = kl64(p, q)
    elif d.name == "jsd":
        middle = mix64(d.beta, q, p)
        value = d.beta * kl64(q, middle) + (1 - d.beta) * kl64(p, middle)
    elif d.name == "skew_kl":
        value = kl64(q, mix64(d.skew, q, p))
    elif d.name == "skew_reverse_kl":
        value = kl64(p, mix64(d.skew, p, q))
    else:
        order = sorted(range(len(q)), key=lambda v: -q[v])
        head, tail = order[: d.top_k], order[d.top_k :]
        value = kl64(*([*x[head], sum_of_logs(x[tail])] for x in (q, p)))
    return value * (d.temperature**2 if d.times_t_squared else 1)


def loss64(d, z, t, mask):
    return sum(position64(d, z[i], t[i]) for i in np.ndindex(mask.shape) if mask[i])


MASK = np.array([[1, 0, 1, 1], [0, 1, 0, 1]], np.float32)


def case(scale, seed=0, vocab=VOCAB):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(0, scale, (2, 4, vocab)).astype(np.float32).astype(np.float64) for _ in range(2))


@functools.cache
def compiled(d):
    """(student, teacher, mask) -> (sum, weight, gradient of the sum by the student's logits)."""

    def both(z, t, m):
        (total, weight), gradient = jax.value_and_grad(lambda z: d(z, t, m), has_aux=True)(z)
        return total, weight, gradient

    return jit(both)


def run(d, z, t, mask=MASK):
    total, weight, gradient = compiled(d)(np.float32(z), np.float32(t), mask)
    return float(total), float(weight), np.asarray(gradient, np.float64)


@pytest.mark.unit
@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0, 3000.0])
@pytest.mark.parametrize("name", TOLD)
def test_value_equals_float64(name, scale):
    z, t = case(scale)
    total, weight, _ = run(TOLD[name], z, t)
    # A float32 log-probability is good to a few units in the last place of the logits; T² multiplies what T divided.
    reach = 1e-6 * max(1, scale) * max(1, TOLD[name].temperature)
    assert total == pytest.approx(loss64(TOLD[name], z, t, MASK), rel=2e-6, abs=5 * reach)
    assert weight == 5


@pytest.mark.unit
@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("name", TOLD)
def test_gradient_equals_finite_differences(name, scale):
    (z, t), step = case(scale), 1e-4
    expected = np.zeros_like(z)
    for i in np.ndindex(z.shape):
        for sign in (1, -1):
            z[i] += sign * step
            expected[i] += sign * position64(TOLD[name], z[i[:2]], t[i[:2]]) * MASK[i[:2]] / (2 * step)
            z[i] -= sign * step
    gradient = run(TOLD[name], z, t)[2]
    largest = np.abs(expected).max()
    assert largest > 1e-2  # there is something to compare
    np.testing.assert_allclose(gradient, expected, atol=2e-5 * max(1, largest), rtol=0)
    assert not gradient[MASK == 0].any()


@pytest.mark.unit
def test_bfloat16_logits_are_compared_in_float32():
    z, t = (jnp.asarray(x, jnp.bfloat16) for x in case(4.0))
    for name, d in TOLD.items():
        total, weight = jit(d.__call__)(z, t, MASK)
        assert total.dtype == weight.dtype == jnp.float32
        expected = loss64(d, np.asarray(z, np.float64), np.asarray(t, np.float64), MASK)
        assert float(total) == pytest.approx(expected, rel=1e-5), name


# Where values are known

SURE = [  # a student certain of one token, a teacher certain of another: log 0 is never reached, only ±2e4 / T
    (Divergence(), 2e4),
    (Divergence(temperature=4.0), 4 * 2e4),
    (Divergence(temperature=4.0, times_t_squared=False), 2e4 / 4),
    (Divergence("reverse_kl"), 2e4),
    (Divergence("jsd", beta=0.5), math.log(2)),
    (Divergence("jsd", beta=0.25), -0.25 * math.log(0.25) - 0.75 * math.log(0.75)),
    (Divergence("skew_kl", skew=0.1), -math.log(0.1)),
    (Divergence("skew_kl", skew=0.0), 2e4),
    (Divergence("skew_reverse_kl", skew=0.1), -math.log(0.1)),
    (Divergence("top_k_kl", top_k=1), 2e4),
    (Divergence("top_k_kl", top_k=VOCAB), 2e4),
]


@pytest.mark.unit
@pytest.mark.parametrize(("d", "expected"), SURE, ids=[f"{d.name}-{i}" for i, (d, _) in enumerate(SURE)])
def test_certain_models_that_disagree(d, expected):
    z, t = np.full((2, 4, VOCAB), -1e4), np.full((2, 4, VOCAB), -1e4)
    z[..., 1], t[..., 4] = 1e4, 1e4
    total, weight, gradient = run(d, z, t)
    assert total / weight == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(gradient).all()
    total, _, gradient = run(d, t, t)
    assert total == pytest.approx(0, abs=1e-6) and np.isfinite(gradient).all()


@pytest.mark.property
@few
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.03, 1.0, 30.0, 1e4]), name=st.sampled_from(list(TOLD)))
def test_never_negative_zero_at_the_teacher_and_always_finite(seed, scale, name):
    d, (z, t) = TOLD[name], case(scale, seed)
    # Terms of both signs cancel: what is left of a rounded log-probability, T² times, is the error.
    slack = 1e-6 * 5 * max(1, scale if scale > 30 else 1) * max(1, d.temperature**2)
    total, _, gradient = run(d, z, t)
    assert total > -slack and np.isfinite(total) and np.isfinite(gradient).all()
    same, _, still = run(d, t, t)
    assert same == pytest.approx(0, abs=slack)
    assert np.abs(still).max() < 5e-6 * max(1, d.temperature)


@pytest.mark.property
@few
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.3, 3.0, 30.0]))
def test_special_cases_agree(seed, scale):
    z, t = case(scale, seed)

    def same(first, second, swap=False):
        a, b = run(first, z, t), run(second, t, z) if swap else run(second, z, t)
        assert a[0] == pytest.approx(b[0], rel=1e-5, abs=1e-5)
        if not swap:
            np.testing.assert_allclose(a[2], b[2], atol=1e-5 * max(1, np.abs(b[2]).max()))

    same(Divergence("jsd", beta=0.0), Divergence())
    same(Divergence("jsd", beta=1.0), Divergence("reverse_kl"))
    same(Divergence("jsd"), Divergence("jsd"), swap=True)
    same(Divergence("jsd", beta=0.3), Divergence("jsd", beta=0.7), swap=True)
    same(Divergence(), Divergence("reverse_kl"), swap=True)
    same(Divergence("skew_kl", skew=0.2), Divergence("skew_reverse_kl", skew=0.2), swap=True)
    same(Divergence("skew_kl", skew=0.0), Divergence())
    same(Divergence("skew_reverse_kl", skew=0.0), Divergence("reverse_kl"))
    assert run(Divergence("jsd"), z, t)[0] <= 5 * math.log(2) + 1e-5
    assert run(Divergence("skew_kl", skew=0.2), z, t)[0] <= -5 * math.log(0.2) + 1e-5


@pytest.mark.property
@few
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.3, 3.0, 30.0]))
def test_top_k_rises_to_the_whole_divergence(seed, scale):
    z, t = case(scale, seed)
    whole, _, gradient = run(Divergence(), z, t)
    slack = 1e-5 * max(1, whole)
    values = [run(Divergence("top_k_kl", top_k=k), z, t) for k in (1, 2, 4, VOCAB - 2, VOCAB - 1, VOCAB, 5 * VOCAB)]
    totals = [v[0] for v in values]
    assert all(a <= b + slack for a, b in itertools.pairwise(totals))
    assert all(total <= whole + slack for total in totals)
    for total, _, of_student in values[-3:]:
        assert total == pytest.approx(whole, abs=slack)
        np.testing.assert_allclose(of_student, gradient, atol=1e-5)
    if scale == 3.0:  # few enough ties and enough mass outside
        assert totals[0] < totals[2] < whole


@pytest.mark.unit
def test_top_k_keeps_what_ties_with_the_last():
    """Teacher logits 3, 1, 1, 1, 0, 0, 0: the second of them brings its equals; equal logits are all kept."""
    z = np.tile(np.float32([0.5, -1, 2, 0.25, -3, 1, 0]), (2, 4, 1))
    t = np.tile(np.float32([3, 1, 1, 1, 0, 0, 0]), (2, 4, 1))
    value = {k: run(Divergence("top_k_kl", top_k=k), z, t)[0] for k in (1, 2, 3, 4, 5)}
    assert value[2] == value[3] == value[4] == pytest.approx(loss64(Divergence("top_k_kl", top_k=4), z, t, MASK))
    assert value[1] == pytest.approx(loss64(Divergence("top_k_kl", top_k=1), z, t, MASK))
    assert value[1] < value[2] < value[5]
    flat = np.zeros((2, 4, VOCAB))
    assert run(Divergence("top_k_kl", top_k=1), z, flat)[0] == pytest.approx(run(Divergence(), z, flat)[0], rel=1e-6)


@pytest.mark.unit
@pytest.mark.parametrize("name", ALL)
def test_t_squared_multiplies_by_t_squared(name):
    z, t = case(2.0)
    settings_of = {"name": name, "beta": 0.3} if name == "jsd" else {"name": name}
    with_it, without = (run(Divergence(**settings_of, temperature=3.0, times_t_squared=s), z, t) for s in (True, False))
    assert with_it[0] == pytest.approx(9 * without[0], rel=1e-6)
    np.testing.assert_allclose(with_it[2], 9 * without[2], rtol=1e-5, atol=1e-7)
    # The temperature divides both models' logits.
    assert without[0] == pytest.approx(run(Divergence(**settings_of), z / 3, t / 3)[0], rel=1e-5, abs=1e-6)


# What must not matter


@pytest.mark.property
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 1000), name=st.sampled_from(list(ALL)))
def test_neither_padding_nor_microbatches_change_sum_and_weight(seed, name):
    d, (z, t) = ALL[name], case(3.0, seed)
    total, weight, gradient = run(d, z, t)
    rng = np.random.default_rng(seed)

    def pad(x, like=None):  # what lies in padding is arbitrary
        out = np.zeros((4, 6, *x.shape[2:])) if like is None else rng.normal(0, 50, (4, 6, *x.shape[2:]))
        out[1:3, 2:] = x
        return np.float32(out)

    padded = run(d, pad(z, like=z), pad(t, like=t), pad(MASK))
    # Zeros are added to the sum, but XLA may add in another order: a few units in the last place.
    assert padded[:2] == (pytest.approx(total, rel=1e-6), weight)
    np.testing.assert_allclose(padded[2][1:3, 2:], gradient, atol=1e-6)
    halves = [run(d, z[i : i + 1], t[i : i + 1], MASK[i : i + 1]) for i in (0, 1)]
    assert [h[1] for h in halves] == [3, 2]
    assert sum(h[0] for h in halves) == pytest.approx(total, rel=1e-6)
    np.testing.assert_allclose(np.concatenate([h[2] for h in halves]), gradient, atol=1e-6)


def through_heads(d, chunk, hidden, table, teacher_hidden, teacher_table, mask, cap=5.0):
    """(sum, weight) of two softcapped heads' divergence, a chunk of tokens at a time."""
    cfg = TransformerConfig(len(table), 1, hidden.shape[-1], 1, 1, 1, 2, final_softcap=cap)

    def loss(mine, theirs, mask):
        target = jax.lax.stop_gradient(unembed(cfg, {"embedding": teacher_table}, theirs))
        return d(unembed(cfg, {"embedding": table}, mine), target, mask)

    return over_tokens(loss, chunk, hidden, teacher_hidden, mask)


def heads(rows, length, width, vocab, dtype=np.float32):
    rng = np.random.default_rng(5)
    states = [rng.normal(size=(rows, length, width)).astype(dtype) for _ in range(2)]
    tables = [rng.normal(size=(vocab, width)).astype(np.float32) for _ in range(2)]
    mask = (rng.random((rows, length)) < 0.7).astype(np.float32)
    return states[0], tables[0], states[1], tables[1], mask


@pytest.mark.unit
@pytest.mark.parametrize("name", ALL)
def test_chunks_change_neither_value_nor_gradient(name):
    """12 positions in chunks of 5, the last one padded. The sums are those of the same terms in another order."""
    inputs = heads(2, 6, 4, 11)

    def both(chunk):
        loss = functools.partial(through_heads, ALL[name], chunk)
        return jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*inputs)

    expected, found = both(0), both(5)
    assert np.abs(expected[1][1]).max() > 0.05
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-6)
    for ours, whole in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(ours, whole, atol=3e-6)


@pytest.mark.unit
def test_gradients_are_summed_over_chunks_in_float32():
    """800 equal bfloat16 tokens, one at a time: a bfloat16 sum would stop growing at 256 times the first."""
    one, table, theirs, teacher, _ = heads(1, 1, 4, 11, jnp.bfloat16)

    def gradient(tokens, chunk):
        args = (np.repeat(one, tokens, 1), table, np.repeat(theirs, tokens, 1), teacher, np.ones((1, tokens)))
        return jit(jax.grad(lambda w: through_heads(Divergence(), chunk, args[0], w, *args[2:])[0]))(table)

    found = gradient(800, 1)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 800 * gradient(1, 0), rtol=1e-5, atol=1e-4)


# What it costs


@pytest.mark.unit
@pytest.mark.parametrize("name", ALL)
def test_chunks_of_512_need_a_tenth_of_the_memory(name):
    """4 × 2048 tokens of 256,000 logits, compiled and never run: a sixteenth of the tokens at a time."""
    dense, chunked = (kl_memory(chunk, divergence=ALL[name])["temporary"] for chunk in (0, 512))
    one_logits = 4 * 2048 * 256_000 * 4
    assert dense >= 4 * one_logits  # both models' logits and what becomes of them
    assert 10 * chunked <= dense
    assert chunked < one_logits


SHARDED = """
import json, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from distill_jax.sharding.mesh import make_mesh
from test_distill_losses import ALL, heads, through_heads

COLLECTIVE = re.compile(
    r"= (.*?) (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-[a-z]+)(?:-start)?\\\\("
)
VOCAB, WIDTH = 4096, 16
mesh = make_mesh(1, tensor=4)
inputs = heads(4, 16, WIDTH, VOCAB)
specs = P("data"), P("tensor"), P("data"), P("tensor"), P("data")
placed = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(inputs, specs)]

def one_top_k(z, t, mask):  # shows that a gathered vocabulary is found
    return jnp.sum((jax.lax.top_k(t, 3)[0].sum(-1) - z.sum(-1)) * mask), jnp.sum(mask)

def examine(d, chunk):
    def loss(*inputs):
        return through_heads(d, chunk, *inputs)
    program = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    sharded = program.lower(*placed).compile()
    pairs = zip(jax.tree.leaves(program(*inputs)), jax.tree.leaves(sharded(*placed)))
    error = max(float(np.max(np.abs(np.asarray(a) - b)) / np.max(np.abs(a))) for a, b in pairs)
    shapes = [
        [int(n) for n in dims.split(",") if n]
        for found in map(COLLECTIVE.search, sharded.as_text().splitlines()) if found
        for dims in re.findall(r"\\\\w+\\\\[([0-9,]*)\\\\]", found[1])
    ]
    return {
        "error": error,
        "collectives": len(shapes),
        "of_vocabulary": [s for s in shapes if VOCAB in s],
        "largest": max(int(np.prod(s)) for s in shapes),
        "gradient": list(sharded.output_shardings[1][1].spec),
    }

cases = [(n, 16) for n in ALL] + [("top_k_kl", 0)]
found = {f"{n} {chunk}": examine(ALL[n], chunk) for n, chunk in cases}
print(json.dumps({**found, "one top-k": examine(one_top_k, 16)}))
"""


@functools.cache
def sharded():
    """Compile and run the divergences on 8 devices, 2 for data and 4 for the vocabulary."""
    flags = {"XLA_FLAGS": xla_flags(8), "JAX_PLATFORMS": "cpu"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", SHARDED.replace("\\\\", "\\")],
        env={**os.environ, **flags, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.unit
@pytest.mark.parametrize(("name", "chunk"), [*((name, 16) for name in ALL), ("top_k_kl", 0)])
def test_a_sharded_vocabulary_stays_where_it_is(name, chunk):
    """Values and gradients are the whole vocabulary's; what devices exchange is never a vocabulary wide."""
    found = sharded()[f"{name} {chunk}"]
    assert found["error"] < 1e-5  # the order of summation differs
    assert found["collectives"] > 0
    assert found["of_vocabulary"] == []
    # Nor by another shape: the embedding, and a chunk of logits, have 4096 · 16 numbers; a shard of it a quarter.
    assert found["largest"] <= 4096 * 16 // 4
    assert found["gradient"] == ["tensor"]
    assert sharded()["one top-k"]["of_vocabulary"]


# Settings


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "forwrd_kl"}, r"divergence = 'forwrd_kl': choose one of .*did you mean 'forward_kl'"),
        ({"temperature": 0.0}, "temperature = 0.0: must be positive"),
        ({"temperature": math.inf}, "temperature = inf"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"name": "jsd", "beta": 1.5}, r"beta = 1.5: .*\[0, 1\]"),
        ({"name": "jsd", "beta": math.nan}, "beta = nan"),
        ({"name": "skew_kl", "skew": 1.0}, r"skew = 1.0: .*\[0, 1\)"),
        ({"name": "top_k_kl", "top_k": 0}, "top_k = 0: must be at least 1"),
        ({"beta": 0.3}, "beta = 0.3: divergence = 'forward_kl' does not read it; .* choose 'jsd'"),
        ({"name": "jsd", "skew": 0.3}, "skew = 0.3: .* choose 'skew_kl' or 'skew_reverse_kl'"),
        ({"name": "jsd", "top_k": 3}, "top_k = 3: .* choose 'top_k_kl'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Divergence(**change)
    stage = {"divergence" if key == "name" else key: value for key, value in change.items()}
    with pytest.raises(ValueError, match=words):
        distill.Distill(**stage)


@pytest.mark.unit
def test_a_stages_settings_are_its_divergences():
    assert set(ALL) == set(DIVERGENCES)
    assert distill.Distill().objective().divergence == Divergence("forward_kl", 1.0, True)
    shared = {"temperature": 2.0, "times_t_squared": False}
    for name, own in {"jsd": {"beta": 0.2}, "skew_reverse_kl": {"skew": 0.3}, "top_k_kl": {"top_k": 5}}.items():
        assert distill.Distill(divergence=name, **shared, **own).objective().divergence == Divergence(
            name, **shared, **own
        )


@pytest.mark.unit
def test_a_stage_minimises_the_divergence_that_was_chosen():
    cfg = TransformerConfig(vocab=11, layers=1, hidden=8, mlp=8, heads=2, kv_heads=1, head_dim=4)
    chosen = distill.Distill(batch=2, divergence="jsd", beta=0.3, temperature=2.0)
    draw = jit(lambda seed: jax.tree.map(lambda w: 20 * w, transformer.init(cfg, jax.random.key(seed))))
    teacher, student = draw(0), draw(1)
    tokens, ones = np.random.default_rng(0).integers(1, 11, (2, 6)), np.ones((2, 6), int)
    batch = PackedRows(tokens, ones, ones)
    objective = functools.partial(chosen.objective().loss_terms, cfg, 4)
    teach = functools.partial(chosen.objective().teacher_outputs, cfg)
    ((weight, total, count),) = jit(lambda s, t: objective(s, batch, teach(t, batch)))(student, teacher).values()
    z, t = (jit(functools.partial(transformer.apply, cfg))(w, tokens, ones)[:, :-1] for w in (student, teacher))
    expected = loss64(Divergence("jsd", temperature=2.0, beta=0.3), np.float64(z), np.float64(t), np.ones((2, 5)))
    assert (float(weight), float(count)) == (1, 10)
    assert float(total) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.1


@pytest.mark.unit
def test_a_uniform_target_pulls_every_logit_towards_the_mean():
    """KL(uniform ‖ p) of a position in float64, and its gradient in closed form, p - 1 / V."""
    z = np.random.default_rng(0).normal(0, 3, (2, 4, VOCAB)).astype(np.float32)
    mask = np.array([[1, 0, 1, 1], [1, 1, 0, 0]], np.float32)
    loss = lambda z: Divergence()(z, jnp.zeros_like(z), mask)[0]  # noqa: E731
    value, gradient = jit(jax.value_and_grad(loss))(z)
    logs = np.apply_along_axis(normal, -1, z)
    assert float(value) == pytest.approx((mask * (-math.log(VOCAB) - logs.mean(axis=-1))).sum(), rel=1e-5)
    np.testing.assert_allclose(gradient, mask[..., None] * (np.exp(logs) - 1 / VOCAB), atol=1e-6)


@pytest.mark.unit
def test_rows_with_a_uniform_target_join_the_mean_and_the_teacher_never_reads_them():
    cfg = TransformerConfig(vocab=11, layers=1, hidden=8, mlp=8, heads=2, kv_heads=1, head_dim=4)
    chosen = distill.Distill(batch=2, data="retain", uniform="forget")
    draw = jit(lambda seed: jax.tree.map(lambda w: 20 * w, transformer.init(cfg, jax.random.key(seed))))
    teacher, student = draw(0), draw(1)
    segments = {"imitated": np.ones((2, 6), int), "uniform": np.array([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]])}
    counts = {"imitated": np.ones((2, 5)), "uniform": np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]])}
    rng = np.random.default_rng(0)
    batch = {name: PackedRows(rng.integers(1, 11, (2, 6)), segments[name], np.ones((2, 6), int)) for name in segments}
    objective = functools.partial(chosen.objective().loss_terms, cfg, 4)
    teach = functools.partial(chosen.objective().teacher_outputs, cfg)

    def loss(student, teacher, batch):
        ((_, total, count),) = objective(student, batch, teach(teacher, batch)).values()
        return total, count

    total, count = jit(loss)(student, teacher, batch)

    def logits(w, name):
        return jit(functools.partial(transformer.apply, cfg))(w, batch[name].tokens, segments[name])[:, :-1]

    imitated = np.float64(logits(student, "imitated")), np.float64(logits(teacher, "imitated"))
    flattened = np.float64(logits(student, "uniform"))
    expected = loss64(Divergence(), *imitated, counts["imitated"])
    expected += loss64(Divergence(), flattened, np.zeros_like(flattened), counts["uniform"])
    assert float(count) == sum(mask.sum() for mask in counts.values()) == 14
    assert float(total) == pytest.approx(expected, rel=1e-4)
    other = {**batch, "uniform": batch["uniform"]._replace(tokens=batch["uniform"].tokens[::-1])}
    taught = jit(teach)(teacher, batch)["hidden"], jit(teach)(teacher, other)["hidden"]
    np.testing.assert_array_equal(*taught)


@pytest.mark.unit
def test_a_uniform_set_is_part_of_an_identity_only_where_there_is_one():
    """Results from before there was the setting keep their names."""
    assert "uniform" not in distill.Distill(teacher="a").fingerprint_fields()
    assert distill.Distill(teacher="a", uniform="forget").fingerprint_fields()["uniform"] == "forget"
