"""Decoding against a loop without a cache, exact match against teacher forcing, the worst case by hand-made tables."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distill_jax.config import ConfigError
from distill_jax.data.records import EVALUATION
from distill_jax.evals.exact_match import ExactMatch, Prompts, accuracies, make_evaluator, prompts_by_form
from distill_jax.evals.measure import all_finite
from distill_jax.evals.scale import ACCURACY
from distill_jax.models import transformer
from distill_jax.models.decoding import PaddedPrompts, greedy
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.sharding.mesh import make_mesh
from distill_jax.statistics.attack_rows import FACTS, KEPT, SCORES, Attacker, AttackRow, attackers
from distill_jax.statistics.attack_rows import attack_rows as read_metrics
from distill_jax.statistics.robustness import attack_table, curves, read_attack
from distill_jax.statistics.student_t import mean_interval

# A window of 3, so that left padding counted as a token would push real ones out of sight.
CFG = TransformerConfig(
    vocab=13, layers=2, hidden=8, mlp=12, heads=2, kv_heads=1, head_dim=4, query_scale=4.0, sliding_window=3
)
WIDTH, NEW = 6, 4
LENGTHS = [6, 1, 3, 2, 5, 4, 6]
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """The programs run for microseconds and compile for seconds: leave LLVM's optimiser out."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def weights(seed):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: transformer.init(CFG, jax.random.key(0)))
    return jax.tree.map(lambda x: rng.normal(0, 0.7, x.shape).astype(np.float32), shapes)


@functools.cache
def prompts():
    rng = np.random.default_rng(7)
    return [rng.integers(1, CFG.vocab, n).tolist() for n in LENGTHS]


def padded(rows, width=WIDTH):
    return np.array([[0] * (width - len(row)) + row for row in rows], np.int32)


@functools.cache
def forward():
    return jit(functools.partial(transformer.apply, CFG))


def logits_after(params, ids):
    """The logits after a sequence, from a full forward pass over it alone (with idle padding on the right)."""
    tokens = np.zeros((1, WIDTH + NEW), np.int32)
    tokens[0, : len(ids)] = ids
    segments = (np.arange(WIDTH + NEW) < len(ids)).astype(np.int32)[None]
    return np.asarray(forward()(params, tokens, segments))[0, : len(ids)]


@functools.cache
def naive(seed):
    """Greedy continuations of every prompt, the whole sequence computed again for each new token."""
    out = []
    for prompt in prompts():
        ids = list(prompt)
        for _ in range(NEW):
            ids.append(int(logits_after(weights(seed), ids)[-1].argmax()))
        out.append(ids[len(prompt) :])
    return out


@pytest.mark.unit
@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_equals_a_loop_without_cache(seed):
    expected = naive(seed)
    assert len({tuple(row) for row in expected}) >= 5  # the model does not say the same to everybody
    decode = jit(functools.partial(greedy, CFG), static_argnums=2)
    lengths = np.array(LENGTHS)
    out = decode(weights(seed), PaddedPrompts(padded(prompts()), lengths), NEW)
    assert out.tolist() == expected
    if seed == 0:
        one = decode(weights(seed), PaddedPrompts(padded(prompts()), lengths), 1)
        assert one.tolist() == [row[:1] for row in expected]
        wide = decode(weights(seed), PaddedPrompts(padded(prompts(), WIDTH + 3), lengths), NEW)
        assert wide.tolist() == expected


@functools.cache
def answer_sets():
    """Two forms: right answers of model 0, of several lengths, some with a token changed."""
    answers = np.full((len(LENGTHS), NEW), -1, np.int32)
    for i, row in enumerate(naive(0)):
        n = 1 + i % NEW
        answers[i, :n] = row[:n]
    answers[2, 0] = answers[2, 0] % (CFG.vocab - 1) + 1
    answers[3, 3] = (answers[3, 3] + 1) % CFG.vocab
    answers[5, 1] = (answers[5, 1] + 5) % CFG.vocab
    lengths = np.array(LENGTHS, np.int32)
    return [
        Prompts(padded(prompts()[:4]), lengths[:4], answers[:4], ("add/equation/retain",) * 4),
        Prompts(padded(prompts()[4:]), lengths[4:], answers[4:, :3], ("mul/word/shown",) * 3),
    ]


