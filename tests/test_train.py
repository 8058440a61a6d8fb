"""The train step against AdamW in float64 NumPy, its population against separate runs, and the stages' steps.

Most tests train a bigram model (logits = E[x] Eᵀ) whose gradient is short enough to write by hand; all other weights
are pulled to zero by a second term. The stages' own steps are tried with the smallest transformers.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses.cross_entropy import cross_entropy, target_mask
from distill_jax.models import transformer
from distill_jax.models.head import head_weights
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.sharding.mesh import batch_sharding, make_mesh
from distill_jax.stages import distill, pretrain, unlearn
from distill_jax.stages.compiled_step import compiled_step
from distill_jax.stages.perturb import Perturb, damage
from distill_jax.train.batch import PackedRows
from distill_jax.train.layout import ShardedMembers
from distill_jax.train.loop import Hooks, loop
from distill_jax.train.population import member
from distill_jax.train.settings import Training
from distill_jax.train.state import DIVERGED, REACHED, RUNNING, UNUSED, Hyper
from distill_jax.train.step import ACTIVE, StepConfig, Term, make_step, of_active

CFG = TransformerConfig(vocab=7, layers=2, hidden=4, mlp=6, heads=2, kv_heads=1, head_dim=2)
ROWS, LENGTH = 4, 6
PULL = 0.5  # coefficient of the second term
SETTINGS = Training(
    steps=6, batch=ROWS, learning_rate=0.05, final_learning_rate=0.01, warmup=2, weight_decay=0.1, clip_norm=0.7
)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """The programs run for microseconds and compile for seconds: leave LLVM's optimiser out."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def weights(cfg=CFG, seed=0, scale=0.5):
    """Random weights; norm scales are not zero either."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
    return jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(np.float32), shapes)


def rows(seed, count=ROWS, length=LENGTH, vocab=CFG.vocab):
    """Ragged rows: each is a document or two and padding, of other lengths in every row."""
    rng = np.random.default_rng(seed)
    segments = np.zeros((count, length), np.int32)
    for row in segments:
        first, end = sorted(rng.choice(np.arange(1, length + 1), 2, replace=False))
        row[:first], row[first:end] = 1, 2
    segments[0] = [1] * 2 + [0] * (length - 2)  # one target only
    tokens, answer = rng.integers(0, vocab, (count, length)), rng.integers(0, 2, (count, length))
    return PackedRows(tokens.astype(np.int32), segments, answer.astype(np.int32))


def batch(*seeds, **shape):
    """Streams of rows, [G, B, T]."""
    return jax.tree.map(lambda *x: np.stack(x), *(rows(seed, **shape) for seed in seeds))


def bigram(params, batch, _):
    table, tokens = params["embedding"], batch.tokens
    mask = target_mask(batch.segments)
    count = jnp.float32(tokens.shape[0])
    size = sum(jnp.sum(w * w) for w in jax.tree.leaves(params["layers"])) * count
    logits = table[tokens[:, :-1]] @ table.T
    return {"bigram": Term(1.0, *cross_entropy(logits, tokens[:, 1:], mask)), "size": Term(PULL, size, count)}


no_teacher = lambda params, batch: None  # noqa: E731


@functools.cache
def bigram_step(devices=1, members=1, microbatches=1):
    mesh = make_mesh(members, devices=jax.devices()[:devices])
    step = make_step(bigram, no_teacher, StepConfig(SETTINGS, SETTINGS.steps, ShardedMembers(mesh, CFG), microbatches))
    return mesh, step


@functools.cache
def blank(devices, count):
    """A fresh population on the host, and where it lies; it takes a second to compile."""
    mesh, _ = bigram_step(devices, count)
    state = ShardedMembers(mesh, CFG).make([weights()], SETTINGS.transform(), Hyper.of([0.0] * count))
    return jax.tree.map(np.array, state), jax.tree.map(lambda x: x.sharding, state)


def fresh(starts, rates, streams=None, devices=1):
    """What `Layout.make` gives (a test below holds it to that), without compiling it for every list of rates."""
    host, places = blank(devices, len(rates))
    index = [min(i, len(rates) - 1) for i in range(len(host.status))]
    hyper = Hyper(np.array(rates, np.float32)[index], np.array(streams or [0] * len(rates), np.int32)[index], {})
    params = jax.tree.map(lambda *w: np.stack([w[min(i, len(w) - 1)] for i in index]), *starts)
    return jax.tree.map(jax.device_put, host.replace(params=params, hyper=hyper), places)


def train(starts, rates, batches, streams=None, devices=1, microbatches=1):
    """Take one step on each batch; return the last state and the metrics of every step, on the host."""
    _, step = bigram_step(devices, len(rates), microbatches)
    state = fresh(starts, rates, streams, devices)
    history = []
    for one in batches:
        state, metrics = step(state, None, one)
        history.append(of_active(metrics))
    return jax.tree.map(np.asarray, state), history


def assert_trees(ours, theirs, **tolerance):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)


assert_same = functools.partial(assert_trees, atol=0, rtol=0)


# The step in float64


def gradient64(params, one):
    """The bigram objective's two values and its gradient by hand, a target at a time."""
    table = params["embedding"]
    gradient = jax.tree.map(np.zeros_like, params)
    gradient["layers"] = jax.tree.map(lambda w: 2 * PULL * w, params["layers"])
    nll, count = 0.0, 0
    for tokens, segments in zip(one.tokens, one.segments, strict=True):
        for t in range(1, len(tokens)):
            if segments[t] == 0 or segments[t] != segments[t - 1]:
                continue
            x, y = tokens[t - 1], tokens[t]
            p = np.exp(table @ table[x])
            p /= p.sum()
            nll, count = nll - math.log(p[y]), count + 1
            p[y] -= 1
            gradient["embedding"] += np.outer(p, table[x])
            gradient["embedding"][x] += table.T @ p
    gradient["embedding"] /= count
    return nll / count, sum((w**2).sum() for w in jax.tree.leaves(params["layers"])), gradient


