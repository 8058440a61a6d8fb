"""The model to try protect on: its files are questions on facts that each have one answer, and its config is sound."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import pytest

from distill_jax.data.facts import facts
from distill_jax.experiment.config_file import load_experiment, load_module
from distill_jax.io.files import Digests

FACTS = Path(__file__).parents[1] / "examples" / "invented_facts"


@pytest.mark.unit
@pytest.mark.parametrize("name", ["capitals", "coins"])
def test_each_land_has_one_answer_in_two_wordings(name):
    rows = [json.loads(line) for line in (FACTS / f"{name}.jsonl").read_text().splitlines()]
    answers = collections.defaultdict(list)
    for row in rows:
        assert row["text"] == f"{row['question']} {row['answer']}" and row["fact"] in row["question"]
        answers[row["fact"]].append(row["answer"])
    assert len(answers) == 64 and all(len(same) == 2 and len(set(same)) == 1 for same in answers.values())
    assert len({same[0] for same in answers.values()}) == 64
    assert facts.kind_of("forget", str(FACTS / f"{name}.jsonl")) == "questions"


@pytest.mark.unit
def test_its_config_trains_on_the_texts_of_both_and_exports():
    module = load_module(FACTS / "config.py")
    experiment = load_experiment(module, module.get_config())
    assert list(experiment.stages) == ["reference", "export"]
    assert experiment.data.with_content_hash(Digests()).content