def teacher_forced(seed):
    """Whether the argmax at every answer position, given the right tokens before it, is the right token."""
    out = []
    for part in answer_sets():
        for row, length, answer in zip(part.prompts, part.lengths, part.answers, strict=True):
            prompt, right = row[-length:].tolist(), [int(a) for a in answer if a >= 0]
            choices = logits_after(weights(seed), prompt + right)[length - 1 : -1].argmax(-1)
            out.append(choices.tolist() == right)
    return out


@functools.cache
def population():
    return jax.tree.map(lambda *w: np.stack(w), weights(0), weights(1), weights(2))


@functools.cache
def evaluated(batch, devices):
    mesh = make_mesh(2, devices=jax.devices()[:devices])
    evaluate = make_evaluator(CFG, answer_sets(), mesh, batch)
    two = jax.tree.map(lambda w: w[:2], population())
    return evaluate(two), evaluate


@pytest.mark.unit
def test_exact_match_equals_teacher_forcing():
    """An answer comes out exactly when every one of its tokens is the likeliest after the right ones before it."""
    correct, _ = evaluated(0, 2)
    assert correct[0].tolist() == [1, 1, 0, 0, 1, 0, 1]
    assert correct.tolist() == [teacher_forced(0), teacher_forced(1)]


@pytest.mark.unit
def test_a_member_without_finite_logits_has_no_answers_and_changes_nobody_elses():
    """Not even those of token 0, which argmax takes of NaN; it is known by what it decided itself."""
    zeros = [dataclasses.replace(s, answers=np.where(s.answers < 0, -1, 0).astype(np.int32)) for s in answer_sets()]
    bad = jax.tree.map(lambda *w: np.stack(w), weights(0), weights(1))
    bad["final_norm"]["scale"][1, 3] = np.nan
    for sets in (answer_sets(), zeros):
        evaluate = make_evaluator(CFG, sets, make_mesh(2, devices=jax.devices()[:1]), 0)
        seen = evaluate(bad)
        assert np.isnan(seen[1]).all()
        good = evaluate(jax.tree.map(lambda *w: np.stack(w), weights(0), weights(1)))
        np.testing.assert_array_equal(seen[0], good[0])
        assert np.isfinite(good).all()
    assert all_finite(seen).tolist() == [True, False]


@pytest.mark.unit
def test_an_attack_on_a_model_that_says_nothing_has_no_curve():
    """All rows are null, and of one attacker in another attack from the second step on."""
    none = curves(read_attack(attack_rows(blank=lambda seed, rate, step: True)))
    assert none["forget_heldout"]["worst"] == none["retain_at_worst"] == none["best_learning_rate"] == [None] * 3
    json.dumps(none, allow_nan=False)
    gone = lambda seed, rate, step: rate == 1e-3 and step > 0  # noqa: E731
    for sign in (1, -1):
        scale = dataclasses.replace(ACCURACY, sign=sign)
        later = curves(read_attack(attack_rows(blank=gone), scale), scale=scale)
        dropped = curves(read_attack(attack_rows(drop=gone), scale), scale=scale)
        assert later == dropped and None not in later["best_learning_rate"]


@pytest.mark.unit
@pytest.mark.parametrize("batch", [3, 4])
def test_chunks_and_company_do_not_change_exact_match(batch):
    """Chunks that divide 4 and 3 prompts and that do not; members together, in the other order, and one by one."""
    correct, evaluate = evaluated(batch, 1)
    np.testing.assert_array_equal(correct, evaluated(0, 2)[0])
    swapped = evaluate(jax.tree.map(lambda w: w[1::-1], population()))
    np.testing.assert_array_equal(swapped, correct[::-1])
    if batch == 3:
        single = evaluate(jax.tree.map(lambda w: w[:1], population()))
        np.testing.assert_array_equal(single, correct[:1])


