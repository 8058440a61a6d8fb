"""How often a labeller errs is said before a run as it is set, and after it as counted."""

from __future__ import annotations

import dataclasses

import pytest

from distill_jax.data.arithmetic.equations import ArithmeticConfig
from distill_jax.data.data_config import DataConfig
from distill_jax.data.label_errors import described_errors, expected_errors, label_errors, label_lines
from distill_jax.reports import run_page, sweep_page

pytestmark = pytest.mark.unit
NOISY = ArithmeticConfig(
    labeller="noisy", false_positive_rate=0.02, false_negative_rate=0.1, label_sets=("filtered", "masked")
)
COUNTED = {
    "sets": {
        "all": {"rows": 9},
        "filtered": {"rows": 5, "false_positive_rate": 0.0213, "false_negative_rate": 0.0987},
        "masked": {"rows": 9, "marked": 3, "false_positive_rate": 0.0198, "false_negative_rate": 0.1},
    }
}
OF_DOCUMENTS = (
    "filtered: 2.13 % of documents to retain are taken for ones to forget, 9.87 % of those to forget for ones"
)


def test_of_each_set_that_a_labeller_made_the_counted_rates_are_read():
    errors = label_errors(COUNTED)
    assert sorted(errors) == ["filtered", "masked"]
    assert errors["filtered"] == {"false_positive_rate": 0.0213, "false_negative_rate": 0.0987}
    assert label_errors({}) == {} and label_errors({"sets": {"all": {"rows": 9}}}) == {}
    lines = described_errors(errors)
    assert lines[0].startswith(OF_DOCUMENTS) and lines[1].startswith("masked: 1.98 % of tokens to retain")


def test_before_there_are_data_the_rates_are_those_that_are_set():
    assert [line.split(" are ")[0] for line in expected_errors(NOISY)] == [
        "filtered: 2 % of documents to retain", "masked: 2 % of tokens to retain",
    ]  # fmt: skip
    (learned,) = expected_errors(ArithmeticConfig(filter_labels=9))
    assert "naive_bayes are counted when the data are prepared" in learned
    assert expected_errors(ArithmeticConfig()) == [] and expected_errors(DataConfig()) == []


def test_a_dry_run_tells_what_was_counted_from_what_is_set():
    other = dataclasses.replace(NOISY, false_negative_rate=0.3)
    lines = label_lines([(NOISY, COUNTED), (NOISY, COUNTED), (other, None)])
    assert [line.split("  ")[0] for line in lines] == ["labels (measured)"] * 2 + ["labels (as set)"] * 2
    assert "30 % of those to forget" in lines[2]


def test_pages_say_it_where_there_is_a_labeller_and_nowhere_else():
    of_run = {"experiment": "x", "models": []}
    of_sweep = {"sweep": "x", "runs": []}
    assert "taken for ones to forget" not in run_page.render(of_run) + sweep_page.render(of_sweep)
    assert OF_DOCUMENTS in run_page.render({**of_run, "label_errors": label_errors(COUNTED)})
    assert OF_DOCUMENTS in sweep_page.render({**of_sweep, "label_errors": described_errors(label_errors(COUNTED))})