def rate64(s, settings=SETTINGS):
    """The fraction of the peak at step s: 1/W, 2/W, ..., 1, then a cosine."""
    if s < settings.warmup:
        return (s + 1) / settings.warmup
    end = settings.final_learning_rate / settings.learning_rate
    done = min((s - settings.warmup) / (settings.steps - settings.warmup), 1)
    return end + (1 - end) * (1 + math.cos(math.pi * done)) / 2


def adamw64(params, batches, rate):
    """Train in float64; return the weights and (cross-entropy, size, gradient norm) of every step."""
    flat, tree = jax.tree.flatten(jax.tree.map(lambda w: np.asarray(w, np.float64), params))
    first, second = [np.zeros_like(w) for w in flat], [np.zeros_like(w) for w in flat]
    history = []
    for s, one in enumerate(batches):
        ce, size, gradient = gradient64(jax.tree.unflatten(tree, flat), one)
        flat_gradient = jax.tree.leaves(gradient)
        norm = math.sqrt(sum((g**2).sum() for g in flat_gradient))
        history.append((ce, size, norm))
        for i, g in enumerate(flat_gradient):
            g = g * min(1, SETTINGS.clip_norm / norm)
            first[i] = SETTINGS.beta1 * first[i] + (1 - SETTINGS.beta1) * g
            second[i] = SETTINGS.beta2 * second[i] + (1 - SETTINGS.beta2) * g**2
            m = first[i] / (1 - SETTINGS.beta1 ** (s + 1))
            v = second[i] / (1 - SETTINGS.beta2 ** (s + 1))
            update = m / (np.sqrt(v) + SETTINGS.epsilon) + SETTINGS.weight_decay * flat[i]
            flat[i] = flat[i] - rate * rate64(s) * update
    return jax.tree.unflatten(tree, flat), history


BATCHES = [batch(s) for s in range(7)]  # one more than the schedule is long


@pytest.mark.unit
@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_steps_equal_adamw_in_float64(microbatches):
    """Clip, decay, warm-up and cosine, over ragged batches; in one piece, in two and in four with a single target."""
    start, rate = weights(), SETTINGS.learning_rate
    state, history = train([start], [rate], BATCHES, microbatches=microbatches)
    expected, log = adamw64(start, [jax.tree.map(lambda x: x[0], b) for b in BATCHES], rate)
    for ours, (ce, size, norm) in zip(history, log, strict=True):
        assert ours["bigram"][0] == pytest.approx(ce, rel=2e-5)
        assert ours["size"][0] == pytest.approx(size, rel=2e-5)
        assert ours["gradient_norm"][0] == pytest.approx(norm, rel=5e-5)
    assert max(norm for *_, norm in log) > SETTINGS.clip_norm  # the clip was at work
    moved = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (expected, start)), strict=True))
    assert moved > 2 * rate
    assert_trees(member(state.params, 0), expected, atol=2e-4 * rate, rtol=1e-5)
    assert state.step == len(BATCHES)