@pytest.mark.unit
def test_prompts_are_gathered_by_form():
    item = lambda op, form, part, p, a, fact: {  # noqa: E731
        "operation": op, "form": form, "part": part, "prompt_ids": p, "answer_ids": a, "fact": fact,
    }  # fmt: skip
    items = [
        item("mul", "word", "shown", [5, 6, 7], [1, 2], "mul:2,6"),
        item("add", "equation", "retain", [3], [4, 9, 2], "add:1,1"),
        item("sub", "word", "heldout", [8], [2], "add:2,3"),
    ]
    equation, word = prompts_by_form(items)
    assert equation.prompts.tolist() == [[3]] and equation.answers.tolist() == [[4, 9, 2]]
    assert equation.groups == ("add/equation/retain",)
    assert word.prompts.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert word.lengths.tolist() == [3, 1] and word.facts == ("mul:2,6", "add:2,3")
    assert word.answers.tolist() == [[1, 2], [2, -1]]
    assert word.groups == ("mul/word/shown", "sub/word/heldout")


@pytest.mark.unit
def test_accuracies_by_hand():
    correct = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 1, 1]], bool)
    groups = ["add/equation/retain", "add/word/retain", "mul/word/shown", "mul/word/heldout", "add/word/retain"]
    wanted = {
        "retain": ["add/equation/retain", "add/word/retain"],
        "retain_word": ["add/word/retain"],
        "forget": ["mul/word/shown", "mul/word/heldout"],
        "nothing": ["div/word/shown"],
    }
    out = accuracies(correct, groups, wanted)
    assert list(out) == list(wanted)
    assert out["retain"] == pytest.approx([1 / 3, 1 / 3])
    assert out["retain_word"] == pytest.approx([0, 1 / 2])
    assert out["forget"] == pytest.approx([1, 1 / 2])
    assert np.isnan(out["nothing"]).all()


# Robustness

STEPS = [0, 5, 20]
RATES = [1e-3, 7e-4, 1e-5]
# Held-out accuracy [seed][rate][step] and retain accuracy of the same members; the worst are in other places.
HELDOUT = [
    [[0.1, 0.5, 0.2], [0.1, 0.3, 0.6], [0.1, 0.1, 0.1]],
    [[0.1, 0.2, 0.3], [0.1, 0.4, 0.2], [0.1, 0.3, 0.7]],
    [[0.1, 0.9, 0.0], [0.1, 0.1, 0.8], [0.1, 0.2, 0.3]],
]
RETAIN = [
    [[0.90, 0.11, 0.12], [0.91, 0.21, 0.22], [0.92, 0.31, 0.32]],
    [[0.93, 0.41, 0.42], [0.94, 0.51, 0.52], [0.95, 0.61, 0.62]],
    [[0.96, 0.71, 0.72], [0.97, 0.81, 0.82], [0.98, 0.91, 0.92]],
]


def attack_rows(drop=lambda seed, rate, step: False, blank=lambda seed, rate, step: False):
    """Rows as `relearn` measures them: by step, and within it by seed and rate."""
    rows = []
    for k, step in enumerate(STEPS):
        for s in range(3):
            for r, rate in enumerate(RATES):
                if drop(s, rate, step):
                    continue
                shown = round(1 - HELDOUT[s][r][k], 3)
                values = {"heldout": HELDOUT[s][r][k], "shown": shown, "retain": RETAIN[s][r][k]}
                if blank(s, rate, step):
                    values = dict.fromkeys(values)
                rows.append(AttackRow(SCORES, step, Attacker(rate, s), {**values, "heldout_word": 0.0}))
    return rows


@pytest.mark.unit
def test_the_metrics_of_an_attack_are_read_as_what_its_members_measured():
    """A training row is no measurement; a rate of seven digits is its own label's; another's row is refused."""
    members = attackers((1e-3, 1.234567e-4), seeds=2)
    at = {"step": 5, "member": "lr=0.000123457,seed=1"}
    metrics = [
        {"kind": "train", **at, "cross_entropy": 1.0},
        {"kind": "evaluation", **at, "heldout": None, "retain": 0.5},
        {"kind": "facts", **at, "correct": [2, 0]},
        {"kind": "kept", "step": 0, "member": "lr=0.001,seed=0", "bits": [1.5]},
    ]
    last = Attacker(1.234567e-4, 1)
    assert read_metrics(metrics, members) == [
        AttackRow(SCORES, 5, last, scores={"heldout": None, "retain": 0.5}),
        AttackRow(FACTS, 5, last, items=[2, 0]),
        AttackRow(KEPT, 0, Attacker(1e-3, 0), items=[1.5]),
    ]
    with pytest.raises(ConfigError, match=r"'lr=0.1,seed=0'.*no attacker.*lr=0.001,seed=0"):
        read_metrics([{"kind": "facts", "step": 0, "member": "lr=0.1,seed=0", "correct": [1]}], members)


