"""Preparation of text with TensorFlow: what goes in comes out, once, whatever happens in between."""

from __future__ import annotations

import collections
import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.data import import_tf, records, show_rows
from distill_jax.data.text import mixing, prepare_text, sentencepiece_vocab, sources, tokenise
from distill_jax.data.text.text_config import SAMPLES, TextConfig
from distill_jax.data.text.token_shards import Documents, ShardWriter
from tests.spoil import flip

ROOT = Path(__file__).parents[1]
CONFIG = TextConfig(
    retain=f"{SAMPLES}/sample_english.txt", forget=f"{SAMPLES}/sample_korean.txt",
    row_length=32, vocabulary_size=1024, validation_share=0.2, evaluation_bytes=700,
)  # fmt: skip


def lines(name: str) -> set[str]:
    return set((SAMPLES / f"sample_{name}.txt").read_text().splitlines())


def texts(directory: Path, rows: np.ndarray) -> collections.Counter[str]:
    """Decode the documents of rows; those longer than a row are joined again by their overlap of one token."""
    model = sentencepiece_vocab.load(directory / "vocabulary.model")
    parts = [row[0][row[1] == k].tolist() for row in rows for k in range(1, row[1].max() + 1)]
    found: collections.Counter[str] = collections.Counter()
    heads = [part for part in parts if part[0] == model.bos_id()]
    tails = collections.Counter(tuple(part) for part in parts if part[0] != model.bos_id())

    def finish(ids: list[int]) -> list[int]:
        while ids[-1] != model.eos_id():
            tail = next(t for t in tails if t[0] == ids[-1] and tails[t])  # tests' texts make it the only one
            tails[tail] -= 1
            ids = ids + list(tail[1:])
        return ids

    for head in heads:
        ids = finish(head)
        found[model.decode(ids[1:-1])] += 1
    return found


def row_tokens(rows: np.ndarray) -> int:
    return int((rows[:, 1] > 0).sum())


def contents(directory: Path) -> dict[str, str]:
    return {entry["file"]: entry["sha256"] for entry in records.entries(records.load_manifest(directory))}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("prepared")
    prepare_text.prepare_text(CONFIG, directory)
    return directory


@pytest.mark.end_to_end
def test_every_document_comes_out_once_and_whole(tmp_path):
    """Rows long enough for every document: they are decoded without joining anything."""
    wide = dataclasses.replace(CONFIG, row_length=400, tokens=0)
    manifest = prepare_text.prepare_text(wide, tmp_path)
    found = {name: texts(tmp_path, records.Rows(tmp_path / f"{name}.array_record").gather(range(told["rows"])))
             for name, told in manifest["sets"].items()}  # fmt: skip
    assert set(found["retain"]) < lines("english") and set(found["forget"]) < lines("korean")
    assert found["all"] == found["retain"] + found["forget"] and set(found["all"].values()) == {1}
    parts, evaluated, first = manifest["evaluation"]["parts"], {}, 0
    rows = records.Rows(tmp_path / records.EVALUATION_ROWS)
    for part, told in parts.items():
        evaluated[part] = texts(tmp_path, rows.gather(range(first, first + told["rows"])))
        first += told["rows"]
        assert sum(len(text.encode()) for text in evaluated[part]) == told["bytes"] <= wide.evaluation_bytes
        assert len(evaluated[part]) == told["documents"] > 0
    assert first == len(rows)
    assert not set(evaluated["retain"]) & set(found["retain"]) and not set(evaluated["heldout"]) & set(found["forget"])
    assert set(evaluated["shown"]) < lines("korean") - set(evaluated["heldout"])
    # Half of the tokens is Korean: the larger side gives no more than the smaller one has.
    tokens = [manifest["sets"][name]["tokens"] for name in ("retain", "forget")]
    assert abs(tokens[0] - tokens[1]) < 200 and sum(tokens) == manifest["sets"]["all"]["tokens"]


@pytest.mark.end_to_end
def test_rows_shorter_than_documents_lose_no_token(prepared):
    manifest = records.load_manifest(prepared)
    for name, told in manifest["sets"].items():
        rows = records.Rows(prepared / f"{name}.array_record").gather(range(told["rows"]))
        heads = sum(int((row[0][row[1] > 0] == manifest["vocabulary"]["bos"]).sum()) for row in rows)
        pieces_of = int(rows[:, 1].max(axis=1).sum())
        assert heads == told["documents"]
        assert row_tokens(rows) == told["tokens"] + pieces_of - heads  # an overlap of one for every later piece


