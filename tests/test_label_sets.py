"""What a labeller makes of the arithmetic data: filtered, dropped and masked sets, and the errors they report."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import re

import numpy as np
import pytest

from distill_jax.config import ConfigError
from distill_jax.data import records
from distill_jax.data.arithmetic import equations, word_vocabulary
from distill_jax.data.arithmetic.label_filter import NaiveBayes, with_errors
from distill_jax.data.arithmetic.prepare_arithmetic import prepare
from distill_jax.data.corpus import gather
from distill_jax.experiment.roles import Role, provenance
from distill_jax.models.presets import preset
from distill_jax.stages import Distill, Pretrain
from distill_jax.train.batch import PackedRows
from tests.test_reinitialise import nodes_of

FALSE_POSITIVES, FALSE_NEGATIVES = 0.1, 0.3
NOISY = equations.ArithmeticConfig(
    addition_max=20, multiplication_max=12, equations=4000, word_problems=0, row_length=32, evaluation_prompts=4,
    labeller="noisy", false_positive_rate=FALSE_POSITIVES, false_negative_rate=FALSE_NEGATIVES,
    label_sets=("filtered", "dropped", "masked"),
)  # fmt: skip
WORDS = word_vocabulary.load_entries()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("labels") / "rows"
    return prepare(NOISY, directory), directory


def documents(directory, name):
    """Every document of a set as (tokens, answer)."""
    out = []
    rows = records.Rows(directory / f"{name}.array_record")
    for tokens, segments, answer in rows.gather(range(len(rows))):
        for number in range(1, segments.max() + 1):
            out.append((tuple(tokens[segments == number]), tuple(answer[segments == number])))
    return out


def is_forget(document):
    return any(WORDS[token] in "*/" for token in document[0])


def close(rate, expected, n):
    return abs(rate - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


@pytest.mark.end_to_end
def test_label_sets_are_what_the_labels_say(made):
    """Filtered and dropped divide `all`; masked has all its documents; each errs as its manifest says and was asked."""
    manifest, directory = made
    everything, filtered, dropped, masked = (documents(directory, n) for n in ("all", "filtered", "dropped", "masked"))
    assert collections.Counter(filtered + dropped) == collections.Counter(everything)
    assert sorted(tokens for tokens, _ in masked) == sorted(tokens for tokens, _ in everything)
    retain = sum(not is_forget(d) for d in everything)
    lost, passed = sum(not is_forget(d) for d in dropped), sum(map(is_forget, filtered))
    about = manifest["sets"]["filtered"]
    assert (about["retain_lost"], about["forget_passed"]) == (lost, passed)
    assert about["false_positive_rate"] == pytest.approx(lost / retain, abs=1e-5)
    assert about["false_negative_rate"] == pytest.approx(passed / (len(everything) - retain), abs=1e-5)
    assert close(about["false_positive_rate"], FALSE_POSITIVES, retain)
    assert close(about["false_negative_rate"], FALSE_NEGATIVES, len(everything) - retain)
    known = dict(everything)  # which tokens of a text are its answer
    counts = collections.Counter()
    for tokens, answer in masked:
        for is_answer, now in zip(known[tokens], answer, strict=True):
            assert now in (is_answer, -1)
            counts[bool(is_answer) and is_forget((tokens,)), now == -1] += 1
    about = manifest["sets"]["masked"]
    positives, negatives = counts[False, True] + counts[False, False], counts[True, True] + counts[True, False]
    assert about["false_positive_rate"] == pytest.approx(counts[False, True] / positives, abs=1e-5)
    assert about["false_negative_rate"] == pytest.approx(counts[True, False] / negatives, abs=1e-5)
    assert close(counts[False, True] / positives, FALSE_POSITIVES, positives)
    assert close(counts[True, False] / negatives, FALSE_NEGATIVES, negatives)


@pytest.mark.unit
def test_marked_tokens_are_no_targets():
    """Of a row of two documents: a marked token counts nowhere but in "all", and answers only where unmarked."""
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0]])
    answer = np.array([[0, -1, 1, -1, -1, 1, -1, 0]])
    rows = PackedRows(np.zeros_like(segments), segments, answer)
    for loss_on, expected in {
        "all": [1, 1, 1, 0, 1, 1, 0],
        "unmarked": [0, 1, 0, 0, 1, 0, 0],
        "answer": [0, 1, 0, 0, 1, 0, 0],
    }.items():
        np.testing.assert_array_equal(rows.target_mask(loss_on)[0], expected)


@pytest.mark.unit
def test_errors_are_drawn_at_their_rates():
    truth, draws = np.array([True, True, False, False]), np.array([0.1, 0.6, 0.1, 0.6])
    assert with_errors(truth, 0.0, 0.0, draws).tolist() == truth.tolist()
    assert with_errors(truth, 0.5, 0.5, draws).tolist() == [False, True, True, False]
    assert with_errors(truth, 1.0, 1.0, draws).tolist() == (~truth).tolist()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labeller": "bert"}, "labeller='bert'"),
        ({"false_positive_rate": 0.1}, 'only the labeller "noisy"'),
        ({"labeller": "noisy", "false_negative_rate": 1.5}, "from 0 to 1"),
        ({"labeller": "noisy", "filter_labels": 10}, "learns from none"),
        ({"label_sets": ("filtered", "masked")}, "no labeller to make them"),
        ({"labeller": "noisy", "label_sets": ("half",)}, "each once"),
    ],
)
def test_labels_that_cannot_be_are_refused(change, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        equations.ArithmeticConfig(**change)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (Pretrain(data="masked"), "what is marked in the set 'masked' would count"),
        (Pretrain(loss_on="unmarked"), "only the set 'masked' has marks"),
        (Distill(teacher="t", data="dropped"), "data.label_sets"),
    ],
)
def test_marks_are_heeded_where_they_are_and_nowhere_else(stage, words):
    data = equations.ArithmeticConfig(labeller="noisy", label_sets=("filtered", "masked"))
    with pytest.raises(ValueError, match=re.escape(words)):
        stage.validate(preset("cpu"), data)
    Distill(teacher="t", data="masked", loss_on="unmarked").validate(preset("cpu"), data)


@pytest.mark.unit
def test_models_of_filtered_data_have_roles_of_their_own():
    stages = {
        "r": Pretrain(), "documents": Pretrain(data="filtered"), "tokens": Pretrain(data="masked", loss_on="answer"),
        "distilled": Distill(teacher="r", data="masked", loss_on="unmarked"),
    }  # fmt: skip
    nodes = nodes_of(stages, dataclasses.replace(NOISY))
    assert [provenance(nodes[name], nodes).role for name in stages] == [
        Role.REFERENCE, Role.PRETRAINED_FILTERED, Role.PRETRAINED_MASKED, Role.TOKEN_FILTERED,
    ]  # fmt: skip


@pytest.mark.unit
def test_labels_change_no_identity_of_data_without_them():
    assert "labeller" not in equations.ArithmeticConfig(filter_labels=9).fingerprint_fields()
    assert json.loads(json.dumps(NOISY.fingerprint_fields()))["labeller"] == "noisy"


@pytest.mark.unit
def test_a_learned_labeller_tells_documents_apart_by_a_token_that_only_one_kind_has():
    rng = np.random.default_rng(0)
    kinds = np.arange(60) % 2 == 1
    texts = [np.append(rng.integers(0, 5, 4), 5 + kind).astype(np.int32) for kind in kinds]
    pool = gather([(text, np.zeros_like(text), np.array([5])) for text in texts])
    labels = NaiveBayes.learn(pool, np.arange(20), kinds[:20]).forgets(pool)
    np.testing.assert_array_equal(labels, kinds)