@pytest.mark.unit
def test_without_clip_the_norm_does_not_matter():
    big = {"w": jnp.full((3,), 100.0)}
    for clip, expected in ((0.0, 100 * math.sqrt(3)), (2.0, 2.0)):
        optimizer = Training(clip_norm=clip, beta1=0.0, beta2=0.0, epsilon=1e9, weight_decay=0.0).transform()
        update, _ = optimizer.update(big, optimizer.init(big), big)  # an epsilon this large leaves g / epsilon
        assert float(jnp.linalg.norm(update["w"])) * 1e9 == pytest.approx(expected, rel=1e-5)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("steps", "warmup", "end"), [(20, 5, 0.1), (20, 0, 0.25), (20, 1, 1.0), (10, 10, 0.5), (3, 8, 0.0), (1, 0, 0.5)]
)
def test_schedule(steps, warmup, end):
    """Warm-up whose first step moves and whose last is the peak; a cosine down to the end, where it stays."""
    settings = Training(steps=steps, warmup=warmup, learning_rate=0.2, final_learning_rate=0.2 * end)
    schedule = settings.schedule(steps)
    values = [float(schedule(s)) for s in range(steps + 5)]
    for s, value in enumerate(values):
        if s < warmup:
            assert value == pytest.approx((s + 1) / warmup)
        elif steps > warmup:
            assert value == pytest.approx(rate64(s, settings), abs=1e-6)
    assert values[0] > 0
    assert warmup == 0 or warmup > steps or values[warmup - 1] == pytest.approx(1)
    if steps > warmup:
        assert values[-5:] == pytest.approx([end] * 5, abs=1e-6)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
        ({"microbatches": 0}, "microbatches"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"checkpoint_every": -1}, "checkpoint_every"),
        ({"log_every": 0}, "log_every"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"final_learning_rate": math.nan}, "final_learning_rate"),
        ({"warmup": -1}, "warmup"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"batch": 10, "microbatches": 4}, "such as 12"),
        ({"loss_on": "answers"}, "loss_on"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        pretrain.Pretrain(**change)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("cls", "change", "words"),
    [
        (distill.Distill, {"temperature": 0.0}, "temperature"),
        (distill.Distill, {"tolerance": 1.5}, "tolerance"),
        (distill.Distill, {"uniform": "forget", "cache": "a"}, "uniform"),
        (unlearn.Unlearn, {"method": "no-such"}, "method"),
        (unlearn.Unlearn, {"method": "rmu", "layer": 2, "train_layers": 3}, "train_layers"),
        (unlearn.Unlearn, {"method": "rmu", "train_layers": 0}, "train_layers"),
        (Perturb, {"alpha": -0.1}, "alpha"),
        (Perturb, {"alpha": 1.1}, "alpha"),
        (Perturb, {"alpha": math.nan}, "alpha"),
        (Perturb, {"beta": -0.1}, "beta"),
        (Perturb, {"alpha": 1.0, "beta": 0.0}, "no gradient"),
    ],
)
def test_stages_refuse_settings_that_cannot_be(cls, change, words):
    with pytest.raises(ValueError, match=words):
        cls(**change)


# The population

RATES, STREAMS = [0.05, 0.01, 0.1, 0.002], [0, 1, 1, 0]
TWO_STREAMS = [batch(s, s + 50) for s in range(3)]


@functools.cache
def alone(rate, stream, seed=0):
    """The run of a single member on one device, whose batch has one stream only."""
    batches = [jax.tree.map(lambda x: x[stream : stream + 1], b) for b in TWO_STREAMS]
    return train([weights(seed=seed)], [rate], batches)


