"""Bits per byte against float64 sums over documents that stand alone; scales; the paper's claims read in bits."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import test_evals
import test_report
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.data import packing, records
from distill_jax.evals.bits_per_byte import BitsPerByte
from distill_jax.evals.scale import ACCURACY, BITS_PER_BYTE
from distill_jax.io.files import write_sealed
from distill_jax.models import transformer
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.reports import run_page
from distill_jax.reports.claims import judge
from distill_jax.reports.premises import Model
from distill_jax.sharding.mesh import make_mesh
from distill_jax.statistics.conclusions import State
from distill_jax.statistics.estimates import Scores
from distill_jax.statistics.robustness import curves, read_attack
from tests import referee

CFG = TransformerConfig(vocab=11, layers=1, hidden=8, mlp=12, heads=2, kv_heads=1, head_dim=4, query_scale=4.0)
ROW = 8
PARTS = ("retain", "shown", "heldout")
DOCUMENTS = {"retain": [3, 8, 5, 2], "shown": [7], "heldout": [6, 6, 1, 4, 3]}  # tokens
BYTES = {"retain": 31, "shown": 7, "heldout": 55}


@functools.cache
def documents() -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(3)
    return {part: [rng.integers(1, CFG.vocab, n) for n in lengths] for part, lengths in DOCUMENTS.items()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared directory's evaluation, its rows packed; made without the code that prepares text."""
    directory, rows, told = tmp_path_factory.mktemp("rows"), [], {}
    for part, found in documents().items():
        packed = list(packing.pack((packing.Document(d, d * 0) for d in found), ROW))
        rows += packed
        told[part] = {"rows": len(packed), "documents": len(found), "bytes": BYTES[part]}
    records.write_rows(directory / records.EVALUATION_ROWS, rows)
    manifest = {"evaluation": {"file": records.EVALUATION_ROWS, "parts": told}, "sets": {"forget": {"documents": 9}}}
    write_sealed(directory / records.MANIFEST, manifest)
    return directory


@functools.cache
def weights(seed: int):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: transformer.init(CFG, jax.random.key(0)))
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)


@functools.cache
def expected(seed: int) -> dict[str, float]:
    """Bits per byte from the logits of each document in a row of its own, summed in float64."""
    forward = jax.jit(functools.partial(transformer.apply, CFG))
    out = {}
    for part, found in documents().items():
        bits = 0.0
        for ids in found:
            row = np.zeros((1, ROW), np.int32)
            row[0, : len(ids)] = ids
            logits = np.asarray(forward(weights(seed), row, (row > 0).astype(np.int32))[0], np.float64)
            for i in range(len(ids) - 1):
                shifted = logits[i] - logits[i].max()
                bits += (math.log(np.exp(shifted).sum()) - shifted[ids[i + 1]]) / math.log(2)
        out[part] = bits / BYTES[part]
    return out


@pytest.mark.unit
@pytest.mark.parametrize(("batch", "chunk"), [(0, 0), (2, 3)])
def test_bits_per_byte_are_those_of_documents_that_stand_alone(prepared, batch, chunk):
    measure = BitsPerByte(prepared)
    members = jax.tree.map(lambda *leaves: np.stack(leaves), weights(0), weights(1))
    evaluate = measure.evaluator(CFG, make_mesh(2), PARTS, batch, chunk)
    seen = evaluate(members)
    found = measure.series(seen, PARTS)
    for seed in (0, 1):
        for part in PARTS:
            assert found[part][seed] == pytest.approx(expected(seed)[part], rel=1e-5)
    members["final_norm"]["scale"][1, 0] = np.nan
    broken = evaluate(members)
    assert broken[0].tolist() == seen[0].tolist() and not np.isfinite(broken[1]).any()
    assert measure.result(broken[1], PARTS)["by_group"]["forget/shown"] == {"bits_per_byte": None, "bytes": 7}
    result = measure.result(seen[1], PARTS)
    assert (result["retain"], result["forget"]) == (found["retain"][1], found["heldout"][1])
    assert result["by_group"]["forget/shown"] == {"bits_per_byte": found["shown"][1], "bytes": 7}
    assert expected(0)["retain"] != pytest.approx(expected(1)["retain"], rel=0.01)


@pytest.mark.unit
@pytest.mark.parametrize("ways", [{}, {"fsdp": 2}, {"tensor": 2}], ids=str)
def test_a_part_alone_is_measured_as_with_the_others_on_any_mesh(prepared, ways):
    measure = BitsPerByte(prepared)
    one = jax.tree.map(lambda leaf: leaf[None], weights(0))
    seen = measure.evaluator(CFG, make_mesh(1, **ways), ("retain",), 4, 0)(one)
    assert seen.shape == (1, 1)
    assert measure.series(seen, ("retain",))["retain"][0] == pytest.approx(expected(0)["retain"], rel=1e-5)
    told = BitsPerByte.described(records.load_manifest(prepared))
    assert told["evaluated"] == {"retain": 4, "forget_shown": 1, "forget_heldout": 5}
    assert told["facts"] == {"shown": 9, "heldout": 5}