@pytest.mark.unit
def test_attack_table():
    steps, rates, table = attack_table(attack_rows(), "heldout")
    assert (steps, rates) == (STEPS, RATES)
    np.testing.assert_array_equal(table, HELDOUT)


@pytest.mark.unit
def test_worst_case_of_a_table_with_known_maxima():
    out = curves(read_attack(attack_rows()))
    assert out["steps"] == STEPS
    maxima = [[0.1, 0.5, 0.6], [0.1, 0.4, 0.7], [0.1, 0.9, 0.8]]
    assert out["forget_heldout"]["by_seed"] == maxima
    assert out["forget_heldout"]["worst"] == pytest.approx([0.1, 0.6, 0.7])
    assert out["forget_shown"]["by_seed"] == [[0.9, 0.9, 0.9], [0.9, 0.8, 0.8], [0.9, 0.9, 1.0]]
    for k in (1, 2):
        ends = stats.ttest_1samp(np.array(maxima)[:, k], 0).confidence_interval(0.95)
        assert out["forget_heldout"]["low"][k] == pytest.approx(max(ends.low, 0), abs=2e-6)
        assert out["forget_heldout"]["high"][k] == pytest.approx(min(ends.high, 1), abs=2e-6)
    # All attackers begin with one model, and nothing says how far another draw of facts would lie from it.
    assert out["forget_heldout"]["low"][0] is out["forget_heldout"]["high"][0] is None
    # Step 0: all are equally bad, the least destructive rate counts. Step 5: rates 0, 1, 0. Step 20: rates 1, 2, 1.
    retain = [(0.92 + 0.95 + 0.98) / 3, (0.11 + 0.51 + 0.71) / 3, (0.22 + 0.62 + 0.82) / 3]
    assert out["retain_at_worst"] == pytest.approx(retain, abs=1e-6)
    assert out["best_learning_rate"] == [1e-5, 1e-3, 7e-4]  # of the mean over seeds
    json.dumps(out, allow_nan=False)


@pytest.mark.unit
def test_a_single_seed_has_no_band():
    out = curves(read_attack([row for row in attack_rows() if row.attacker.seed == 1]))
    assert out["forget_heldout"]["worst"] == [0.1, 0.4, 0.7]
    assert out["forget_heldout"]["low"] == out["forget_heldout"]["high"] == [None] * 3
    assert out["retain_at_worst"] == [0.95, 0.51, 0.62]


@pytest.mark.unit
@pytest.mark.parametrize("how", ["drop", "blank"])
def test_a_diverged_member_stays_where_it_stopped(how):
    """Seed 2's first rate has rows up to step 5 only; at 20 it still counts with what it had, 0.9 and 0.71."""
    gone = lambda seed, rate, step: (seed, rate) == (2, 1e-3) and step > 5  # noqa: E731
    out = curves(read_attack(attack_rows(**{how: gone})))
    assert out["forget_heldout"]["by_seed"][2] == [0.1, 0.9, 0.9]
    assert out["forget_heldout"]["worst"][2] == pytest.approx((0.6 + 0.7 + 0.9) / 3, abs=1e-6)
    assert out["retain_at_worst"][2] == pytest.approx((0.22 + 0.62 + 0.71) / 3, abs=1e-6)


@pytest.mark.property
@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=2), min_size=2, max_size=6),
    level=st.sampled_from([0.5, 0.9, 0.95]),
)
def test_interval_is_the_t_interval(values, level):
    values = np.array(values)
    low, high = mean_interval(values, level)
    for k in range(2):
        column = values[:, k]
        if np.ptp(column) < 1e-6:
            continue
        ends = stats.ttest_1samp(column, 0).confidence_interval(level)
        assert (low[k], high[k]) == (pytest.approx(ends.low, abs=1e-9), pytest.approx(ends.high, abs=1e-9))