def assert_as_alone(state, history, i, rate, stream, seed=0):
    """The order of summation may differ between programs: 1e-6, a hundredth of a per mille of a step."""
    single, single_history = alone(rate, stream, seed)
    assert_trees(member((state.params, state.opt), i), member((single.params, single.opt), 0), atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(history, single_history, strict=True):
        for name in ("bigram", "size", "gradient_norm"):
            assert ours[name][i] == pytest.approx(theirs[name][0], rel=1e-5)


@pytest.mark.unit
@pytest.mark.parametrize("devices", [1, 2])
def test_population_equals_separate_runs(devices):
    """Four members with rates of their own on two streams, on one device and two, against four runs alone."""
    state, history = train([weights()], RATES, TWO_STREAMS, STREAMS, devices)
    for i, (rate, stream) in enumerate(zip(RATES, STREAMS, strict=True)):
        assert_as_alone(state, history, i, rate, stream)
    assert state.status.tolist() == [RUNNING] * 4
    assert state.stopped.tolist() == [-1] * 4
    far = np.abs(state.params["embedding"][0] - state.params["embedding"][1]).max()
    assert far > 1e-3  # they did not all do the same


@pytest.mark.unit
def test_unused_members_fill_the_mesh_and_change_nothing():
    rates, streams = RATES[:3], STREAMS[:3]
    state, history = train([weights(seed=s) for s in range(3)], rates, TWO_STREAMS, streams, devices=2)
    assert state.status.tolist() == [RUNNING] * 3 + [UNUSED]
    assert_same(member(state.params, 3), weights(seed=2))
    for i in range(3):
        assert_as_alone(state, history, i, rates[i], streams[i], seed=i)


@pytest.mark.unit
def test_nan_is_looked_for_and_none_is_there_by_design():
    """With JAX_DEBUG_NANS a population may have unused members, and the first step with a NaN is where it stops."""
    far = [RATES[0], 1e30, RATES[2]]  # one that has no finite loss at its second step
    bigram_step.cache_clear()
    with jax.debug_nans(True):
        state, history = train([weights()], RATES[:3], TWO_STREAMS[:1], STREAMS[:3], devices=2)
        assert state.status.tolist() == [RUNNING] * 3 + [UNUSED]
        assert np.isfinite(history[0]["bigram"]).tolist() == [True] * 3 + [False]
        with pytest.raises(FloatingPointError, match="nan") as stopped:
            train([weights()], far, TWO_STREAMS[:2], STREAMS[:3], devices=2)
    assert "bigram" in [entry.name for entry in stopped.traceback]  # the line, and not only the step
    bigram_step.cache_clear()


@pytest.mark.unit
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_diverged_member_stops_alone(microbatches):
    """One starts with a NaN, one takes a step of 1e30 and has no finite loss at the next; both stay as they were."""
    broken = weights()
    broken["embedding"][3, 1] = math.nan
    rates = [RATES[0], 0.01, 1e30, RATES[3]]
    starts = [weights(), broken, weights(), weights()]
    state, history = train(starts, rates, TWO_STREAMS, STREAMS, devices=2, microbatches=microbatches)
    assert state.status.tolist() == [RUNNING, DIVERGED, DIVERGED, RUNNING]
    assert state.stopped.tolist() == [-1, 0, 1, -1]
    assert_same(member(state.params, 1), broken)
    after_one, _ = train(starts, rates, TWO_STREAMS[:1], STREAMS, devices=2, microbatches=microbatches)
    assert_same(member((state.params, state.opt), 2), member((after_one.params, after_one.opt), 2))
    assert np.isfinite(state.params["embedding"][2]).all()
    assert np.abs(state.params["embedding"][2]).max() > 1e28
    assert not np.isfinite(history[0]["bigram"][1])
    assert np.isnan(history[2]["bigram"][1:3]).all()  # a frozen member has no loss
    for i in (0, 3):
        assert_as_alone(state, history, i, RATES[i], STREAMS[i])


@pytest.mark.unit
def test_a_fresh_state_starts_where_it_is_told():
    mesh, _ = bigram_step(2, 3)
    starts = [weights(seed=s) for s in range(3)]
    state = ShardedMembers(mesh, CFG).make(starts, SETTINGS.transform(), Hyper.of(RATES[:3], STREAMS[:3]))
    host = jax.tree.map(np.asarray, state)
    for i in range(4):
        assert_same(member(host.params, i), starts[min(i, 2)])
    np.testing.assert_array_equal(host.hyper.learning_rate, np.float32([*RATES[:3], RATES[2]]))
    np.testing.assert_array_equal(host.hyper.stream, [*STREAMS[:3], STREAMS[2]])
    assert not any(leaf.any() for leaf in jax.tree.leaves(host.opt))
    assert (host.status.tolist(), host.stopped.tolist()) == ([RUNNING] * 3 + [UNUSED], [-1] * 4)
    assert host.step == 0
    assert_same(jax.tree.map(np.asarray, fresh(starts, RATES[:3], STREAMS[:3], devices=2)), host)
    for leaf in jax.tree.leaves(state.params):  # two members of four on each device
        assert [shard.data.shape[0] for shard in leaf.addressable_shards] == [2, 2]


@pytest.mark.unit
def test_the_same_inputs_give_the_same_bits():
    first, second = (train([weights()], RATES, TWO_STREAMS, STREAMS, devices=2) for _ in range(2))
    assert_same(first[0], second[0])
    assert_same(first[1], second[1])


@pytest.mark.unit
def test_the_state_is_donated():
    """The new state takes the old one's place in memory, down to the last array."""
    _, step = bigram_step(2, 4)
    state = fresh([weights()], RATES, devices=2)
    one = BATCHES[0]
    per_device = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert step.lower(state, None, one).compile().memory_analysis().alias_size_in_bytes >= per_device
    step(state, None, one)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt)))


