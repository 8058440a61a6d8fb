"""Losses of a head without logits in memory: every one equals float64's, whatever the blocks, devices and members."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.config import ConfigError
from distill_jax.data.arithmetic.equations import ArithmeticConfig
from distill_jax.experiment import graph
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.io.metrics import Progress
from distill_jax.losses import distillation
from distill_jax.losses.blockwise import blockwise
from distill_jax.losses.distillation import DIVERGENCES, WHOLE_VOCABULARY, Divergence
from distill_jax.losses.head_loss import (
    CROSS_ENTROPY,
    Comparison,
    Head,
    HeadInputs,
    HeadLoss,
    from_teacher,
    from_uniform,
)
from distill_jax.losses.on_chip import why_no_kernels
from distill_jax.losses.vocabulary_block import BlockLoss
from distill_jax.losses.vocabulary_kernels import KernelPasses
from distill_jax.losses.vocabulary_passes import PlainPasses
from distill_jax.models import head, transformer
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf.memory import HeadShape, kl_memory
from distill_jax.stages import distill, pretrain, unlearn
from distill_jax.stages.context import Context, RunSettings
from distill_jax.train.batch import PackedRows
from tests.fast_xla import xla_flags

ROOT = Path(__file__).parent.parent
CAP, TEMPERATURE, SKEW, BETA = 5.0, 2.0, 0.1, 0.3
BATCH, LENGTH, VOCAB, WIDTH, TEACHER_WIDTH = 2, 9, 300, 16, 24
PASSES = {"plain": PlainPasses(7, 128), "kernels": KernelPasses(2**20, part=128, rows=128, interpret=True)}


def mixed(a, b, share):
    return share * a + (1 - share) * b


def kl64(a, b):
    return jnp.sum(jnp.where(a > 0, a * (jnp.log(a) - jnp.log(b)), 0.0), axis=-1)


# The textbook's formulas of two distributions q and p, in whatever precision these have.
TEXTBOOK = {
    "forward_kl": kl64,
    "reverse_kl": lambda q, p: kl64(p, q),
    "jsd": lambda q, p: BETA * kl64(q, mixed(q, p, BETA)) + (1 - BETA) * kl64(p, mixed(q, p, BETA)),
    "skew_kl": lambda q, p: kl64(q, mixed(q, p, SKEW)),
    "skew_reverse_kl": lambda q, p: kl64(p, mixed(p, q, SKEW)),
    "hellinger": lambda q, p: 1 - jnp.sum(jnp.sqrt(q * p), axis=-1),
}
OWN = {"jsd": {"beta": BETA}, "skew_kl": {"skew": SKEW}, "skew_reverse_kl": {"skew": SKEW}}
BLOCKWISE = sorted(set(DIVERGENCES) - WHOLE_VOCABULARY)


def divergence(name):
    return Divergence(name, temperature=TEMPERATURE, **OWN.get(name, {}))


COMPARISONS = {
    **{name: Comparison("teacher", divergence(name)) for name in BLOCKWISE},
    "cross-entropy": CROSS_ENTROPY.comparison,
    "gradient ascent": Comparison("token", sign=-1.0),
    "max entropy": Comparison("uniform"),
    "jsd from uniform": Comparison("uniform", divergence("jsd")),
}


def heads(dtype=np.float32, batch=BATCH, length=LENGTH, vocab=VOCAB):
    rng = np.random.default_rng(0)
    student = Head(rng.normal(size=(batch, length, WIDTH)), rng.normal(size=(vocab, WIDTH)))
    teacher = Head(rng.normal(size=(batch, length, TEACHER_WIDTH)), rng.normal(size=(vocab, TEACHER_WIDTH)))
    student, teacher = jax.tree.map(lambda x: x.astype(dtype), (student, teacher))
    tokens, mask = rng.integers(0, vocab, (batch, length), np.int32), rng.random((batch, length)) < 0.7
    return student, {"teacher": teacher, "token": tokens, "uniform": None}, mask.astype(np.float32)


def reference(comparison, student, target, mask):
    """The loss from all logits in float64, by the textbook's formula."""

    def distribution(of):
        logits = CAP * jnp.tanh(jnp.einsum("btd,vd->btv", *of) / CAP) / comparison.divergence.temperature
        return jax.nn.softmax(logits)

    p = distribution(student)
    if comparison.target == "teacher":
        q = distribution(target)
    else:
        q = jnp.full_like(p, 1 / p.shape[-1]) if target is None else jax.nn.one_hot(target, p.shape[-1], dtype=p.dtype)
    each = TEXTBOOK[comparison.divergence.name](q, p)
    return comparison.sign * comparison.divergence.temperature**2 * jnp.sum(each * mask)