@pytest.mark.end_to_end
def test_the_same_contents_give_the_same_bytes_elsewhere(prepared, tmp_path):
    for name in ("english", "korean"):
        (tmp_path / f"{name}.txt").write_bytes((SAMPLES / f"sample_{name}.txt").read_bytes())
    moved = {"retain": f"{tmp_path}/english.txt", "forget": f"{tmp_path}/korean.txt"}
    prepare_text.prepare_text(dataclasses.replace(CONFIG, **moved), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(prepared)


SCRIPT = """
import dataclasses, os, sys, time
from distill_jax.data.text import tokenise

@dataclasses.dataclass
class Slow:
    name: str
    seconds: float
    def __call__(self):
        open(self.name, "w").write(str(os.getpid()))
        time.sleep(self.seconds)
        return 7

if __name__ == "__main__":
    jobs = [Slow(name, float(sys.argv[1])) for name in "ab"]
    print(*tokenise.results(jobs, 2, 2 * tokenise.FEW_BYTES))
"""


def alive(process: int) -> bool:
    path = Path(f"/proc/{process}/stat")
    return path.exists() and path.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.kill
@pytest.mark.parametrize("killed", [False, True])
def test_shards_are_shared_by_processes_that_end_with_the_one_that_began_them(tmp_path, killed):
    (tmp_path / "script.py").write_text(SCRIPT)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "script.py", "60" if killed else "0.5"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        if killed:
            until = time.monotonic() + 60
            while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "ab"):
                assert time.monotonic() < until and process.poll() is None
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
        else:
            assert process.communicate(timeout=60)[0].split() == ["7", "7"]
    workers = {int((tmp_path / name).read_text()) for name in "ab"}
    assert len(workers) == 2 and process.pid not in workers
    until = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < until, "a worker outlives its parent"
        time.sleep(0.05)


@pytest.mark.kill
def test_a_killed_preparation_goes_on_with_the_shards_that_are_missing(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "SHARD_BYTES", 2000)
    whole, done = tokenise.Job.__call__, []

    def killed(job):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(job.path.name)
        return whole(job)

    monkeypatch.setattr(tokenise.Job, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_text.prepare_text(CONFIG, tmp_path)
    assert not (tmp_path / records.MANIFEST).exists()
    first, done[:] = list(done), []
    flip(next(tmp_path.glob(f"preparing-*/{first.pop()}.tokens")))  # it is as if it had not been done
    done_before = len(first)
    monkeypatch.setattr(tokenise.Job, "__call__", lambda job: (done.append(job.path.name), whole(job))[1])
    capsys.readouterr()
    prepare_text.prepare_text(CONFIG, tmp_path)
    assert "2 of 6 parts were tokenised before" in capsys.readouterr().out
    assert len(done) == 6 - done_before and not set(done) & set(first)
    # Shards are a way to cut the work, no part of what comes out: but the vocabulary is trained on their heads.
    assert contents(tmp_path) == contents(prepared)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == []


def corpus(**sides: list[tuple[int, int]]) -> tuple[SimpleNamespace, dict[tuple[str, int], np.ndarray]]:
    """Documents of one token each that have distinct hashes, or the given ones: {source: [(documents, first hash)]}."""
    hashes, places = np.zeros(0, np.int64), {}
    for role, parts in sides.items():
        for i, (count, first) in enumerate(parts):
            places[role, i] = np.arange(len(hashes), len(hashes) + count)
            hashes = np.concatenate([hashes, np.arange(first, first + count)])
    return SimpleNamespace(hashes=hashes, lengths=np.ones(len(hashes), np.int64)), places


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(20, 200), st.integers(1, 9)), min_size=1, max_size=3),
    share=st.sampled_from([0.25, 0.5, 0.8]),
    tokens=st.sampled_from([0, 500, 4000]),
)
def test_weights_are_shares_of_tokens_and_what_is_too_small_repeats(counts, share, tokens):
    retain = ",".join(f"{i}.txt?weight={weight}" for i, (_, weight) in enumerate(counts))
    config = TextConfig(retain=retain, forget="f.txt", retain_share=share, tokens=tokens)
    documents, places = corpus(retain=[(count, 0) for count, _ in counts], forget=[(150, 0)])
    split = {role: [mine for (r, _), mine in places.items() if r == role] for role in ("retain", "forget")}
    chosen, mixture = mixing.mix(config, documents, split)
    total = tokens or min(150 / (1 - share), *(n * sum(w for _, w in counts) / w / share for n, w in counts))
    assert len(chosen["forget"]) == pytest.approx((1 - share) * total, abs=1)
    for (count, weight), mine, taken in zip(counts, split["retain"], mixture["retain"].values(), strict=True):
        assert taken == pytest.approx(share * total * weight / sum(w for _, w in counts), abs=1)
        times = np.array(list(collections.Counter(d for d in chosen["retain"].tolist() if d in mine).values()))
        assert times.sum() == taken and (tokens or times.max(initial=1) == 1)
        assert times.size == min(taken, count) and np.ptp(times if times.size == count else np.append(times, 0)) <= 1


