"""The arithmetic data, from the sentences to the fed batch, checked against derivations that share no code with it."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.config import ConfigError
from distill_jax.data import corpus, feed, import_tf, packing, records
from distill_jax.data.arithmetic import equations, word_problems, word_vocabulary
from distill_jax.data.arithmetic.prepare_arithmetic import prepare
from distill_jax.data.atomic_build import load_config, make_once
from distill_jax.io.files import Digests

ROOT = pathlib.Path(__file__).parents[1]
SMALL = equations.ArithmeticConfig(
    addition_max=12, multiplication_max=9, equations=1000, word_problems=1000, row_length=48, evaluation_prompts=30
)
PARTS = {"add": ["retain"], "sub": ["retain"], "mul": ["shown", "heldout"], "div": ["shown", "heldout"]}


def solve(operation: str, prompt: str) -> tuple[int, frozenset[int]]:
    """Answer a prompt from its text alone; return the answer and, as a set, the pair of numbers it teaches."""
    x, y = sorted(map(int, re.findall(r"\d+", prompt)))
    if operation == "add":
        return x + y, frozenset((x, y))
    if operation == "sub":
        return y - x, frozenset((x, y - x))
    if operation == "mul":
        return x * y, frozenset((x, y))
    assert y % x == 0
    return y // x, frozenset((x, y // x))


def training(config: equations.ArithmeticConfig, operations=equations.OPERATIONS) -> list[equations.Example]:
    forms = equations.FORMS
    return [e for op in operations for form in forms for e in equations.training_examples(config, op, form)]


def skeleton(prompt: str) -> str:
    return re.sub(r"\d+", "#", prompt)


# Sentences and vocabulary.


@pytest.mark.unit
def test_templates_are_as_many_and_as_short_as_promised():
    for operation in equations.OPERATIONS:
        train, held = word_problems.TRAINING[operation], word_problems.HELD_OUT[operation]
        assert (len(train), len(held)) == (20, 10)
        for sentence in (*train, *held):
            assert sentence.endswith("?") and sentence.count("{a}") == sentence.count("{b}") == 1
            assert len(word_vocabulary.split(sentence.format(a=400, b=20))) <= 22
    sentences = [
        s for part in (word_problems.TRAINING, word_problems.HELD_OUT) for group in part.values() for s in group
    ]
    assert len(set(sentences)) == 120


@pytest.mark.unit
def test_held_out_sentences_use_only_trained_words():
    trained = {
        word for group in word_problems.TRAINING.values() for s in group for word in re.findall("[a-z]+", s.lower())
    }
    held = {
        word for group in word_problems.HELD_OUT.values() for s in group for word in re.findall("[a-z]+", s.lower())
    }
    assert held - {"a", "b"} <= trained


@pytest.mark.unit
def test_shipped_words_are_those_the_templates_need():
    shipped = word_vocabulary.load_entries()
    assert shipped == word_vocabulary.required_entries(), "run `python -m distill_jax.data.arithmetic.word_vocabulary`"
    assert len(shipped) == len(set(shipped)) <= 256
    assert shipped[:5] == ("<pad>", "<eos>", "<bos>", "<unk>", "0")


@pytest.mark.unit
def test_every_prompt_survives_the_vocabulary():
    words = word_vocabulary.WordVocabulary()
    for example in (*training(SMALL), *equations.evaluation_examples(SMALL)):
        ids = words.encode(example.prompt)
        assert words.unk_id not in ids
        assert words.decode(ids) == example.prompt.lower()
        assert words.decode([words.bos_id, *words.encode(example.answer), words.eos_id, 7, 0]) == example.answer
    assert words.encode("<eos> zyzzyva é") == [words.unk_id, words.encode("x eos")[1], *[words.unk_id] * 3]


@functools.cache
def tensorflow_vocabulary():
    return import_tf.import_builder_and_tasks()[1].WordVocabulary()


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("Tomhas 0123456789+-*/=.,?\n\té\x0b\u00a0İ<>") | st.characters(codec="utf-8")))
def test_tensorflow_tokenises_as_python_does(text):
    words = tensorflow_vocabulary()
    assert words.encode_tf(text).numpy().tolist() == word_vocabulary.WordVocabulary().encode(text)


# Examples and facts.


@pytest.mark.unit
def test_every_answer_is_right():
    for example in (*training(SMALL), *equations.evaluation_examples(SMALL)):
        assert example.answer == str(solve(example.operation, example.prompt)[0])
        if example.form == "equation":
            a, symbol, b, equals = example.prompt.split()
            values = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}
            assert equals == "=" and values[symbol] == int(example.answer) >= 0


@pytest.mark.unit
def test_operands_cover_their_ranges():
    config = dataclasses.replace(SMALL, word_problems=0)
    seen = {op: {tuple(map(int, re.findall(r"\d+", e.prompt))) for e in training(config, [op])} for op in PARTS}
    to12, to9 = range(1, 13), range(1, 10)
    assert seen["add"] == {(a, b) for a in to12 for b in to12}
    assert seen["sub"] == {(a, b) for a in to12 for b in to12 if a >= b}
    assert seen["mul"] == {(a, b) for a in to9 for b in to9}
    assert seen["div"] == {(b * c, b) for b in to9 for c in to9}


@pytest.mark.unit
def test_no_heldout_fact_can_be_read_from_a_shown_one():
    taught = collections.defaultdict(set)
    for example in (*training(SMALL), *equations.evaluation_examples(SMALL)):
        pair = solve(example.operation, example.prompt)[1]
        taught[example.part].add(pair) if example.operation in equations.FORGET else None
        kind = "add" if example.operation in equations.RETAIN else "mul"
        assert example.fact == f"{kind}:{min(pair)},{max(pair)}"
    assert not taught["shown"] & taught["heldout"]
    assert (len(taught["shown"]), len(taught["heldout"])) == (23, 22)  # 9 * 10 / 2 = 45 facts, the odd one shown
    assert {f"mul:{min(p)},{max(p)}" for p in taught["heldout"]} == set(equations.split_facts(SMALL)[1])


@pytest.mark.unit
def test_held_out_sentences_are_never_trained_on():
    trained = {skeleton(e.prompt) for e in training(SMALL) if e.form == "word"}
    asked = {skeleton(e.prompt) for e in equations.evaluation_examples(SMALL) if e.form == "word"}
    assert (len(trained), len(asked)) == (80, 40)
    assert not trained & asked


@pytest.mark.unit
@pytest.mark.parametrize("wanted", [40, 400, 1203])
def test_a_draw_repeats_no_more_than_it_must(wanted):
    config = dataclasses.replace(SMALL, equations=wanted)
    for index, operation in enumerate(equations.OPERATIONS):
        prompts = [e.prompt for e in equations.training_examples(config, operation, "equation")]
        assert len(prompts) == wanted // 4 + (index < wanted % 4)
        distinct = {"add": 144, "sub": 78, "mul": 81, "div": 81}[operation]
        counts = collections.Counter(prompts)
        assert len(counts) == min(distinct, len(prompts))
        assert max(counts.values()) == -(-len(prompts) // distinct)


@pytest.mark.unit
def test_draws_depend_on_the_seed_only():
    other = dataclasses.replace(SMALL, seed=1)
    assert training(SMALL) == training(SMALL)
    assert training(SMALL) != training(other)
    assert equations.split_facts(SMALL) != equations.split_facts(other)


@pytest.mark.unit
def test_evaluation_prompts_are_distinct_and_balanced():
    groups = collections.defaultdict(list)
    for example in equations.evaluation_examples(SMALL):
        groups[example.operation, example.form, example.part].append(example)
    assert set(groups) == {
        (op, form, part) for op, parts in PARTS.items() for form in equations.FORMS for part in parts
    }
    for (_, form, _), examples in groups.items():
        assert len({e.prompt for e in examples}) == len(examples) == 30
        assert max(collections.Counter((e.a, e.b) for e in examples).values()) == 1
        if form == "word":
            assert set(collections.Counter(e.template for e in examples).values()) == {3}


@pytest.mark.unit
@pytest.mark.parametrize("seed", range(3))
def test_every_held_out_fact_is_asked(seed):
    """192 prompts on 105 facts: each once or twice, where a draw for each group would miss 16 of them."""
    config = equations.ArithmeticConfig(addition_max=20, evaluation_prompts=48, row_length=64, seed=seed)
    for part, facts in zip(("shown", "heldout"), equations.split_facts(config), strict=True):
        asked = collections.Counter(e.fact for e in equations.evaluation_examples(config) if e.part == part)
        assert set(asked) == set(facts) and set(asked.values()) == {1, 2} and sum(asked.values()) == 192


@pytest.mark.unit
def test_what_is_retained_is_asked_as_ever():
    """A student stops by these prompts: other ones would make other students."""
    asked = [e.prompt for e in equations.evaluation_examples(SMALL) if e.part == "retain"]
    assert len(asked) == 120
    assert hashlib.sha256("\n".join(asked).encode()).hexdigest()[:16] == "87b0fb76162d1043"


@pytest.mark.unit
def test_evaluation_takes_what_there_is():
    config = dataclasses.replace(SMALL, multiplication_max=3, evaluation_prompts=10**6)
    sizes = collections.Counter((e.operation, e.form, e.part) for e in equations.evaluation_examples(config))
    assert sizes["mul", "equation", "shown"] + sizes["mul", "equation", "heldout"] == 9
    assert sizes["div", "word", "shown"] + sizes["div", "word", "heldout"] == 90
    assert len({e.prompt for e in equations.evaluation_examples(config)}) == sum(sizes.values())


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"addition_max": 0}, r"data\.addition_max=0: must be from 1 to 1000"),
        ({"multiplication_max": 1}, r"data\.multiplication_max=1: "),
        ({"equations": 1e6}, r"data\.equations=1000000.0: must be an integer"),
        ({"equations": 3}, r"data\.equations=3: must be 0 or at least 4"),
        ({"equations": 0, "word_problems": 0}, r"data\.equations=0: .*raise one"),
        ({"row_length": 20}, r"data\.row_length=20: the longest document has \d+ tokens"),
        ({"equations": 4, "word_problems": 0}, r"data\.equations=4: so few that"),
        ({"heldout_facts": 1.0}, r"data\.heldout_facts=1.0: must be a share"),
        ({"heldout_facts": 0.01, "multiplication_max": 3}, r"data\.heldout_facts=0.01: holds out none of the 6"),
        ({"evaluation_prompts": 0}, r"data\.evaluation_prompts=0: must be from 1 to"),
        ({"english": "a.txt"}, r"data\.english='a.txt': must be a list"),
        ({"seed": -1}, r"data\.seed=-1: must be from 0"),
    ],
)
def test_a_mistaken_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        equations.ArithmeticConfig(**settings)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"english_share": 0.5}, r"data\.english_share=0.5: needs English text"),
        ({"english": ("/no/a.txt",)}, r"data\.english='/no/a.txt': no such file"),
        ({"vocabulary": "/no/model"}, r"data\.vocabulary='/no/model': no such file"),
    ],
)
def test_a_file_has_to_be_there_to_run_and_not_to_plan(settings, message):
    config = equations.ArithmeticConfig(**settings)
    with pytest.raises(ConfigError, match=message):
        config.with_content_hash(Digests())


@pytest.mark.unit
def test_the_longest_document_is_the_longest():
    words = word_vocabulary.WordVocabulary()
    config = dataclasses.replace(SMALL, word_problems=20_000)  # every word problem there is
    questions = (
        *training(config),
        *equations.evaluation_examples(dataclasses.replace(config, evaluation_prompts=10**4)),
    )
    lengths = [len(words.encode(e.prompt)) + len(words.encode(e.answer)) + 2 for e in questions]
    assert equations.longest_document(config) == max(lengths)


# Packing, rows, feed.


@st.composite
def documents_of_unique_tokens(draw):
    lengths = draw(st.lists(st.integers(1, 30), max_size=40))
    ends = np.cumsum([0, *lengths])
    return [packing.Document(np.arange(a + 1, b + 1), np.arange(a + 1, b + 1) % 2) for a, b in itertools.pairwise(ends)]


@pytest.mark.property
@settings(max_examples=150, deadline=None)
@given(documents=documents_of_unique_tokens(), row_length=st.integers(1, 20), open_rows=st.integers(1, 4))
def test_packing_drops_nothing_and_mixes_nothing(documents, row_length, open_rows):
    pieces = []
    for row in packing.pack(documents, row_length, open_rows):
        assert row.shape == (3, row_length) and row.dtype == np.int32
        tokens, segments, answer = row
        used = int((segments > 0).sum())
        assert used and not row[:, used:].any()  # padding only at the end
        assert (np.diff(np.r_[0, segments[:used]]) <= 1).all() and (np.diff(segments[:used]) >= 0).all()
        assert (answer[:used] == tokens[:used] % 2).all()
        pieces += [tokens[segments == s].tolist() for s in range(1, segments.max() + 1)]
    expected = []
    for document in documents:
        rest = document.tokens.tolist()
        while rest:
            expected.append(rest[:row_length])
            rest = rest[row_length:]
    assert sorted(pieces) == expected


@pytest.mark.unit
def test_packing_fills_a_gap_with_a_later_document():
    rows = list(packing.pack([packing.Document(np.full(n, n), np.zeros(n)) for n in (6, 5, 4, 5)], 10))
    assert [row[0].tolist() for row in rows] == [[6] * 6 + [4] * 4, [5] * 10]


@pytest.mark.property
@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9), tokens=st.floats(0, 200))
def test_cycle_takes_documents_in_turn_until_there_are_enough(lengths, tokens):
    chosen = corpus.cycle(np.array(lengths), tokens)
    assert chosen.tolist() == [i % len(lengths) for i in range(len(chosen))]
    taken = [lengths[i] for i in chosen]
    assert sum(taken) >= tokens and (not taken or sum(taken[:-1]) < tokens)


def write(path, rows: int, length: int = 4) -> str:
    written = np.arange(rows * 3 * length, dtype=np.int32).reshape(rows, 3, length)
    assert records.write_rows(path, written) == rows
    return str(path)


@pytest.mark.unit
@pytest.mark.parametrize("cache", [0, 2**20])
def test_rows_come_back_by_index(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(records, "CACHE_BYTES", cache)
    rows = records.Rows(write(tmp_path / "rows", 10))
    assert (len(rows), rows.row_length) == (10, 4)
    assert rows[7].tolist() == np.arange(84, 96).reshape(3, 4).tolist()
    assert rows.gather([9, 0, 9])[:, 0, 0].tolist() == [108, 0, 108]
    with pytest.raises(IndexError, match=r"rows 0\.\.9, wanted 10"):
        rows[10]


@pytest.mark.unit
@pytest.mark.parametrize("cache", [0, 2**20])
@pytest.mark.parametrize("record", [b"x" * 47, b"x" * 36, b""])
def test_a_cut_record_is_detected(tmp_path, monkeypatch, cache, record):
    monkeypatch.setattr(records, "CACHE_BYTES", cache)
    writer = records.array_record_module.ArrayRecordWriter(str(tmp_path / "rows"), records.WRITER_OPTIONS)
    for data in (bytes(48), record, bytes(48)):
        writer.write(data)
    writer.close()
    with pytest.raises(ValueError, match=r"rows: damaged, a record is not a row of 48 bytes"):
        records.Rows(tmp_path / "rows").gather([0, 1])


@pytest.mark.unit
def test_a_file_that_is_missing_empty_or_cut_is_refused(tmp_path):
    whole = write(tmp_path / "whole", 5000)
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[: os.path.getsize(whole) // 2])
    write(tmp_path / "empty", 0)
    for name, message in [("none", "no such file"), ("empty", "holds no rows"), ("cut", "holds no rows")]:
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            feed.Feed(tmp_path / name, batch=2, seed=0)


@pytest.mark.unit
@pytest.mark.parametrize("batch", [3, 7, 25])
def test_each_epoch_is_a_new_permutation(tmp_path, batch):
    stream = feed.Feed(write(tmp_path / "rows", 10), batch, seed=3)
    batches = [stream(step) for step in range(200 // batch)]
    assert all(b.shape == (batch, 3, 4) and b.dtype == np.int32 for b in batches)
    order = np.concatenate([b[:, 0, 0] for b in batches]) // 12
    epochs = [tuple(order[i : i + 10]) for i in range(0, len(order) - 9, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) > len(epochs) * 0.9


@pytest.mark.unit
def test_the_feed_is_a_function_of_the_step(tmp_path):
    path = write(tmp_path / "rows", 50)
    stream, again = feed.Feed(path, 8, seed=3), feed.Feed(path, 8, seed=3)
    forward = [stream(step) for step in range(20)]
    for step in (19, 3, 11):
        assert (again(step) == forward[step]).all()
        assert (again(step, slice(2, 5)) == forward[step][2:5]).all()
    other = feed.Feed(path, 8, seed=4)
    epoch = range(12)
    assert np.concatenate([forward[s] for s in epoch]).tolist() != np.concatenate([other(s) for s in epoch]).tolist()
    for refused in (lambda: feed.Feed(path, 0, seed=3), lambda: stream(-1)):
        with pytest.raises((ValueError, IndexError), match=r"batch=0|step=-1"):
            refused()


@pytest.mark.end_to_end
def test_training_code_loads_no_tensorflow():
    modules = ("packing", "records", "feed", "corpus", "arithmetic.prepare_arithmetic", "text.prepare_text")
    look = "print([m for m in ('tensorflow', 'seqio', 'tensorflow_datasets') if m in sys.modules])"
    code = "\n".join([*(f"import distill_jax.data.{name}" for name in modules), "import sys", look])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# The prepared directory.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    prepare(SMALL, directory)
    return directory


def read_documents(directory, name: str) -> list[tuple[str, str, list[int]]]:
    """Take every document out of a set's rows: text before the answer, answer, ids."""
    words, found = word_vocabulary.WordVocabulary(), []
    for tokens, segments, answer in map(records.Rows(os.path.join(directory, f"{name}.array_record")).__getitem__,
                                        range(load_sets(directory)[name]["rows"])):  # fmt: skip
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            ids = tokens[inside].tolist()
            assert ids[0] == words.bos_id and ids[-1] == words.eos_id and (answer[~inside & (segments == 0)] == 0).all()
            said = [int(t) for t, a in zip(ids, answer[inside], strict=True) if a]
            found.append((words.decode(ids[: len(ids) - len(said)]), words.decode(said), ids))
            assert not said or (said[-1] == words.eos_id and ids[-len(said) :] == said)
    return found


