"""What a card concludes holds other documents and items than those measured: nulls, and measurements one by one."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
from test_lm import BYTES, CFG, PARTS, ROW, documents, weights

from distill_jax.data import packing, records
from distill_jax.evals.bits_per_byte import BitsPerByte
from distill_jax.evals.scale import ACCURACY, BITS_PER_BYTE
from distill_jax.experiment.roles import Role
from distill_jax.io.files import write_sealed
from distill_jax.models import transformer
from distill_jax.reports.attacked import Run
from distill_jax.reports.claims_release import judge_release
from distill_jax.reports.premises import Model
from distill_jax.sharding.mesh import make_mesh
from distill_jax.statistics.attack_rows import FACTS, KEPT, SCORES, Attacker, AttackRow
from distill_jax.statistics.estimates import Scores, band
from distill_jax.statistics.robustness import curves, kept_scores, read_attack

pytestmark = pytest.mark.unit

TEXT = dataclasses.replace(BITS_PER_BYTE, chance_level=4.0)
DOCUMENTS, REPEATS = 12, 300


def text_bytes(part: str) -> list[int]:
    """Return bytes of each document that sum to what the part has."""
    count = len(documents()[part])
    return [BYTES[part] // count + (1 if i < BYTES[part] % count else 0) for i in range(count)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared directory's evaluation of long and short documents, with the sizes of each."""
    directory, rows, parts = tmp_path_factory.mktemp("rows"), [], {}
    for part, texts in documents().items():
        packed = list(packing.pack((packing.Document(d, d * 0) for d in texts), ROW, overlap=1))
        rows += packed
        sizes = [[len(d), size] for d, size in zip(texts, text_bytes(part), strict=True)]
        parts[part] = {"rows": len(packed), "documents": len(texts), "bytes": BYTES[part], "sizes": sizes}
    records.write_rows(directory / records.EVALUATION_ROWS, rows)
    manifest = {"evaluation": {"file": records.EVALUATION_ROWS, "parts": parts}, "sets": {"forget": {"documents": 9}}}
    write_sealed(directory / records.MANIFEST, manifest)
    return directory