@pytest.mark.unit
def test_what_is_trained_on_is_not_held_out(capsys):
    config = TextConfig(retain="r", forget="f", valid_forget="v", validation_share=0.25)
    spread = 2**18  # hashes of which every fourth is held out
    documents, places = corpus(retain=[(400, 0)], forget=[(9, 100)], valid_forget=[(8, 105)])
    documents.hashes[:400] *= spread
    split = mixing.split(config, documents, places)
    assert documents.hashes[split["valid_forget"][0]].tolist() == [109, 110, 111, 112]
    assert "valid_forget: 4 documents are also trained on" in capsys.readouterr().out
    kept, held = (documents.hashes[np.concatenate(split[role])] for role in ("retain", "valid_retain"))
    assert len(held) == 100 and len(kept) == 300 and not set(kept) & set(held)
    assert len(split["forget"][0]) == 9  # none of them had to be held out


EMPTY = {
    "nothing to train on": ({"forget": [(0, 0)]}, "data.forget='f': no document is left to train on"),
    "nothing to hold out": ({"valid_retain": [(0, 0)]}, "data.valid_retain='w': no document is left to hold out"),
    "all held out is trained on": ({"valid_forget": [(3, 7)]}, "data.valid_forget='v': no document is left to hold"),
}


@pytest.mark.unit
@pytest.mark.parametrize("case", EMPTY)
def test_a_split_without_documents_is_named(case):
    config = TextConfig(retain="r", forget="f", valid_retain="w", valid_forget="v")
    changed, said = EMPTY[case]
    sides = {"retain": [(9, 0)], "forget": [(9, 5)], "valid_retain": [(9, 50)], "valid_forget": [(9, 90)]} | changed
    with pytest.raises(ValueError) as error:
        mixing.split(config, *corpus(**sides))
    assert said in str(error.value)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("retain", "counts", "said"),
    [
        ("a.txt,b.txt?weight=2", [5, 5], "give every source a weight, or none"),
        ("a.txt,b.txt", [5, 0], "data.retain='b.txt': holds no document to train on"),
    ],
)
def test_a_mixture_that_cannot_be_is_named(retain, counts, said):
    documents, places = corpus(retain=[(n, 0) for n in counts], forget=[(5, 0)])
    split = {role: [mine for (r, _), mine in places.items() if r == role] for role in ("retain", "forget")}
    with pytest.raises(ValueError) as error:
        mixing.mix(TextConfig(retain=retain, forget="f.txt"), documents, split)
    assert said in str(error.value)


@pytest.mark.end_to_end
def test_a_broken_document_is_named_from_inside_tensorflow_or_counted(prepared, tmp_path, capsys):
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\xfe\n" * 30)
    (tmp_path / "empty.txt").write_text("")
    # Where the vocabulary is given, nothing has read the text before.
    config = dataclasses.replace(CONFIG, retain=f"{tmp_path}/*.txt", vocabulary=f"{prepared}/vocabulary.model")
    with pytest.raises(ValueError) as error:
        prepare_text.prepare_text(config, tmp_path / "out")
    assert str(error.value).startswith(f"{tmp_path}/bad.txt:2: not UTF-8")
    more = {"broken": "skip", "valid_retain": CONFIG.retain}
    manifest = prepare_text.prepare_text(dataclasses.replace(config, **more), tmp_path / "skipped")
    told = manifest["sources"][f"retain: {tmp_path}/*.txt"]
    assert (told["documents"], told["broken"], told["empty_files"]) == (30, 30, 1)
    said = capsys.readouterr().out
    assert f"30 broken (such as {tmp_path}/bad.txt:2: not UTF-8" in said and "1 empty files" in said