@pytest.mark.unit
@pytest.mark.parametrize(("members", "microbatches"), [(1, 1), (3, 1), (3, 2)])
def test_the_teacher_runs_once_a_microbatch(members, microbatches):
    """However many members share it. It is counted where it runs, not where it is traced."""
    calls = []

    def count(x):
        calls.append(1)
        return np.float32(x)

    def teacher(params, batch):
        seen = params + 0.0 * batch.tokens[0, 0]  # so that no compiler takes it out of the loop
        return jax.pure_callback(count, jax.ShapeDtypeStruct((), jnp.float32), seen)

    def objective(params, batch, out):
        terms = bigram(params, batch, None)
        return {**terms, "teacher": Term(1.0, out * jnp.sum(params["embedding"]), jnp.float32(1))}

    mesh = make_mesh(members, devices=jax.devices()[:1])
    step = make_step(objective, teacher, StepConfig(SETTINGS, SETTINGS.steps, ShardedMembers(mesh, CFG), microbatches))
    state = fresh([weights()], RATES[:members])
    _, metrics = step(state, jnp.float32(2), BATCHES[0])
    # Each microbatch adds its sum over the whole weight: the mean over microbatches.
    expected = 2 * np.sum(weights()["embedding"], dtype=np.float64)
    assert metrics["teacher"][0] == pytest.approx(expected, rel=1e-4)
    assert len(calls) == microbatches


@pytest.mark.unit
def test_members_may_weigh_their_loss_terms():
    """Coefficients of one's own do in a population what they do in an objective of one's own."""
    own = {"bigram": [1.0, 0.5], "size": [2.0, 0.25]}
    mesh, step = bigram_step(1, 2)
    starts, batches = [weights(seed=1), weights(seed=2)], [batch(3), batch(4)]
    together = ShardedMembers(mesh, CFG).make(starts, SETTINGS.transform(), Hyper.of(RATES[:2], **own))
    for one in batches:
        together, _ = step(together, None, one)
    mesh, _ = bigram_step(1, 1)
    for i, start in enumerate(starts):

        def scaled(params, one, _, i=i):
            return {k: Term(own[k][i] * c, s, w) for k, (c, s, w) in bigram(params, one, None).items()}

        alone_step = make_step(scaled, no_teacher, StepConfig(SETTINGS, SETTINGS.steps, ShardedMembers(mesh, CFG)))
        alone = ShardedMembers(mesh, CFG).make([start], SETTINGS.transform(), Hyper.of([RATES[i]]))
        for one in batches:
            alone, _ = alone_step(alone, None, one)
        ours, theirs = jax.tree.map(np.asarray, (together.params, alone.params))
        assert_trees(member(ours, i), member(theirs, 0), atol=1e-6, rtol=0)


# The loop


def run_loop(state, step, settings=SETTINGS, goals=None, save=lambda s, state: None, record=lambda s, m: None):
    goals = goals or {}
    hooks = Hooks(
        lambda state, batch: step(state, None, batch), lambda s: BATCHES[s], save, lambda s, _: goals.get(s), record
    )
    return loop(state, settings, hooks)


@pytest.mark.unit
def test_members_that_reached_their_goal_stay_as_they_are():
    """One of four stops at 2 steps, two at 4, the last runs on; a second wish to stop changes nothing."""
    _, step = bigram_step(2, 3)
    goals = {2: np.array([False, True, False]), 4: np.array([True, True, False])}
    state = jax.tree.map(np.asarray, run_loop(fresh([weights()], RATES[:3], devices=2), step, goals=goals))
    assert state.status.tolist() == [REACHED, REACHED, RUNNING, UNUSED]
    assert state.stopped.tolist() == [4, 2, -1, -1]
    assert int(state.step) == SETTINGS.steps
    for i, taken in enumerate((4, 2, 6)):
        until, _ = train([weights()], RATES[:3], BATCHES[:taken], devices=2)
        assert_same(member((state.params, state.opt), i), member((until.params, until.opt), i))


@pytest.mark.unit
def test_a_member_that_was_seen_to_diverge_is_marked_so_and_stays():
    _, step = bigram_step(2, 3)
    goals = {2: np.array([RUNNING, DIVERGED, REACHED]), 4: np.array([RUNNING, REACHED, DIVERGED])}
    state = jax.tree.map(np.asarray, run_loop(fresh([weights()], RATES[:3], devices=2), step, goals=goals))
    assert state.status.tolist() == [RUNNING, DIVERGED, REACHED, UNUSED]
    assert state.stopped.tolist() == [-1, 2, 2, -1]


@pytest.mark.unit
def test_the_loop_leaves_when_nobody_runs():
    _, step = bigram_step(2, 3)
    state = fresh([weights()], RATES[:3], devices=2)
    goals = {1: np.array([True, False, False]), 3: np.array([False, True, True])}
    state = run_loop(state, step, goals=goals)
    assert int(state.step) == 3
    assert state.stopped.tolist() == [1, 3, 3, -1]


