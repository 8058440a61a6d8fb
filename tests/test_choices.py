"""Multiple choice: held against a recording of lm-evaluation-harness; files of every kind, and items that are none."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import re
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from parity.record_choices import CASES, EXPECTED, HERE, MODEL, items
from safetensors.numpy import load_file, save_file
from statsmodels.stats.proportion import proportion_confint

from distill_jax.config import ConfigError
from distill_jax.data.multiple_choice.items import Item, contexts, format_prompt, read
from distill_jax.data.multiple_choice.questions import questions
from distill_jax.evals.scale import wilson
from distill_jax.interop import tokenizers
from distill_jax.interop.choice_scoring import FewShot, score_choices
from distill_jax.interop.rows import Inference
from distill_jax.main import main

pytestmark = pytest.mark.unit

RECORDED = json.loads(EXPECTED.read_text())
LONGEST = 340  # tokens, of the recorded model


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_items(rows: list[dict]) -> list[Item]:
    return [Item(row["question"], tuple(row["choices"]), row["answer"], row.get("subject", "")) for row in rows]


# The harness


@pytest.mark.parametrize("case", CASES)
def test_log_likelihoods_are_those_of_the_harness(case, tmp_path):
    subject, _, shots = CASES[case]
    rows, examples = items(subject), str(HERE / "mmlu_dev.jsonl") if shots else ""
    given = lines(tmp_path / "items.jsonl", rows)
    told = score_choices(MODEL, str(given), tmp_path / "out", Inference(batch=16), FewShot(shots, examples, subject))
    found, expected = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()], RECORDED[case]
    assert len(found) == len(expected["log_likelihoods"]) == len(rows)
    for row, said in zip(found, expected["log_likelihoods"], strict=True):
        assert row["log_likelihoods"] == pytest.approx(said, abs=1e-3)
        assert row["correct"] == (said.index(max(said)) == row["answer"])
    assert told.startswith(f"accuracy {expected['accuracy']:.4f} ")
    assert ("cut off at 340 tokens" in told) == (shots > 0)


def test_the_recording_has_answers_of_one_token_and_of_more():
    """In its vocabulary ' A' and ' B' are one token, ' C' and ' D' two: every item is read twice."""
    given = as_items(items("college_biology"))
    asked = questions(given, contexts(given), tokenizers.load(str(MODEL)), LONGEST)
    assert [(q.item, q.choices, q.own) for q in asked[:2]] == [(0, (0, 1), 0), (0, (2, 3), 1)]
    assert len(asked) == 2 * len(given)


def test_the_prompt_to_the_letter():
    item = Item(" Which? \n", ("one", " two", "three", "four"), 2, "us_foreign_policy")
    example = Item("That?", ("a", "b", "c", "d"), 3, "us_foreign_policy")
    other = Item("Not this", ("a", "b", "c", "d"), 0, "law")
    assert format_prompt(item) == "Which?\nA. one\nB.  two\nC. three\nD. four\nAnswer:"
    assert contexts([item], [other, example], 1) == [
        "The following are multiple choice questions (with answers) about us foreign policy.\n\n"
        "That?\nA. a\nB. b\nC. c\nD. d\nAnswer: D\n\n"
        "Which?\nA. one\nB.  two\nC. three\nD. four\nAnswer:"
    ]
    assert contexts([Item("Q", ("a", "b"), 0)]) == ["Q\nA. a\nB. b\nAnswer:"]


def test_a_letter_may_need_no_beginning_of_its_own():
    """A tokenizer that joins the letter with the colon before it leaves an option without a token."""

    class Joins:
        def encode(self, text: str) -> list[int]:
            return [0] * len(text.removesuffix(" A"))

    item = Item("Q", ("a", "b"), 0)
    with pytest.raises(ConfigError, match="answer 'A' has no token of its own"):
        questions([item], contexts([item]), Joins())


# Files


def test_every_kind_of_file_holds_the_same_items(tmp_path):
    given = as_items(items("us_foreign_policy"))
    rows = [[item.question, *item.choices, "ABCD"[item.answer]] for item in given]
    for name, heading in (("named.csv", [["question", *"ABCD", "answer"]]), ("us_foreign_policy_test.csv", [])):
        with open(tmp_path / name, "w", newline="") as file:
            csv.writer(file).writerows([*heading, *rows])
    table = pyarrow.Table.from_pylist(items("us_foreign_policy"))
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    letters = [{**row, "answer": "abcd"[row["answer"]]} for row in items("us_foreign_policy")]
    assert read(str(lines(tmp_path / "a.jsonl", letters)), "--items") == given
    assert read(str(tmp_path / "a.parquet"), "--items") == given
    assert read(str(tmp_path / "us_*.csv"), "--items") == given
    assert read(str(tmp_path / "named.csv"), "--items", "us_foreign_policy") == given


ARC = {"question": "Q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
NUMBERED = {"question": "Q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}}


@pytest.mark.parametrize(
    "row",
    [
        ARC,
        {**NUMBERED, "answerKey": "2"},
        {**NUMBERED, "answerKey": 2},
        {**NUMBERED, "answerKey": 2.0},
        {**ARC, "choices": {"text": ["a", "b"], "label": ["C", "D"]}, "answerKey": "D"},
        {"question": "Q", "choices": ["a", "b"], "answerKey": "b"},
        {"question": "Q", "choices": ["a", "b"], "answer": 1.0},
        {"question": "Q", "choices": ["a", "b"], "answer": "1.0"},
        {"question": "Q", "A": "a", "B": "b", "C": None, "answer": "B"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "jsonl.gz"])
def test_items_of_every_shape(tmp_path, row, kind):
    """In parquet beside a column that is nobody's business."""
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**row, "seen": datetime.date(2020, 1, 1)}]), path)
    else:
        text = json.dumps([row], indent=1) if kind == "json" else json.dumps(row)
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else b"\xef\xbb\xbf" + text.encode())
    assert read(str(path), "--items", "s") == [Item("Q", ("a", "b"), 1, "s")]