def expected(comparison, student, target, mask):
    def wide(x):
        return x if x.dtype == np.int32 else np.asarray(x, np.float64)

    with jax.enable_x64(True):
        wide_arrays = jax.tree.map(wide, (student, target, mask))
        return jax.value_and_grad(functools.partial(reference, comparison))(*wide_arrays)


def compare(comparison, passes, tolerance=2e-5, dtype=np.float32):
    student, targets, mask = heads(dtype)
    target = targets[comparison.target]

    def loss(student):
        return blockwise(BlockLoss(comparison, CAP), passes, HeadInputs(student, target, mask))

    (value, weight), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(student)
    wanted, by = expected(comparison, student, target, mask)
    assert float(weight) == mask.sum()
    np.testing.assert_allclose(value, wanted, rtol=tolerance)
    for got, right in zip(gradients, by, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(np.asarray(got, np.float64), right, atol=tolerance * np.abs(right).max())


@pytest.mark.unit
@pytest.mark.parametrize("name", COMPARISONS)
def test_value_and_gradients_are_those_of_float64(name):
    """With soft caps, a temperature, masked positions, blocks that do not divide, and a teacher of another width."""
    compare(COMPARISONS[name], PASSES["plain"])


@pytest.mark.unit
@pytest.mark.parametrize("name", ["forward_kl", "jsd", "cross-entropy", "max entropy"])
def test_kernels_give_those_of_float64(name):
    compare(COMPARISONS[name], PASSES["kernels"])


@pytest.mark.unit
@pytest.mark.parametrize("passes", PASSES)
def test_the_value_alone_is_the_same(passes):
    """As an evaluation takes it, without the passes that gradients need."""
    student, targets, mask = heads()
    for name in ("jsd", "cross-entropy"):
        comparison = COMPARISONS[name]
        target = targets[comparison.target]
        loss = functools.partial(blockwise, BlockLoss(comparison, CAP), PASSES[passes])
        value, _ = jax.jit(loss)(HeadInputs(student, target, mask))
        np.testing.assert_allclose(value, expected(comparison, student, target, mask)[0], rtol=2e-5)


@pytest.mark.unit
@pytest.mark.parametrize("passes", PASSES)
def test_bfloat16_loses_its_own_precision_and_no_more(passes):
    compare(COMPARISONS["forward_kl"], PASSES[passes], 2e-2, jnp.bfloat16)


@pytest.mark.unit
@pytest.mark.parametrize("passes", PASSES)
def test_a_new_divergence_is_one_function(passes, monkeypatch):
    """Of log q and log p, added in one place: its gradients need nothing else."""

    def hellinger(log_q, log_p):
        return 0.5 * jnp.sum((jnp.exp(log_q / 2) - jnp.exp(log_p / 2)) ** 2, axis=-1)

    monkeypatch.setitem(distillation.DIVERGENCES, "hellinger", hellinger)
    compare(Comparison("teacher", Divergence("hellinger")), PASSES[passes])


@pytest.mark.unit
def test_a_frozen_head_has_no_gradient_computed():
    """Where adapters train, the head does not: a third of a cross-entropy's products are left out."""
    student, targets, mask = heads()

    def loss(hidden, weights):
        inputs = HeadInputs(Head(hidden, weights), targets["token"], mask)
        return blockwise(BlockLoss(CROSS_ENTROPY.comparison, CAP), PlainPasses(), inputs)[0]

    both, one = (jax.jit(jax.grad(loss, of)).lower(*student).compile().cost_analysis()["flops"] for of in ((0, 1), 0))
    products = 2 * BATCH * LENGTH * VOCAB * WIDTH
    assert both - one > 0.9 * products


@pytest.mark.unit
def test_no_logits_are_in_memory():
    """Of a longer batch nothing more is held than its hidden states and their gradients."""
    shape = HeadShape(batch=4, length=4096, vocab=20_000, hidden=16)
    short, long = (
        kl_memory(0, dataclasses.replace(shape, length=n), way="blockwise")["temporary"] for n in (4096, 8192)
    )
    assert long - short < 4 * 4096 * 16 * 4 * 8 < 4 * 4096 * 20_000 * 4 / 100


# What stages minimise

CFG = TransformerConfig(vocab=300, layers=1, hidden=16, mlp=8, heads=2, kv_heads=1, head_dim=4, tied=False)
OBJECTIVES = {
    "pretrain": pretrain.Pretrain(),
    "distil": distill.Distill(teacher="t", divergence="jsd", beta=0.3),
    "cached": distill.Distill(teacher="t", cache="c"),
    "uniform": distill.Distill(teacher="t", uniform="forget"),
    "maxent": unlearn.Unlearn(start="s", method="maxent", hold="kl"),
    "graddiff": unlearn.Unlearn(start="s", method="graddiff"),
}


@pytest.mark.unit
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_stage_minimises_the_same_loss_either_way(name, monkeypatch):
    monkeypatch.setattr(transformer, "hidden_states", lambda cfg, params, tokens, *_: params["embedding"][tokens])
    objective = OBJECTIVES[name].objective()
    rng = np.random.default_rng(0)
    tokens, segments = rng.integers(1, 300, (2, 6)), np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
    rows = PackedRows(tokens, segments, np.ones_like(tokens), None)
    names = ("embedding", "unembedding")
    student, teacher = ({name: rng.normal(size=(300, 16)).astype(np.float32) for name in names} for _ in range(2))
    if name == "cached":
        rows, teacher = rows._replace(states=teacher["embedding"][tokens]), head.head_weights(teacher)
    parts = {"uniform": ("imitated", "uniform"), "maxent": ("forget", "retain"), "graddiff": ("forget", "retain")}
    batch = dict.fromkeys(parts[name], rows) if name in parts else rows

    def terms(way, params):
        cfg = dataclasses.replace(CFG, loss_head=way)
        terms = objective.loss_terms(cfg, 4, params, batch, objective.teacher_outputs(cfg, teacher, batch))
        return sum(term.total for term in terms.values()), terms

    taken = [jax.jit(jax.value_and_grad(functools.partial(terms, w), has_aux=True)) for w in ("chunked", "blockwise")]
    chunked, blocks = (f(student) for f in taken)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5), chunked, blocks)