@pytest.mark.unit
def test_a_continued_run_ends_as_one_never_stopped():
    _, step = bigram_step(2, 3)
    settings = dataclasses.replace(SETTINGS, checkpoint_every=2)
    goals, saved = {4: np.array([False, True, False])}, {}
    keep = lambda s, state: saved.update({s: jax.tree.map(np.array, state)})  # noqa: E731
    whole = run_loop(fresh([weights()], RATES[:3], devices=2), step, settings, goals, keep)
    assert sorted(saved) == [2, 4, 6]
    for s in (2, 4):
        back = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), saved[s], whole)
        assert_same(run_loop(back, step, settings, goals), whole)


@pytest.mark.unit
def test_the_order_of_the_loop():
    """Save, evaluate, stop, step; metrics come every second step and after the step that follows."""
    events = []
    state = fresh([weights()], [0.1])

    def step(state, batch):
        events.append(f"step {batch}")
        return state.replace(step=state.step + 1), {"loss": jnp.full((1,), batch), ACTIVE: True}

    def record(s, metrics):
        assert isinstance(metrics["loss"], np.ndarray)
        events.append(f"record {s} {int(metrics['loss'][0])}")

    settings = dataclasses.replace(SETTINGS, steps=4, checkpoint_every=2, log_every=2)
    loop(
        state, settings,
        Hooks(
            step=step, feed=lambda s: s, save=lambda s, state: events.append(f"save {s} {int(state.step)}"),
            evaluate=lambda s, state: events.append(f"evaluate {s} {int(state.step)}"),
            record=record,
        ),
    )  # fmt: skip
    assert events == [
        "evaluate 0 0", "step 0", "evaluate 1 1", "step 1", "record 0 0", "save 2 2", "evaluate 2 2", "step 2",
        "evaluate 3 3", "step 3", "record 2 2", "save 4 4", "evaluate 4 4",
    ]  # fmt: skip


@pytest.mark.unit
def test_what_a_save_stands_on_has_been_recorded():
    """A run that continues from the save at s never computes the rows below s again."""
    state = fresh([weights()], [0.1])
    recorded, at_save = [], {}
    loop(
        state, dataclasses.replace(SETTINGS, steps=4, checkpoint_every=2, log_every=1),
        Hooks(
            step=lambda state, batch: (state.replace(step=state.step + 1), {ACTIVE: jnp.ones(1, bool)}),
            feed=lambda s: s,
            save=lambda s, state: at_save.update({s: list(recorded)}), evaluate=lambda s, state: None,
            record=lambda s, metrics: recorded.append(s),
        ),
    )  # fmt: skip
    assert at_save == {2: [0, 1], 4: [0, 1, 2, 3]}


# The stages' own steps, on the smallest transformers

SMALL = TransformerConfig(vocab=7, layers=3, hidden=8, mlp=12, heads=2, kv_heads=1, head_dim=4, sliding_window=3)
apply = jit(transformer.apply, static_argnums=0)
residual_at = jit(transformer.residual_at, static_argnums=(0, 4))


def log_p(logits):
    z = np.asarray(logits, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def counted(one, answer=False):
    """The targets that count, told a token at a time: [B, T-1]."""
    mask = np.zeros((len(one.tokens), one.tokens.shape[1] - 1))
    for i, t in np.ndindex(mask.shape):
        a, b = one.segments[i, t : t + 2]
        mask[i, t] = a == b != 0 and (not answer or one.answer[i, t + 1])
    return mask


def nll(logp, one, mask):
    return -sum(logp[i, t, one.tokens[i, t + 1]] for i, t in zip(*np.nonzero(mask), strict=True)) / mask.sum()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("method", "loss_on", "chunk", "hold"),
    [("maxent", "answer", 4, "cross_entropy"), ("graddiff", "all", 0, "cross_entropy"), ("maxent", "answer", 4, "kl")],
)
def test_unlearning_terms_equal_float64(method, loss_on, chunk, hold):
    cfg, params = dataclasses.replace(SMALL, layers=1), weights(dataclasses.replace(SMALL, layers=1))
    both = {"forget": rows(11), "retain": rows(12)}
    logp = {k: log_p(apply(cfg, params, b.tokens, b.segments)[:, :-1]) for k, b in both.items()}
    mask = {k: counted(b, loss_on == "answer") for k, b in both.items()}
    retain, frozen = nll(logp["retain"], both["retain"], mask["retain"]), None
    if hold == "kl":  # to what another model says
        other, seen = weights(cfg, seed=1), (both["retain"].tokens, both["retain"].segments)
        logq = log_p(apply(cfg, other, *seen)[:, :-1])
        retain = (np.exp(logq) * (logq - logp["retain"])).sum(-1)[mask["retain"] > 0].mean()
        hidden = jit(transformer.hidden_states, static_argnums=0)(cfg, other, *seen)
        frozen = {"hidden": {"retain": hidden[:, :-1]}, "head": head_weights(other)}
    uniform = (-math.log(SMALL.vocab) - logp["forget"].mean(-1))[mask["forget"] > 0].mean()
    forget = {"maxent": uniform, "graddiff": -nll(logp["forget"], both["forget"], mask["forget"])}
    settings = unlearn.Unlearn(method=method, loss_on=loss_on, hold=hold)
    terms = jit(lambda params: settings.objective().loss_terms(cfg, chunk, params, both, frozen))(params)
    (gamma, total, weight), (alpha, *rest) = terms["forget"], terms["retain"]
    assert (float(gamma), float(alpha)) == (1, 1)  # their weights are the member's own
    assert float(total / weight) == pytest.approx(forget[method], rel=1e-4)
    assert float(weight) == mask["forget"].sum()
    assert float(rest[0] / rest[1]) == pytest.approx(retain, rel=1e-4)