@pytest.mark.unit
def test_a_goal_is_a_share_of_the_cross_entropy_and_a_difference_of_accuracies():
    assert BITS_PER_BYTE.goal(2.0, 0.05) == pytest.approx(2.1) and ACCURACY.goal(0.9, 0.05) == pytest.approx(0.85)
    goals = np.array([2.1, 2.1])
    assert BITS_PER_BYTE.reaches(np.array([2.0, 2.2]), goals).tolist() == [True, False]
    assert ACCURACY.reaches(np.array([2.0, 2.2]), goals).tolist() == [False, True]
    assert BITS_PER_BYTE.ability(None) == ACCURACY.ability(None) == -math.inf


@pytest.mark.unit
def test_the_worst_case_takes_the_fewest_bits_and_the_retain_score_of_the_same_member():
    """Bits that are 2 - accuracy are worst where the accuracy is, and by as much."""
    told = [
        dataclasses.replace(row, scores={key: 2 - row.scores[key] for key in PARTS}) for row in test_evals.attack_rows()
    ]
    bits = curves(read_attack(told, BITS_PER_BYTE), scale=BITS_PER_BYTE)
    accuracy = curves(read_attack(test_evals.attack_rows()))
    for part in ("forget_heldout", "forget_shown"):
        assert bits[part]["worst"] == pytest.approx([2 - value for value in accuracy[part]["worst"]])
    low, worst, high = (np.array(bits["forget_heldout"][key], float) for key in ("low", "worst", "high"))
    known = np.isfinite(low)  # where all attackers agree nothing is known of the error
    assert known.any() and np.all(low[known] <= worst[known]) and np.all(high[known] >= worst[known])
    assert high[known].max() > 1  # bits do not end at one
    assert bits["retain_at_worst"] == pytest.approx([2 - value for value in accuracy["retain_at_worst"]])
    assert bits["best_learning_rate"] == accuracy["best_learning_rate"]


def turned(scores: Scores, turn: Callable[[Any], Any]) -> Scores:
    return Scores(turn(scores.by_seed))


def turned_model(model: Model, turn: Callable[[Any], Any]) -> Model:
    """A model known by its seeds alone, its every accuracy turned."""
    before, after, shown = turned(model.before, turn), turned(model.after, turn), tuple(map(turn, model.shown))
    weights = {kind: turned(scores, turn) for kind, scores in model.by_weights.items()}
    more = {"before": before, "after": after, "shown": shown, "by_weights": weights, "asked": 0}
    return dataclasses.replace(model, retain=turn(model.retain), forget=turn(model.forget), **more)


@pytest.mark.unit
@pytest.mark.parametrize("draw", range(4))
def test_conclusions_are_the_same_in_bits(draw):
    """3 - accuracy: the same distances, the other way round."""
    models = referee.world(np.random.default_rng(draw), referee.GOOD | {"student": referee.Truth(0, 0.2 * draw)})
    plain = referee.states([turned_model(m, lambda x: x) for m in models])
    bits = [turned_model(m, lambda x: 3 - x) for m in models]
    assert referee.states(bits, BITS_PER_BYTE) == plain and len(set(plain.values())) > 1
    said = [one.statement + one.evidence for one in judge(bits, BITS_PER_BYTE)]
    assert not any("fact" in text for text in said)


@pytest.mark.unit
def test_without_an_oracle_bits_have_no_zero():
    models = referee.world(np.random.default_rng(0), {k: v for k, v in referee.GOOD.items() if k != "oracle"})
    suppression = judge([turned_model(m, lambda x: 3 - x) for m in models], BITS_PER_BYTE)[0]
    assert suppression.state is State.NOT_RUN and "oracle" in suppression.evidence


@pytest.mark.unit
def test_the_report_reads_bits_the_other_way_round():
    """The same verdict, the same shares of the way; but no per cent of facts and no axis that ends at one."""
    summary = test_report.example() | {"measure": "bits_per_byte"}
    for model in summary["models"]:
        model["retain"], model["forget"] = 2 - model["retain"], 3 - 2 * model["forget"]
        model["by_group"] = {"forget/shown": {"bits_per_byte": 1.875, "bytes": 9}}
        if model["attack"]:
            curve, turned = model["attack"]["forget_heldout"], {"worst": "worst", "low": "high", "high": "low"}
            bits = {key: [3 - 2 * v for v in curve[other]] for key, other in turned.items()}
            model["attack"] |= {"forget_heldout": bits, "forget_shown": bits}
    page = test_report.Page(run_page.render(summary))
    assert "Student resists relearning: better than suppression alone, and no worse than the oracle." in page.text
    assert "2.62 from UNDO α = 0.8" in page.text and "best of 3 settings" in page.text
    assert "covers 93\u202f% of the way from suppression to the oracle for 88\u202f%" in page.text
    assert "facts" not in page.text and "It keeps what it should: retain bits per byte 1.05" in page.text
    panels = page.drawings["figures"]
    assert panels["panel-heldout"]["layout"]["yaxis"]["range"][1] > 2.9
    assert all(panel["layout"]["yaxis"]["tickformat"] == ".2f" for panel in panels.values())
    assert page.rows["maxent"][2] == ("1.875", "1.875")


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(0, 9), min_size=1, max_size=6))
def test_best_is_a_value_and_has_the_most_ability(values):
    for scale in (ACCURACY, BITS_PER_BYTE):
        best = scale.best(np.array([values]), axis=1)[0]
        assert best in values
        assert scale.ability(best) == max(map(scale.ability, values))