# The choice


@pytest.mark.unit
@pytest.mark.parametrize(
    ("platform", "kind", "vocab", "loss", "way"),
    [
        ("cpu", "cpu", 256_000, CROSS_ENTROPY, "chunked"),
        ("tpu", "TPU v5 lite", 256_000, CROSS_ENTROPY, "pallas"),
        ("tpu", "TPU v4", 256_000, CROSS_ENTROPY, "chunked"),
        ("gpu", "NVIDIA H100", 256_000, from_teacher(Divergence("jsd")), "blockwise"),
        ("gpu", "NVIDIA H100", 4096, CROSS_ENTROPY, "chunked"),
        ("tpu", "TPU v5 lite", 256_000, from_uniform(Divergence("top_k_kl")), "chunked"),
        ("tpu", "TPU v5 lite", 256_000, HeadLoss(lambda z, y, m: (z.sum(), m.sum())), "chunked"),
    ],
)
def test_the_way_is_chosen_by_device_size_and_loss(platform, kind, vocab, loss, way, monkeypatch):
    monkeypatch.setattr(head, "first_device", lambda: SimpleNamespace(platform=platform, device_kind=kind))
    assert head.loss_way(dataclasses.replace(CFG, vocab=vocab), loss) == way


@pytest.mark.unit
def test_an_impossible_way_is_refused(monkeypatch):
    top_k = from_teacher(Divergence("top_k_kl"))
    named = functools.partial(dataclasses.replace, CFG)
    with pytest.raises(ConfigError, match=r'loss_head = "blockwise": divergence = .top_k_kl. .* set it to "auto"'):
        head.loss_way(named(loss_head="blockwise"), top_k)
    with pytest.raises(ConfigError, match="a function of all logits"):
        head.loss_way(named(loss_head="pallas"), HeadLoss(lambda z, y, m: (z.sum(), m.sum())))
    gpu = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100")
    monkeypatch.setattr(head, "first_device", lambda: gpu)
    with pytest.raises(ConfigError, match="kernels are for TPUs, and this is a GPU"):
        head.loss_way(named(loss_head="pallas"), CROSS_ENTROPY)
    assert "16" in why_no_kernels(SimpleNamespace(platform="tpu", device_kind="TPU v4"))
    with pytest.raises(ValueError, match=r"loss_head = .fused.: choose one of auto"):
        named(loss_head="fused")


@pytest.mark.unit
def test_a_run_is_refused_before_anything_is_made():
    stages = {"t": pretrain.Pretrain(), "s": distill.Distill(teacher="t", divergence="top_k_kl")}
    experiment = CheckedExperiment("x", "", CFG, ArithmeticConfig(), stages, RunSettings())
    nodes = graph.build(experiment, Path("/nowhere"))
    ctx = Context(dataclasses.replace(CFG, loss_head="blockwise"), nodes, Path(), Progress(0, 0.0, 0.0, None))
    with pytest.raises(ConfigError, match="top_k_kl"):
        graph.check_memory(ctx, list(nodes.values()))
    graph.check_memory(dataclasses.replace(ctx, model=CFG), list(nodes.values()))