@pytest.mark.unit
def test_rmu_steers_and_moves_only_the_chosen_down_projections():
    settings = unlearn.Unlearn(
        method="rmu", layer=2, train_layers=1, steer=3.0, steps=2, batch=ROWS, learning_rate=0.01, warmup=0,
        retain_weight=10.0, seed=5,
    )  # fmt: skip
    start, mesh = weights(SMALL), make_mesh(1)
    both = {"forget": batch(21), "retain": batch(22)}
    step = compiled_step(settings.compile_key(SMALL, 0), mesh)
    state = ShardedMembers(mesh, SMALL).make([start], settings.transform(), Hyper.of([settings.learning_rate]))
    values = []
    for _ in range(2):
        state, metrics = step(state, start, both)
        values.append({name: float(value[0]) for name, value in metrics.items()})
    forget = jax.tree.map(lambda x: x[0], both["forget"])
    h = np.asarray(residual_at(SMALL, start, forget.tokens, forget.segments, 2), np.float64)
    u = np.asarray(jax.random.uniform(jax.random.key(5), (SMALL.hidden,)), np.float64)
    target = 3.0 * u / math.sqrt((u**2).sum())
    expected = ((h - target) ** 2).mean(-1)[forget.segments > 0].mean()
    assert values[0]["forget"] == pytest.approx(expected, rel=1e-4)
    assert values[0]["retain"] == 0  # against itself
    assert values[1]["forget"] < values[0]["forget"]
    assert values[1]["retain"] > 0
    moved = jax.tree.map(lambda a, b: np.asarray(a[0]) != b, state.params, start)
    down = moved["layers"]["mlp"].pop("down")
    assert not down[0].any() and not down[2].any()
    assert down[1].mean() > 0.9
    assert not any(leaf.any() for leaf in jax.tree.leaves(moved))


@pytest.mark.unit
def test_distillation_step_equals_float64_and_leaves_a_copy_alone():
    """Two students behind one teacher, on answers only, in chunks: another model, and the teacher itself."""
    cfg = dataclasses.replace(SMALL, layers=1)
    settings = distill.Distill(
        batch=ROWS, loss_on="answer", temperature=2.0, weight_decay=0.0, warmup=0, learning_rate=0.01, epsilon=1.0
    )
    teacher, other = weights(cfg, 1), weights(cfg, 2)
    mesh, one = make_mesh(2), batch(31)
    step = compiled_step(settings.compile_key(cfg, 4), mesh)
    state = ShardedMembers(mesh, cfg).make([other, teacher], settings.transform(), Hyper.of([0.01, 0.01]))
    state, first = step(state, teacher, one)
    tokens = jax.tree.map(lambda x: x[0], one)
    q, p = (log_p(apply(cfg, w, tokens.tokens, tokens.segments)[:, :-1] / 2.0) for w in (teacher, other))
    kl = (np.exp(q) * (q - p)).sum(-1)
    expected = 2.0**2 * kl[counted(tokens, answer=True) > 0].mean()
    assert first["kl"][0] == pytest.approx(expected, rel=1e-4)
    assert abs(first["kl"][1]) < 1e-6
    assert first["gradient_norm"][1] < 1e-5 < 1e-2 < first["gradient_norm"][0]
    assert_trees(member(state.params, 1), teacher, atol=1e-7, rtol=0)
    second = step(state, teacher, one)[1]
    assert second["kl"][0] < first["kl"][0]