def test_whole_numbers_of_a_column_with_gaps_are_read_and_its_gaps_named(tmp_path):
    column = pyarrow.array([1.0, 0.0, None])
    table = pyarrow.table({"question": ["Q", "R", "S"], "choices": [["a", "b"]] * 3, "answer": column})
    pyarrow.parquet.write_table(table.slice(0, 2), tmp_path / "a.parquet")
    assert [item.answer for item in read(str(tmp_path / "a.parquet"), "--items")] == [1, 0]
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match=r"b\.parquet, row 3: has no `answer` but"):
        read(str(tmp_path / "b.parquet"), "--items")


GOOD = {"question": "Q", "choices": ["a", "b"], "answer": 1}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**GOOD, "answer": 2}, ["a.jsonl:2", "answer = 2", "none of 2 choices"]),
        ({**GOOD, "answer": "E!"}, ["answer = 'E!'", "a letter or an index"]),
        ({**GOOD, "answer": True}, ["answer = True"]),
        ({**GOOD, "answer": -1}, ["answer = -1"]),
        ({**GOOD, "answer": 0.5}, ["answer = 0.5", "a letter or an index"]),
        ({**GOOD, "answer": None}, ["has no `answer`", "ARC's"]),
        ({"question": "Q", "choices": ["a", "b"], "answerKey": "1"}, ["answerKey = '1'", "no labels"]),
        ({**ARC, "answerKey": "C"}, ["answer = 'C'", "labels A, B"]),
        ({**NUMBERED, "answerKey": 2.5}, ["answer = 2.5", "labels 1, 2"]),
        ({**ARC, "choices": {"text": ["a", "b"], "label": ["A"]}}, ["choices: has text, label"]),
        ({**ARC, "choices": {"text": ["a", "b"], "label": ["A", "A"]}}, ["a label of its own"]),
        ({**ARC, "choices": {"A": "a", "B": "b"}}, ["choices: has A, B"]),
        ({"query": "Q", "options": ["a", "b"], "gold": 1}, ["has no `question` but query, options, gold", "ARC's"]),
        ({**GOOD, "choices": ["a"]}, ["choices: has 1", "2 to 26"]),
        ({**GOOD, "choices": "ab"}, ["choices: a list is needed"]),
        ({**GOOD, "choices": ["a", 2]}, ["strings are needed"]),
        ({"question": "Q", "choices": ["a", "b"]}, ["has no `answer` but question, choices"]),
        ([GOOD], ["a.jsonl:2: a JSON list instead of an object"]),
    ],
    ids=str,
)
def test_items_that_are_none(tmp_path, row, says):
    with pytest.raises(ConfigError) as error:
        read(str(lines(tmp_path / "a.jsonl", [GOOD, row])), "--items")
    assert all(text in str(error.value) for text in says), str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"\xff\xfe", ["a.jsonl:1: not UTF-8 (byte 0xff)"]),
        ("a.jsonl", b"\n\n", ["holds no items"]),
        ("a.jsonl", b"{", ["a.jsonl:1: no JSON"]),
        ("a.parquet", b"PAR1", ["a.parquet: not a parquet file"]),
        ("a.csv", b"question,answer\nonly one\n", ["a.csv:2: has 1 columns, 2 are needed"]),
        ("a.csv", b"one,two\n", ["a.csv:1: has 2 columns", "question, choices (a list)"]),
    ],
    ids=str,
)
def test_files_that_hold_none(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read(str(tmp_path / name), "--items")
    assert all(text in str(error.value) for text in says), str(error.value)


# The command


def score(*flags: str) -> int:
    return main(["distill-jax", "score", f"--model={MODEL}", "--output=never", *flags])


def test_the_command_prints_the_accuracy(tmp_path, capsys):
    flags = [f"--items={HERE / 'mmlu.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"]
    assert main(["distill-jax", "score", f"--model={MODEL}", "--batch=32", *flags]) == 0
    said = capsys.readouterr().out
    right = sum(json.loads(line)["correct"] for line in (tmp_path / "out.jsonl").read_text().splitlines())
    low, high = proportion_confint(right, 16, method="wilson")
    assert said.endswith(f"accuracy {right / 16:.4f} [{low:.4f}, {high:.4f}], {right} of 16 items\n")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], ["--input=FILE.jsonl, or --items=FILE"]),
        (["--input=x", "--items=y"], ["--input=FILE.jsonl, or --items=FILE"]),
        (["--input=x", "--shots=2"], ["--shots: only --items has a use for it"]),
        (["--items=x", "--shots=-1"], ["--shots=-1"]),
        (["--items=x", "--shots=2"], ["--shots=2", "--examples=FILE"]),
        (["--items=x", "--examples=y"], ["--examples=y: none is shown", "--shots"]),
        (["--items=none/x.jsonl"], ["none/x.jsonl: no such file", "hf download cais/wmdp", "--local-dir none"]),
        (["--items=none/*.csv"], ["none/*.csv: no file has such a name", "hf download"]),
        (
            [f"--items={HERE}/mmlu.jsonl", "--shots=5", f"--examples={HERE}/mmlu_dev.jsonl"],
            ["--shots=5", "have 4 of subject 'us_foreign_policy'"],
        ),
        ([f"--items={HERE}/mmlu.jsonl", "--tokenizer=none.json"], ["none.json: no such file"]),
    ],
    ids=str,
)
def test_wrong_commands(flags, says, capsys):
    code = score(*flags)
    said = capsys.readouterr().err
    assert code == 2 and all(text in said for text in says) and said.count("\n") == 1, said


def test_options_without_finite_logits_are_no_answer(tmp_path, capsys):
    """Of weights that are finite, each: their sums are not. argmax would say A, and be right of some."""
    copy = shutil.copytree(MODEL, tmp_path / "model")
    weights = load_file(copy / "model.safetensors")
    weights["model.embed_tokens.weight"][:] = 3e38
    save_file(weights, copy / "model.safetensors")
    out = tmp_path / "out.jsonl"
    code = main(["distill-jax", "score", f"--model={copy}", f"--items={HERE}/mmlu.jsonl", f"--output={out}"])
    said = capsys.readouterr()
    assert code == 2 and re.search(r"^distill-jax: item \d+ \(.*logits are not finite.*\n\Z", said.err, re.MULTILINE)
    assert "accuracy" not in said.out and not out.exists()


@pytest.mark.parametrize(("right", "of"), [(0, 7), (7, 7), (3, 7), (589, 1273), (0, 1)])
def test_wilson_is_that_of_statsmodels(right, of):
    assert wilson(right, of) == pytest.approx(proportion_confint(right, of, method="wilson"), abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)