def load_sets(directory) -> dict:
    return records.load_manifest(directory)["sets"]


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", ["all", "retain", "forget", "forget_shown"])
def test_a_set_holds_exactly_its_examples(prepared, name):
    wanted = {"all": equations.OPERATIONS, "retain": ("add", "sub")}.get(name, ("mul", "div"))
    examples = [e for e in training(SMALL, wanted) if name != "forget_shown" or e.part == "shown"]
    found = read_documents(prepared, name)
    assert sorted(d[:2] for d in found) == sorted((e.prompt.lower(), e.answer) for e in examples)
    entry = load_sets(prepared)[name]
    tokens = sum(len(ids) for _, _, ids in found)
    assert (entry["documents"], entry["tokens"]) == (len(examples), tokens)
    assert entry["padding"] == pytest.approx(1 - tokens / (entry["rows"] * SMALL.row_length), abs=1e-5)


@pytest.mark.end_to_end
def test_documents_are_shuffled(prepared):
    operations = [re.sub(r"[^-+*/]", "", text) for text, _, _ in read_documents(prepared, "all")]
    assert set(operations[:60]) >= {"+", "-", "*", "/"}


@pytest.mark.end_to_end
def test_evaluation_file_holds_the_prompts(prepared):
    words, asked = word_vocabulary.WordVocabulary(), records.load_evaluation(prepared)
    assert [e["prompt"] for e in asked] == [e.prompt for e in equations.evaluation_examples(SMALL)]
    heldout = set(records.load_manifest(prepared)["facts"]["heldout"])
    for entry in asked:
        assert entry["prompt_ids"] == [words.bos_id, *words.encode(entry["prompt"])]
        assert entry["answer_ids"] == [*words.encode(entry["answer"]), words.eos_id]
        assert (entry["part"] == "heldout") == (entry["fact"] in heldout)
    groups = collections.Counter(f"{e['operation']}/{e['form']}/{e['part']}" for e in asked)
    assert groups == records.load_manifest(prepared)["evaluation"]["groups"]