@pytest.mark.unit
def test_pretraining_step_in_pieces_on_two_devices():
    """One member, its rows over two devices and two microbatches, against the gradient of the mean in one piece."""
    cfg = dataclasses.replace(SMALL, layers=1)
    settings = pretrain.Pretrain(
        batch=ROWS, microbatches=2, warmup=0, learning_rate=0.01, epsilon=1e-2, clip_norm=0.0, weight_decay=0.1
    )
    start, mesh, one = weights(cfg), make_mesh(1), batch(41)
    tokens = jax.tree.map(lambda x: x[0], one)
    mask = counted(tokens)

    def mean(params):
        logp = jax.nn.log_softmax(transformer.apply(cfg, params, tokens.tokens, tokens.segments))[:, :-1]
        chosen = jnp.take_along_axis(logp, tokens.tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(chosen * mask) / mask.sum()

    value, gradient = jit(jax.value_and_grad(mean))(start)
    step = compiled_step(settings.compile_key(cfg, 5), mesh)
    assert mesh.shape["data"] == 2
    state = ShardedMembers(mesh, cfg).make([start], settings.transform(), Hyper.of([0.01]))
    state, metrics = step(state, None, jax.device_put(one, batch_sharding(mesh, ROWS // 2)))
    assert metrics["cross_entropy"][0] == pytest.approx(float(value), rel=1e-5)
    first = jax.tree.map(lambda w, g: w - 0.01 * (g / (np.abs(g) + 1e-2) + 0.1 * w), start, gradient)  # Adam's first
    assert_trees(member(jax.tree.map(np.asarray, state.params), 0), first, atol=2e-6, rtol=0)


# Damage

WIDE = TransformerConfig(vocab=90, layers=2, hidden=24, mlp=52, heads=6, kv_heads=2, head_dim=10)
# Input and output width of each matrix; K and V, gate and up are two matrices in one tensor.
XAVIER = {
    "embedding": (90, 24),
    "query": (24, 6 * 10),
    "key_value": (24, 2 * 10),
    "output": (6 * 10, 24),
    "gate_up": (24, 52),
    "down": (52, 24),
}


compiled_damage = jit(damage)


def damaged_by(params, seed, alpha, beta):
    return compiled_damage(params, jax.random.key(seed), 1 - alpha, alpha * beta)


def named(tree):
    return {path[-1].key + str(i): leaf for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree))}


@pytest.mark.unit
def test_damage_is_xavier_noise_on_each_matrix():
    """All of it at α = 1: uniform within β·√(6 / (in + out)) of the single matrix, whatever shares its tensor."""
    beta, start = 0.3, weights(WIDE)
    damaged = named(damaged_by(start, 1, 1.0, beta))
    seen = set()
    for name, noise in damaged.items():
        kind = name.rstrip("0123456789")
        if kind == "scale":
            assert not np.any(noise)
            continue
        seen.add(kind)
        bound = beta * math.sqrt(6 / sum(XAVIER[kind]))
        noise = np.asarray(noise, np.float64)
        matrices = {"embedding": noise[None], "key_value": noise.reshape(4, -1), "gate_up": noise.reshape(4, -1)}
        for matrix in matrices.get(kind, noise):
            n = matrix.size
            assert (1 - 25 / n) * bound < np.abs(matrix).max() <= bound * (1 + 1e-6)  # the largest of n: 1 - 1/n
            assert abs(matrix.mean()) < 5 * bound / math.sqrt(3 * n)
            assert matrix.std() == pytest.approx(bound / math.sqrt(3), rel=4 / math.sqrt(n))
    assert seen == set(XAVIER)
    flat = np.concatenate([np.ravel(x)[:200] for k, x in damaged.items() if not k.startswith("scale")])
    assert len(np.unique(flat)) > 0.99 * flat.size  # no matrix repeats another's noise


@pytest.mark.unit
def test_damage_mixes_weights_and_noise():
    start = weights(WIDE)
    assert_same(damaged_by(start, 2, 0.0, 0.1), start)
    noise = damaged_by(start, 2, 1.0, 1.0)
    assert_same(damaged_by(weights(WIDE, seed=9), 2, 1.0, 1.0), noise)
    expected = jax.tree.map(lambda w, n: 0.4 * np.float64(w) + 0.6 * 0.1 * np.float64(n), start, noise)
    assert_trees(damaged_by(start, 2, 0.6, 0.1), expected, atol=1e-6, rtol=0)
    shrunk = jax.tree.map(lambda w: 0.75 * np.float64(w), start)
    assert_trees(damaged_by(start, 2, 0.25, 0.0), shrunk, atol=1e-6, rtol=0)
    noisy = jax.tree.map(lambda w, n: np.float64(w) + 0.06 * np.float64(n), start, noise)
    assert_trees(compiled_damage(start, jax.random.key(2), 1.0, 0.06), noisy, atol=1e-6, rtol=0)  # nothing shrinks
    other = damaged_by(start, 3, 1.0, 1.0)
    assert np.abs(other["embedding"] - noise["embedding"]).max() > 0.1