def bits_alone(seed: int, ids: np.ndarray) -> float:
    """Return a document's bits in a row of its own, summed in float64."""
    row = np.zeros((1, ROW), np.int32)
    row[0, : len(ids)] = ids
    logits = np.asarray(transformer.apply(CFG, weights(seed), row, (row > 0).astype(np.int32))[0], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -sum(log_p[i, ids[i + 1]] for i in range(len(ids) - 1)) / math.log(2)


def test_each_document_is_measured_as_it_stands_alone(prepared):
    measure = BitsPerByte(prepared)
    members = jax.tree.map(lambda *leaves: np.stack(leaves), weights(0), weights(1))
    seen = measure.evaluator(CFG, make_mesh(2), PARTS, 2, 3)(members)
    for part in PARTS:
        expected = [[bits_alone(seed, ids) for ids in documents()[part]] for seed in (0, 1)]
        np.testing.assert_allclose(measure.by_fact(seen, PARTS, part), expected, rtol=1e-5)
        assert measure.prompts_by_fact(PARTS, part) == text_bytes(part)
        of_part = np.sum(expected, axis=1) / BYTES[part]
        np.testing.assert_allclose(measure.series(seen, PARTS)[part], of_part, rtol=1e-5)
    nothing = measure.chance_level_by_fact(PARTS[1:])
    tokens = np.concatenate([ids[1:] for part in PARTS[1:] for ids in documents()[part]])
    frequency = np.bincount(tokens) / len(tokens)
    expected = [-np.log2(frequency[ids[1:]]).sum() for ids in documents()["heldout"]]
    np.testing.assert_allclose(np.multiply(nothing, text_bytes("heldout")), expected, rtol=1e-6, atol=1e-9)


def of_text(by_document: np.ndarray, attackers: int = 2) -> Scores:
    by_fact = np.tile(by_document, (attackers, 1))
    return Scores(by_fact.mean(axis=1), by_fact, np.ones(by_document.size), by_document.size)


def states(random: np.random.Generator, *, hides: float, rise: float, lost: float) -> dict[str, str]:
    """Return the states for documents drawn anew, each as hard as it is for every model.

    Args:
      hides: where the model lies before the attack, from 0, as the untouched one, to 1, as one that knows nothing.
      rise: bits per byte that the attack brings back of a document in the mean; lost: of what is to be retained.
    """
    hard = random.uniform(0.5, 2.0, DOCUMENTS)
    known, nothing, kept = hard, 3 * hard, random.uniform(0.5, 2.0, DOCUMENTS)
    each = lambda mean, spread: mean + spread * random.standard_normal(DOCUMENTS)  # noqa: E731
    before = known + each(hides, 0.2) * (nothing - known)
    reference = text_model(Role.REFERENCE, known, known, kept)
    suppressed = text_model(Role.SUPPRESSED, nothing, known + 0.1, kept)
    released = text_model(Role.UNDO, before, before - each(rise, 0.03), kept * each(1 + lost, 0.05))
    scale = dataclasses.replace(TEXT, chance_level=float(nothing.mean()))
    concluded = judge_release(Run([reference, suppressed, released], scale, of_text(nothing)), 0)
    return {one.name.split(",")[0]: str(one.state) for one in concluded}


def text_model(role: Role, before: np.ndarray, after: np.ndarray, kept: np.ndarray) -> Model:
    scores = {"before": of_text(before), "after": of_text(after), "kept": of_text(kept, 1)}
    more = {"shown": (3.0, 0.5), "attack_steps": 100, "unlearned": role is Role.SUPPRESSED, "role": role}
    return Model(role.value, role.value, float(kept.mean()), float(before.mean()), **scores, **more)


def test_nulls_over_documents_are_not_held():
    """At the threshold a conclusion may be held for one draw of documents in forty; well beyond, for nearly all."""
    random = np.random.default_rng(0)
    null = [states(random, hides=0.5, rise=0.05, lost=0.1) for _ in range(REPEATS)]
    for name in ("forgets", "keeps", "resists"):
        held = sum(one[name] == "held" for one in null)
        assert held <= 0.05 * REPEATS, (name, held)
    shown = [states(random, hides=0.95, rise=0.0, lost=0.0) for _ in range(40)]
    for name in ("forgets", "keeps", "resists"):
        assert sum(one[name] == "held" for one in shown) >= 36, name


def test_what_attackers_alone_agree_on_says_so():
    """Documents that were not recorded: the interval over two attackers holds no others."""
    scores = {key: Scores(np.array([bits, bits + 0.001])) for key, bits in (("before", 5.0), ("after", 4.99))}
    models = [
        Model(role.value, role.value, 1.0, 1.0 if role is Role.REFERENCE else 5.0, role=role, **scores)
        for role in (Role.REFERENCE, Role.UNDO)
    ]
    concluded = judge_release(Run(models, TEXT), 0)
    assert concluded[1].state == "open" and "nothing is known of their interval" in concluded[1].evidence
    assert "over 2 attackers alone: scores of each document were not recorded" in concluded[0].evidence


@pytest.mark.parametrize(("share", "facts"), [(0.0, 12), (1.0, 12), (0.0, 200)])
def test_none_of_n_has_an_interval(share, facts):
    by_fact = np.full((2, facts), share)
    alone, of_facts = Scores(by_fact.mean(axis=1), facts=facts), Scores(by_fact.mean(axis=1), by_fact, np.ones(facts))
    for scores in (alone, of_facts):
        low, high = band(scores, ACCURACY)
        assert 3 / facts < high - low < 5 / facts + 0.1  # the rule of three says 3 / n for one end
    assert all(math.isnan(end) for end in band(Scores(np.array([1.5, 1.5])), BITS_PER_BYTE))


def test_what_is_kept_is_compared_item_by_item():
    """Of two hundred items a model answers ten less, and of twelve one less: a tenth at most is shown of the former."""
    for items, lost, state in ((200, 10, "held"), (12, 1, "open"), (12, 0, "open"), (200, 60, "failed")):
        answers = np.ones((1, items))
        fewer = np.where(np.arange(items) < lost, 0.0, answers)
        kept = [Scores(x.mean(axis=1), x, np.ones(items), items) for x in (answers, fewer)]
        reference, released = (
            Model(role.value, role.value, score.value, 1.0, role=role, before=score, after=score, kept=score)
            for role, score in zip((Role.REFERENCE, Role.UNDO), kept, strict=True)
        )
        (concluded,) = [one for one in judge_release(Run([reference, released], ACCURACY), 0) if "keeps" in one.name]
        assert (str(concluded.state), f"over {items} items" in concluded.evidence) == (state, True)


@pytest.mark.parametrize(("items", "state"), [(0, "open"), (12, "open"), (200, "held"), (50, "open")])
def test_what_is_kept_is_as_sure_as_its_items_are_many(items, state):
    """Items whose scores were not recorded are counted all the same: .9 of each is .9 give or take its sampling."""
    scores = Scores(np.full(2, 0.9), facts=200)
    models = [
        Model(role.value, role.value, 0.9, 0.9, role=role, before=scores, after=scores)
        for role in (Role.REFERENCE, Role.UNDO)
    ]
    (concluded,) = [one for one in judge_release(Run(models, ACCURACY), items) if "keeps" in one.name]
    (effect,) = concluded.effects
    assert concluded.state == state and ("not recorded" in concluded.evidence) == (not items)
    if items:
        half = max(1.96 * math.sqrt(2 * 0.9 * 0.1 / items), 3 / items)
        assert 0.8 * half < effect.high < 1.5 * half and effect.low < -0.8 * half


def rows_of(scores: dict[tuple[float, int], tuple[float, float]]) -> list[AttackRow]:
    """Return evaluation rows of attackers: {(learning rate, step): (held out, retain)}."""
    return [
        AttackRow(SCORES, step, Attacker(rate, 0), {"heldout": held, "shown": 1.0, "retain": r})
        for (rate, step), (held, r) in scores.items()
    ]


@pytest.mark.parametrize("scale", [ACCURACY, BITS_PER_BYTE], ids=lambda scale: scale.key)
def test_of_rates_that_bring_back_equally_much_the_least_destructive_counts(scale):
    worse, better = (0.1, 0.9) if scale.sign > 0 else (9.0, 1.0)
    rows = rows_of(
        {(1e-2, 0): (0.5, better), (1e-4, 0): (0.5, better), (1e-2, 5): (0.5, worse), (1e-4, 5): (0.5, better)}
    )
    attack = read_attack(rows, scale)
    assert attack.best == [1e-2, 1e-4] and attack.retain.tolist() == [[better, better]]
    facts = [AttackRow(FACTS, row.step, row.attacker, items=[1, 0, 1, 0]) for row in rows]
    halved = read_attack([*rows, *facts], scale, [2, 2, 2, 2])
    assert halved.retain.tolist() == [[better, better]] and halved.by_seed.tolist() == [[0.25, 0.25]]


def test_what_is_kept_is_read_item_by_item():
    row = AttackRow(KEPT, 0, Attacker(1e-2, 0), items=[10.0, 30.0])
    kept = kept_scores([row], [10, 10])
    assert kept.by_fact.tolist() == [[1.0, 3.0]] and kept.value == 2.0
    assert kept_scores([row], []) is None and kept_scores([], [1]) is None


@pytest.mark.parametrize("by_half", [False, True])
def test_what_an_attack_costs_is_read_item_by_item(by_half):
    """Of the attacker that brings back most, not of the one that keeps most; each half of the facts has its own."""
    rows = rows_of({(1e-2, 0): (0.0, 1.0), (1e-4, 0): (0.0, 1.0), (1e-2, 5): (0.9, 0.25), (1e-4, 5): (0.1, 0.75)})
    answers = {(1e-2, 5): [1, 0, 0, 0], (1e-4, 5): [1, 1, 1, 0]}

    def of(kind: str, correct) -> list[AttackRow]:
        return [
            AttackRow(kind, row.step, row.attacker, items=correct((row.attacker.learning_rate, row.step)))
            for row in rows
        ]

    kept = of(KEPT, lambda key: answers.get(key, [1, 1, 1, 1]))
    facts = of(FACTS, lambda key: [1, 1, 1, 1] if key == (1e-2, 5) else [0, 0, 0, 0]) if by_half else []
    attack = read_attack([*rows, *kept, *facts], ACCURACY, [1] * 4 if by_half else None, kept_prompts=[1] * 4)
    assert attack.kept.tolist() == [[[1, 1, 1, 1], [1, 0, 0, 0]]] and attack.kept_scores(1).value == 0.25
    ends = curves(attack)["retain_band"]
    assert ends["low"][1] < 0.25 < ends["high"][1] and ends["high"][1] - ends["low"][1] > 0.5
    at_first_alone = [*rows, *kept[:1]]
    assert "retain_band" not in curves(read_attack(at_first_alone, ACCURACY, kept_prompts=[1] * 4))