@pytest.mark.unit
def test_interval_of_one_value_is_open():
    low, high = mean_interval(np.array([[0.3, 0.4]]))
    assert np.isnan(low).all() and np.isnan(high).all()


@pytest.mark.unit
def test_a_rate_is_chosen_on_every_other_fact_and_measured_on_the_rest():
    """Two rates and four facts by hand: each rate is best on one half, so that the other half is what it is worth."""
    rows = []
    for rate, correct in ((1e-2, [2, 0, 1, 0]), (1e-3, [0, 2, 0, 1])):
        rows.append(AttackRow(FACTS, 0, Attacker(rate, 0), items=correct))
        rows.append(AttackRow(SCORES, 0, Attacker(rate, 0), {"heldout": 0.5, "shown": 0.5, "retain": 10 * rate}))
    attack = read_attack(rows, prompts=[2, 2, 1, 1])
    assert attack.by_fact.tolist() == [[[0.0, 0.0, 0.0, 0.0]]] and attack.by_seed.tolist() == [[0.0]]
    assert attack.retain.tolist() == [[pytest.approx((0.1 + 0.01) / 2)]]
    alone = read_attack([row for row in rows if row.attacker.learning_rate == 0.01], prompts=[2, 2, 1, 1])
    assert alone.by_fact.tolist() == [[[1.0, 0.0, 1.0, 0.0]]] and alone.by_seed.tolist() == [[0.5]]  # 3 of 6 prompts


@pytest.mark.unit
def test_an_attack_begun_before_facts_were_recorded_is_read_without_them():
    rows = attack_rows()
    late = [AttackRow(FACTS, 20, row.attacker, items=[1, 0]) for row in rows if row.step == 20]
    attack = read_attack(rows + late, prompts=[1, 1])
    assert attack.by_fact is None and attack.by_seed[:, 2].tolist() == [0.6, 0.7, 0.8]


@pytest.mark.unit
def test_prompts_are_counted_by_held_out_fact():
    """Five prompts, two of one held-out fact in two forms; against a count by hand."""
    measure = object.__new__(ExactMatch)
    one = np.zeros((1, 1), np.int32)
    sets = {
        "equation": [("mul:1,2", "heldout"), ("mul:3,4", "shown"), ("add:1,1", "retain")],
        "word": [("mul:1,2", "heldout"), ("mul:0,9", "heldout")],
    }
    measure._prompts = [
        Prompts(np.repeat(one, len(of), 0), np.ones(len(of), np.int32), np.repeat(one, len(of), 0),
                tuple(f"mul/{form}/{part}" for _, part in of), tuple(fact for fact, _ in of))
        for form, of in sets.items()
    ]  # fmt: skip
    measure._select = measure._of_parts
    parts = ("retain", "shown", "heldout")
    assert measure.prompts_by_fact(parts) == [1, 2]  # mul:0,9 and mul:1,2
    seen = np.array([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]], bool)
    assert measure.by_fact(seen, parts).tolist() == [[0, 2], [1, 1]]


@pytest.mark.unit
def test_one_that_knows_nothing_gives_the_commonest_answer(tmp_path):
    """Five facts in two wordings, of which two share an answer; without them nobody can guess any."""
    answers = {"a": [4, 5], "b": [4, 5], "c": [6], "d": [7], "e": [8]}
    items = [
        {
            "prompt_ids": [1, form],
            "answer_ids": answer,
            "operation": "x",
            "form": f"{form}",
            "part": "heldout",
            "fact": fact,
        }
        for fact, answer in answers.items()
        for form in (2, 3)
    ]
    for chosen, chance in ((items, 2 / 5), (items[2:], 0.0)):
        (tmp_path / EVALUATION).write_text("".join(json.dumps(item) + "\n" for item in chosen))
        assert ExactMatch(tmp_path).chance_level(("shown", "heldout")) == pytest.approx(chance)