# Meshes

SHARDED = """
import functools, json, sys
sys.path.insert(0, "tests")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from distill_jax.losses.blockwise import blockwise
from distill_jax.losses.head_loss import HeadInputs
from distill_jax.losses.vocabulary_block import BlockLoss
from distill_jax.sharding.mesh import make_mesh, over_members, tracing
from test_head_losses import CAP, COMPARISONS, PASSES, heads

out = {}

def run(mesh, name, passes, members, vocab, batch):
    comparison = COMPARISONS[name]
    student, targets, mask = heads(batch=batch, vocab=vocab)
    shared = targets[comparison.target], jnp.asarray(mask)
    stacked = jax.tree.map(lambda x: jnp.stack([x * (1 + i) for i in range(members)]), student)

    def member(student, shared):
        def loss(student):
            return blockwise(BlockLoss(comparison, CAP), PASSES[passes], HeadInputs(student, *shared))[0]
        return jax.value_and_grad(loss)(student)

    def alone(stacked):
        return jax.lax.map(lambda s: member(s, shared), stacked)

    def divided(stacked, shared):
        with tracing(mesh):
            return over_members(member, mesh)(stacked, shared)

    place = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, P(*axes)))
    hidden = place(stacked.hidden, "population")
    arrays = jax.tree.leaves((jax.jit(alone)(stacked), jax.jit(divided)(stacked._replace(hidden=hidden), shared)))
    half = len(arrays) // 2
    pairs = zip(arrays[:half], arrays[half:])
    return max(float(np.max(np.abs(np.asarray(a) - b)) / np.max(np.abs(a))) for a, b in pairs)

shapes = {
    "fsdp": (1, 8, 1), "tensor": (1, 2, 4), "data": (1, 2, 2), "population": (2, 2, 2), "members alone": (8, 1, 1),
}
for what, (members, fsdp, tensor) in shapes.items():
    mesh = make_mesh(members, fsdp=fsdp, tensor=tensor)
    out[what] = run(mesh, "jsd", "plain", members, 320, 8)
    if what in ("fsdp", "population"):
        out[f"kernels, {what}"] = run(mesh, "forward_kl", "kernels", members, 320, 8)
    if what == "data":
        out[f"tokens, {what}"] = run(mesh, "cross-entropy", "plain", members, 320, 8)
mesh = make_mesh(1, fsdp=8)
out["vocabulary that does not divide"] = run(mesh, "jsd", "plain", 1, 300, 8)
out["rows that do not divide"] = run(mesh, "jsd", "plain", 1, 320, 3)
print(json.dumps(out))
"""


@pytest.mark.unit
def test_devices_and_members_change_the_order_of_sums_and_no_more():
    """Divided over data, fsdp, tensor and population, with sizes that divide and others that do not."""
    env = {**os.environ, "XLA_FLAGS": xla_flags(8), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == 10
    assert {case: error for case, error in errors.items() if not error < 2e-5} == {}


@pytest.mark.unit
@pytest.mark.parametrize(("rows", "products"), [(64, 4), (16, 6)])
def test_logits_that_are_kept_are_made_once(rows, products):
    """Both heads' logits and two gradients where a block is the whole vocabulary; else both logits again."""
    vocab, width, shape = 64, 8, (2, 16)
    loss = BlockLoss(from_teacher(Divergence()).comparison, CAP)

    def total(hidden, weights, teacher_hidden, teacher_weights, mask):
        inputs = HeadInputs(Head(hidden, weights), Head(teacher_hidden, teacher_weights), mask)
        return blockwise(loss, PlainPasses(8, rows), inputs)[0]

    hidden, weights = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((*shape, width), (vocab, width)))
    step = jax.jit(jax.value_and_grad(total, (0, 1)))
    text = step.lower(hidden, weights, hidden, weights, jax.ShapeDtypeStruct(shape, jnp.float32)).compile().as_text()
    assert len(re.findall(r" dot\(", text)) == products


@pytest.mark.unit
@pytest.mark.parametrize(
    ("platform", "chunk", "expected"),
    [("gpu", 1024, PlainPasses(1024, 256_000)), ("gpu", 0, PlainPasses()), ("cpu", 1024, PlainPasses())],
)
def test_a_gpu_keeps_the_logits_of_a_chunk(monkeypatch, platform, chunk, expected):
    monkeypatch.setattr(head, "first_device", lambda: SimpleNamespace(platform=platform))
    assert head._plain_passes(SimpleNamespace(vocab=256_000), chunk) == expected