@pytest.mark.end_to_end
def test_more_files_and_row_groups_than_may_be_open(prepared, tmp_path, monkeypatch):
    """And of no more tasks than one or two a source: to make one takes a quarter of a second."""
    count = 1500
    (tmp_path / "in").mkdir()
    for i in range(count):
        (tmp_path / f"in/{i:04d}.txt").write_text(f"the {i}th of the files\n")
    table = pyarrow.table({"doc": [{"text": f"파일 {i} 번째"} for i in range(count)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    named = {"retain": f"{tmp_path}/in/*.txt", "forget": f"{tmp_path}/a.parquet?field=doc.text"}
    config = dataclasses.replace(CONFIG, **named, vocabulary=f"{prepared}/vocabulary.model", evaluation_bytes=9000)
    whole, jobs = tokenise.Job.__call__, []
    monkeypatch.setattr(tokenise.Job, "__call__", lambda job: (jobs.append(job), whole(job))[1])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        manifest = prepare_text.prepare_text(config, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [told["documents"] for told in manifest["sources"].values()] == [count, count]
    assert len(jobs) == 2


@pytest.mark.unit
def test_tokens_of_more_files_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    count, rng = 400, np.random.default_rng(0)
    for i in range(count):
        writer = ShardWriter(tmp_path / str(i))
        one = np.array([1])
        writer.write({"tokens": np.array([i, i]), "lengths": 2 * one, "bytes": one, "hash": one, "first": one > 0})
        writer.finish({})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        documents = Documents(tmp_path / str(i) for i in range(count))
        order = rng.permutation(count)
        held = [documents[i] for i in order]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [document.tokens.tolist() for document in held] == [[i, i] for i in order]


@pytest.mark.unit
def test_small_neighbours_are_one_job_and_large_ones_and_those_of_unknown_size_are_not(monkeypatch):
    monkeypatch.setattr(sources, "SHARD_BYTES", 10)

    def groups(kind: str, *sizes: int) -> list[int]:
        found = [sources.Shard(sources.Source("a", kind), "a", i, i + 1, size) for i, size in enumerate(sizes)]
        said = tokenise.grouped(found)
        assert [shard for group in said for shard in group] == found
        return [len(group) for group in said]

    assert groups("text", 4, 4, 2, 1, 20, 9, 1, 0) == [3, 1, 1, 3]
    assert groups("tfds", 0, 0, 0) == [1, 1, 1]
    assert groups("text") == []


@pytest.mark.end_to_end
def test_a_document_in_pieces_is_the_document_whole(prepared, tmp_path, monkeypatch):
    from distill_jax.data.text import readers

    (tmp_path / "one.txt").write_text("가나다라 one two " * 400)
    config = dataclasses.replace(
        CONFIG, retain=f"{CONFIG.retain},{tmp_path}/one.txt", vocabulary=f"{prepared}/vocabulary.model"
    )
    monkeypatch.setattr(readers, "PIECE_BYTES", 100)
    manifest = prepare_text.prepare_text(config, tmp_path / "out")
    told = manifest["sources"][f"retain: {tmp_path}/one.txt"]
    assert told["documents"] == 1 and told["bytes"] == len(("가나다라 one two " * 400).encode())


@pytest.mark.end_to_end
def test_a_tfds_data_set_by_name(tmp_path, monkeypatch):
    """A data set prepared by TFDS itself, with none of this project's readers."""
    import tensorflow_datasets as tfds

    import_tf.import_text_tasks()
    english = sorted(lines("english"))
    tfds.dataset_builders.store_as_tfds_dataset(
        "tiny_text", version="1.0.0", data_dir=tmp_path, disable_shuffling=True,
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        split_datasets={"train": [(i, {"text": line}) for i, line in enumerate(english)], "test": [(0, {"text": "x"})]},
    )  # fmt: skip
    monkeypatch.setattr(sources, "TFDS_SHARDS", 2)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    config = dataclasses.replace(CONFIG, retain="tfds:tiny_text")
    manifest = prepare_text.prepare_text(config, tmp_path / "out")
    assert manifest["sources"]["retain: tiny_text"]["documents"] == len(english)
    assert manifest["sources"]["retain: tiny_text"]["bytes"] == sum(len(line.encode()) for line in english)
    for line, said in (
        ("tfds:tiny_text?split=dev", "has no split 'dev' but"),
        ("tfds:tiny_text?field=body", "has no field 'body' but text"),
        ("tfds:no_such_set", "tfds:no_such_set: "),
    ):
        with pytest.raises(ValueError, match=said):
            prepare_text.prepare_text(dataclasses.replace(CONFIG, retain=line), tmp_path / "other")


@pytest.mark.end_to_end
def test_what_a_model_will_see(prepared):
    out = "\n".join(show_rows.describe(prepared, examples=30))
    manifest = records.load_manifest(prepared)
    assert "vocabulary: 1,024 entries, 256 of them single bytes" in out
    assert f"set all: {manifest['sets']['all']['rows']:,} rows of 32" in out and "tokens unknown 0.00 %" in out
    assert "<bos>" in out and "<eos>" in out and "segment 1, positions 0.." in out
    shares = [float(line.split(" %")[0]) for line in out.splitlines() if "of its tokens from retain" in line]
    assert shares[0] == pytest.approx(50, abs=3) and shares[1:] == [100.0]
    first = records.Rows(prepared / "retain.array_record")[0]
    shown = out.split("set retain")[1].split("segment 1, positions 0..")[1].split("\n")[0]
    end = int(shown.split(":")[0])
    assert (first[1] == 1).sum() == end + 1
    decoded = shown.split(": ", 1)[1].replace("<bos>", "").replace("<eos>", "")
    assert any(decoded[:20].strip() in line for line in lines("english"))
