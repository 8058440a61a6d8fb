"""Questions to forget: how they are read, held out and kept apart from what is to be retained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from statsmodels.stats.proportion import proportion_confint

from distill_jax.config import ConfigError
from distill_jax.data import overlap
from distill_jax.data.facts import facts
from distill_jax.data.facts.choices_config import ChoicesConfig
from distill_jax.data.facts.facts import Question
from distill_jax.data.facts.facts_config import FactsConfig
from distill_jax.data.facts.forget_config import half_width, needed
from distill_jax.data.facts.prepare_facts import prepare_facts, write_facts
from distill_jax.data.packing import ANSWER, SEGMENTS, TOKENS
from distill_jax.data.records import Rows, load_evaluation
from distill_jax.data.text import hf_tokenizer
from distill_jax.data.text.text_config import TextConfig
from distill_jax.experiment.protection import _sources
from distill_jax.io.files import Digests
from distill_jax.shipped import TINY

pytestmark = pytest.mark.unit

MODEL = TINY / "choices" / "model"


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def capitals(count: int) -> list[dict]:
    wordings = ("What is the capital of land {}?", "The capital of land {} is")
    return [
        {"question": words.format(i), "answer": f"city {i}", "fact": f"capital of {i}"}
        for i in range(count)
        for words in wordings
    ]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_questions_are_read_from_every_kind_of_file(kind, tmp_path):
    path = tmp_path / f"facts.{kind}"
    rows = [{"question": "Two and two are", "answer": "4"}, {"question": "Who?", "answer": "Ann, or Bo"}]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "csv":
        path.write_text('question,answer\nTwo and two are,4\nWho?,"Ann, or Bo"\n')
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    assert facts.kind_of("forget", str(path)) == "questions"
    found, documents = facts.split_sources("forget", str(path))
    assert [q.text for q in facts.read(found)] == ["Two and two are 4", "Who? Ann, or Bo"] and not documents


def test_a_table_of_questions_is_no_text(tmp_path):
    """A text config would train on commas; a table without a header is no questions."""
    path = tmp_path / "facts.csv"
    path.write_text("question,answer\nWho?,Ann\n")
    with pytest.raises(ConfigError, match=r"facts\.csv: \.csv holds questions; give text"):
        TextConfig(retain=str(path), forget=str(path)).with_content_hash(Digests())
    path.write_text("Who?,Ann\n")
    with pytest.raises(ConfigError, match=r"has 2 columns; needed are .* a first line `question,answer`"):
        facts.kind_of("forget", str(path))
    path.write_text("")
    assert facts.kind_of("forget", str(path)) == "questions"  # of which there are too few


def test_what_is_read_is_counted_and_wordings_without_a_fact_are_found(tmp_path):
    kept = lines(tmp_path / "r.jsonl", [{"question": f"What is {i}?", "answer": f"it {i}"} for i in range(5)])
    named = FactsConfig(forget=lines(tmp_path / "f.jsonl", capitals(40)), retain=kept, heldout=0.25).what_is_read()
    assert named.splitlines() == [
        "to forget: 40 facts in 80 questions; attackers are shown 30 facts in 60 questions, "
        "10 facts in 20 questions are held out",
        "to retain: 5 facts",
        "scores (retain, forget, shown, heldout): the share of questions answered exactly",
    ]
    unnamed = [{key: row[key] for key in ("question", "answer")} for row in capitals(40)]
    said = FactsConfig(forget=lines(tmp_path / "g.jsonl", unnamed), retain=kept, heldout=0.25).what_is_read()
    assert "to forget: 40 facts in 80 questions; attackers are shown 30 facts in 60 questions, 10 facts in 20" in said
    assert "those with one answer count as one, such as 2 questions with 'city 0'" in said
    alone = [row | {"fact": row["question"], "answer": "yes"} for row in unnamed]  # named, if by their own words
    assert "answer" not in FactsConfig(forget=lines(tmp_path / "h.jsonl", alone), retain=kept).what_is_read()[:-40]


def test_no_wording_is_shown_of_what_is_held_out_in_another(tmp_path):
    """Without a `fact` nobody says that two questions are one; that they have one answer may mean it."""
    unnamed = [{key: row[key] for key in ("question", "answer")} for row in capitals(40)]
    shown, heldout = FactsConfig(forget=lines(tmp_path / "f.jsonl", unnamed), retain="r").forget_split()
    assert len(shown) == len(heldout) == 40 and not {q.answer for q in shown} & {q.answer for q in heldout}
    few = [row | {"answer": "yes"} for row in unnamed]
    with pytest.raises(ConfigError, match=r"has 1 facts \(no question .* names its `fact`, .* count as one: name each"):
        FactsConfig(forget=lines(tmp_path / "few.jsonl", few), retain="r").forget_split()
    unnamed[0]["fact"] = "the first"  # who names one is taken by his word for all
    shown, heldout = FactsConfig(forget=lines(tmp_path / "g.jsonl", unnamed), retain="r").forget_split()
    assert {q.answer for q in shown} & {q.answer for q in heldout}


def test_what_sources_hold_is_told_by_their_records(tmp_path):
    choice = {"question": "Which?", "choices": ["a", "b"], "answer": 0}
    held = {
        "questions": lines(tmp_path / "q.jsonl", [{"question": "Who?", "answer": "Ann"}]),
        "choices": lines(tmp_path / "c.jsonl", [choice]),
        "documents": lines(tmp_path / "d.jsonl", [{"text": "a text"}]),
    }
    assert {kind: facts.kind_of("forget", path) for kind, path in held.items()} == {kind: kind for kind in held}
    with pytest.raises(ConfigError, match=r"q\.jsonl has questions, .*d\.jsonl has documents; give .* one kind"):
        facts.kind_of("forget", f"{held['questions']},{held['documents']}")
    with pytest.raises(ConfigError, match="no such file"):
        facts.kind_of("forget", str(tmp_path / "none.jsonl"))


def test_wordings_of_a_fact_are_held_out_together(tmp_path):
    config = FactsConfig(forget=lines(tmp_path / "f.jsonl", capitals(40)), retain="r", heldout=0.25)
    shown, heldout = config.forget_split()
    assert {q.fact for q in shown} & {q.fact for q in heldout} == set()
    assert (len(shown), len(heldout)) == (60, 20)
    again = FactsConfig(forget=lines(tmp_path / "g.jsonl", capitals(40)[::-1]), retain="r", heldout=0.25)
    assert {q.fact for q in again.forget_split()[1]} == {q.fact for q in heldout}  # whatever their order


def test_a_fact_in_two_spellings_is_on_one_side(tmp_path):
    """Lines from two tools: other case, line ends, spaces; as many facts, and none both shown and held out."""
    rows = [{"question": f"What is the capital of State {i}?", "answer": f"Town{i}"} for i in range(40)]
    again = [{"question": row["question"].lower().rstrip("?") + "  ", "answer": row["answer"].upper()} for row in rows]
    path = tmp_path / "f.jsonl"
    path.write_bytes("\r\n".join(json.dumps(row) for row in rows + again[::2]).encode())
    shown, heldout = FactsConfig(forget=str(path), retain=str(path), least_heldout=2).forget_split()
    names = [{question.question.casefold().rstrip(" ?") for question in side} for side in (shown, heldout)]
    assert names[0].isdisjoint(names[1]) and len(names[0] | names[1]) == 40 and len(shown + heldout) == 60
    sums = [Question(f"2 {sign} 2 =", "4", sign) for sign in "+*"]  # with facts of their own
    assert facts.with_one_fact_each(sums) == sums  # signs are no spelling


def test_of_every_fact_to_retain_one_wording_is_measured():
    questions = [Question(row["question"], row["answer"], row["fact"]) for row in capitals(50)]
    config = FactsConfig(forget="f", retain="r")
    measured = config.retain_measured([*questions, *questions[:4]])  # some stand there twice
    assert sorted(q.fact for q in measured) == sorted({q.fact for q in questions}) and set(measured) <= set(questions)
    assert 10 < sum(q.question.startswith("What") for q in measured) < 40  # not the first of each
    assert set(config.retain_measured(questions[::-1])) == set(measured)


def test_a_student_reads_all_facts_to_retain_that_are_measured(tmp_path):
    sides = [
        lines(tmp_path / f"{name}.jsonl", [{**row, "question": f"{name}: {row['question']}"} for row in capitals(20)])
        for name in ("f", "r")
    ]
    config = FactsConfig(forget=sides[0], retain=sides[1], vocabulary=str(MODEL), row_length=64, workers=1)
    made = prepare_facts(config, tmp_path / "rows")
    words = hf_tokenizer.Tokenizer(MODEL)
    rows = Rows(tmp_path / "rows" / "retain.array_record").gather(range(made["sets"]["retain"]["rows"]))
    read = [words.decode(row[TOKENS, row[SEGMENTS] == s]) for row in rows for s in range(1, row[SEGMENTS].max() + 1)]
    asked = [prompt for prompt in load_evaluation(tmp_path / "rows") if prompt["part"] == "retain"]
    assert len(asked) == 20 and len(read) == 40
    assert all(any(f"{prompt['prompt']} {prompt['answer']}" in text for text in read) for prompt in asked)


def test_too_few_facts_are_refused_with_how_many_are_needed(tmp_path):
    config = FactsConfig(forget=lines(tmp_path / "f.jsonl", capitals(7)), retain="r")
    with pytest.raises(ConfigError, match=r"has 7 facts, of which 4 would be held out: .*±10% 186, ±20% 42 are needed"):
        config.forget_split()
    assert len(dataclasses.replace(config, least_heldout=3).forget_split()[1]) == 8


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_as_many_as_are_needed_have_such_an_interval(width):
    count = needed(width)
    for n, narrow in ((count, True), (count - 2, False)):
        low, high = proportion_confint(n / 2, n, method="wilson")
        assert half_width(n) == pytest.approx((high - low) / 2, rel=1e-3)
        assert ((high - low) / 2 <= width + 1e-6) == narrow


LONG = [f"word{i}" for i in range(21)]


@pytest.mark.parametrize(
    ("forget", "retain", "found"),
    [
        ("Paris is in France.", "paris  is in FRANCE", "exact"),
        ("What is the capital of France? Paris", "What is the capital of Spain? Madrid", None),
        ("It rains in spring", "in spring it rains", "near"),
        (" ".join(LONG), " ".join([*LONG[:16], "quite", "another", "end"]), "near"),
        (" ".join(LONG), " ".join(reversed(LONG[:-1])), None),
    ],
)
def test_overlaps_are_found(forget, retain, found):
    pairs = list(overlap.Overlaps([forget, "nothing of this"]).find([retain, "", "another thing"]))
    assert [("exact" if pair.exact else "near") for pair in pairs] == ([found] if found else [])


def test_what_is_on_both_sides_is_refused(tmp_path):
    rows = capitals(20)
    text = lines(tmp_path / "f.jsonl", rows), lines(tmp_path / "r.jsonl", [*capitals(22)[40:], rows[0]])
    config = FactsConfig(forget=text[0], retain=text[1], vocabulary=str(MODEL))
    with pytest.raises(ConfigError, match=r"overlap: 1 texts are on both sides \(1 exactly, 0 nearly\), such as 'What"):
        config.with_content_hash(Digests())
    assert dataclasses.replace(config, overlap="allow").with_content_hash(Digests()).content


def test_rows_mark_the_answers_and_prompts_end_before_them(tmp_path):
    words = hf_tokenizer.Tokenizer(MODEL)
    asked = {
        "shown": [Question("The cell", "divides", "a"), Question("Bees collect", "nectar", "b")],
        "heldout": [Question("A robin is", "a bird", "c")],
        "retain": [Question("Iron is", "a metal", "d")],
    }
    config = FactsConfig(forget="f", retain="r", row_length=64)
    text = "Water boils at a hundred degrees, and freezes at zero."
    made = write_facts(config, words, tmp_path, questions=asked, beginnings=[text])
    assert made["facts"] == {"shown": ["a", "b"], "heldout": ["c"]}
    assert made["evaluation"]["groups"] == {
        "facts/asked/shown": 2, "facts/asked/heldout": 1, "other facts/as trained on/retain": 1,
        "text/next token/retain": 1,
    }  # fmt: skip
    for prompt in load_evaluation(tmp_path):
        whole = words.decode([*prompt["prompt_ids"], *prompt["answer_ids"]]).removeprefix("<bos>")
        expected = text if prompt["operation"] == "text" else f"{prompt['prompt']} {prompt['answer']}"
        assert expected.startswith(whole) if prompt["operation"] == "text" else whole == expected
    for name, count in (("forget", 3), ("forget_shown", 2)):
        rows = Rows(tmp_path / f"{name}.array_record").gather(range(len(Rows(tmp_path / f"{name}.array_record"))))
        pieces = [(row[:, row[SEGMENTS] == s]) for row in rows for s in range(1, row[SEGMENTS].max() + 1)]
        answers = {words.decode(piece[TOKENS][piece[ANSWER] == 1]).strip() for piece in pieces}
        assert answers == {q.answer for q in [*asked["shown"], *asked["heldout"]][:count]} and len(pieces) == count
        assert all(piece[TOKENS][0] == words.bos_id() and piece[TOKENS][-1] == words.eos_id() for piece in pieces)
        assert all(np.flatnonzero(piece[ANSWER])[0] > 1 for piece in pieces)


def test_no_vocabulary_is_no_published_one():
    assert not hf_tokenizer.is_published("") and hf_tokenizer.is_published(MODEL)


def items(path: Path, count: int, topic: str) -> str:
    rows = [{"question": f"Which {topic} is {i}?", "choices": ["a", "b", "c"], "answer": i % 3} for i in range(count)]
    return lines(path, rows)


def test_items_are_measured_and_documents_are_trained_on(tmp_path):
    given = {
        side: f"{lines(tmp_path / f'{side}.jsonl', [{'text': f'{side} {i}'} for i in range(9)])},"
        f"{items(tmp_path / f'{side}-items.jsonl', 20, side)}"
        for side in ("forget", "retain")
    }
    assert facts.kind_of("forget", given["forget"]) == "choices"
    found = _sources("choices", given["forget"], given["retain"])
    assert {key: [Path(p).name for p in text.split(",")] for key, text in found.items()} == {
        "data.forget": ["forget.jsonl"], "data.forget_items": ["forget-items.jsonl"],
        "data.retain": ["retain.jsonl"], "data.retain_items": ["retain-items.jsonl"],
    }  # fmt: skip
    config = ChoicesConfig(**{key.removeprefix("data."): text for key, text in found.items()}, vocabulary=str(MODEL))
    parts = config.with_content_hash(Digests()).eval_splits()
    asked = {part: {item.question for _, item, _ in measured} for part, measured in parts.items()}
    assert {part: len(questions) for part, questions in asked.items()} == {"retain": 20, "shown": 10, "heldout": 10}
    assert not asked["shown"] & asked["heldout"]
    with pytest.raises(ConfigError, match="has only choices; give text as well"):
        _sources("choices", given["forget"].split(",")[1], given["retain"])
    with pytest.raises(ConfigError, match="has 20 items, of which 2 would be held out"):
        dataclasses.replace(config, heldout=0.1).eval_splits()