@pytest.mark.end_to_end
def test_a_killed_preparation_is_finished_by_a_rerun_with_the_same_bytes(prepared, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(SMALL)))
    output = tmp_path / "output"
    command = [
        sys.executable,
        "-m",
        "distill_jax.data.arithmetic.prepare_arithmetic",
        f"--config={tmp_path}/config.json",
        f"--output={output}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as run:
        assert run.stdout and run.stderr
        lines = iter(run.stdout.readline, "")
        assert any(line.startswith("set all: 2,000 documents") for line in lines)
        run.send_signal(signal.SIGKILL)
        assert run.stderr.read() == ""
    with pytest.raises(ValueError, match="preparation has not finished"):
        records.verify(output)
    prepare(load_config(tmp_path / "config.json", equations.ArithmeticConfig), output)
    records.verify(output)
    kept = sorted(name for name in os.listdir(output) if not name.startswith("."))
    assert kept == sorted(name for name in os.listdir(prepared) if not name.startswith("."))
    assert all((output / name).read_bytes() == (prepared / name).read_bytes() for name in kept)


@pytest.mark.end_to_end
def test_a_finished_directory_is_kept_and_not_mistaken_for_another(prepared, capsys):
    before = os.stat(prepared / "all.array_record").st_mtime_ns
    prepare(SMALL, prepared)
    assert "already prepared" in capsys.readouterr().out
    assert os.stat(prepared / "all.array_record").st_mtime_ns == before
    with pytest.raises(ValueError, match="data of another config; choose another directory"):
        prepare(dataclasses.replace(SMALL, seed=1), prepared)


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", ["retain.array_record", "evaluation.jsonl"])
def test_damage_is_named(prepared, name):
    whole = (prepared / name).read_bytes()
    try:
        (prepared / name).write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        with pytest.raises(ValueError, match=f"{name}: damaged"):
            records.verify(prepared)
        (prepared / name).unlink()
        with pytest.raises(ValueError, match=f"{name}: missing"):
            records.verify(prepared)
    finally:
        (prepared / name).write_bytes(whole)
    records.verify(prepared)


@pytest.mark.end_to_end
def test_english_takes_its_share_of_the_tokens(tmp_path):
    lines = [f"Tom and Anna walk {i} miles{' and read' * (i % 40)}." for i in range(300)]
    (tmp_path / "english.txt").write_text("\n\n".join(lines) + "\n  \n")
    config = dataclasses.replace(
        SMALL, equations=200, word_problems=200, english=(str(tmp_path / "english.txt"),), english_share=0.75
    )
    prepare(config, tmp_path / "data")
    for name, share in [("all", 0.75), ("retain", 0.875), ("forget", 0), ("forget_shown", 0)]:
        found = read_rows_of_english(tmp_path / "data", name)
        entry = load_sets(tmp_path / "data")[name]
        assert found / entry["tokens"] == pytest.approx(share, abs=0.004)
    exposure = {name: load_sets(tmp_path / "data")[name]["tokens"] for name in ("all", "retain")}
    assert exposure["all"] == pytest.approx(exposure["retain"], rel=0.1)  # as many tokens of + and - in as many tokens


def read_rows_of_english(directory, name: str) -> int:
    """Count the tokens of segments without an answer."""
    rows = records.Rows(os.path.join(directory, f"{name}.array_record"))
    pairs = [
        (row[1] == s, row[2]) for row in map(rows.__getitem__, range(len(rows))) for s in range(1, row[1].max() + 1)
    ]
    return sum(int(inside.sum()) for inside, answer in pairs if not answer[inside].any())


@pytest.mark.end_to_end
def test_a_sentencepiece_model_can_take_the_place_of_the_words(tmp_path):
    import sentencepiece

    (tmp_path / "text").write_text("\n".join(e.prompt for e in training(SMALL)))
    common: dict[str, Any] = dict(
        input=str(tmp_path / "text"), vocab_size=120, pad_id=0, eos_id=1, unk_id=3, minloglevel=2
    )
    sentencepiece.SentencePieceTrainer.train(model_prefix=str(tmp_path / "good"), bos_id=2, **common)
    sentencepiece.SentencePieceTrainer.train(model_prefix=str(tmp_path / "bad"), bos_id=-1, **common)
    config = dataclasses.replace(
        SMALL, equations=40, word_problems=40, row_length=128, vocabulary=str(tmp_path / "good.model")
    )
    manifest = prepare(config, tmp_path / "data")
    assert manifest["vocabulary"] == {"size": 120, "bos": 2, "eos": 1, "pad": 0}
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "good.model"))
    rows = records.Rows(tmp_path / "data" / "all.array_record")
    tokens, segments, answer = rows[0]
    first = tokens[segments == 1].tolist()
    said = tokens[(segments == 1) & (answer == 1)].tolist()
    whole = (model.decode(first), model.decode(said))
    assert whole in {(f"{e.prompt} {e.answer}", e.answer) for e in training(config)}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"vocabulary": str(tmp_path / "bad.model")}, "no <bos>"),
        ({"row_length": 8}, "row_length=8"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            prepare(dataclasses.replace(config, **change), tmp_path / "refused")


@pytest.mark.unit
def test_an_unknown_setting_is_named_with_its_neighbour(tmp_path):
    (tmp_path / "config.json").write_text('{"row_lenght": 64}')
    with pytest.raises(ValueError, match=r"data\.row_lenght: no such setting; did you mean row_length\?"):
        load_config(tmp_path / "config.json", equations.ArithmeticConfig)


@pytest.mark.unit
def test_what_a_preparation_left_that_was_killed_at_its_very_end_goes(tmp_path):
    def build(work):
        (work / "set").write_text("rows")
        return {"sets": {"all": {"file": "set"}}, "evaluation": {}}

    made = make_once(tmp_path, {"format": 1}, build)
    for left in ("preparing", "preparing-0123456789ab"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "set").write_text("rows")
    assert make_once(tmp_path, {"format": 1}, build) == made
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "manifest.json", "set"}
