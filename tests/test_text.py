"""Text from its bytes to rows: nothing lost, nothing twice, and every fault named with its file and line."""

from __future__ import annotations

import collections
import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.config import ConfigError
from distill_jax.data import packing
from distill_jax.data.text import readers, sentencepiece_vocab, sources
from distill_jax.data.text.readers import Broken, Reader
from distill_jax.data.text.text_config import SAMPLES, TextConfig
from distill_jax.data.text.token_shards import Documents, ShardWriter, complete
from distill_jax.io.files import Digests

TEXTS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12), max_size=8)


def read(line: str, **how: bool) -> list[str]:
    """Read all documents of a source line, pieces joined."""
    (source,) = sources.parse(line, "retain")
    out: list[str] = []
    for shard in sources.shards(source):
        for piece in Reader(shard, **how):
            if piece.first:
                out.append("")
            out[-1] += piece.text
    return out


# Reading


@pytest.mark.property
@settings(max_examples=200, deadline=None)
@given(
    texts=TEXTS,
    end=st.sampled_from(["", "\n", "\r\n"]),
    shard=st.integers(1, 40),
    piece=st.integers(1, 9),
    gz=st.booleans(),
)
def test_any_cut_into_shards_and_pieces_gives_every_line_once(tmp_path_factory, texts, end, shard, piece, gz):
    path = tmp_path_factory.mktemp("lines") / ("a.txt.gz" if gz else "a.txt")
    data = ("\n".join(texts) + end).encode()
    path.write_bytes(gzip.compress(data) if gz else data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SHARD_BYTES", shard)
        patch.setattr(readers, "PIECE_BYTES", piece)
        found = read(str(path))
    # A line of blanks is left out, unless it comes in several pieces and its blankness is seen too late.
    kept = [text for text in texts if text.strip()]
    assert [text for text in found if text.strip()] == kept


@pytest.mark.unit
def test_records_hold_text_with_line_breaks(tmp_path):
    texts = ["one\ntwo", "세 번째", "  four  "]
    lines = "\n".join(json.dumps({"id": i, "body": text}) for i, text in enumerate([*texts, " "]))
    (tmp_path / "a.jsonl").write_text(lines + "\n\n")
    table = pyarrow.table({"body": [*texts, None, ""], "id": range(5)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert read(f"{tmp_path}/a.jsonl?field=body") == texts
    assert read(f"{tmp_path}/a.parquet?field=body") == texts


@pytest.mark.unit
def test_a_file_can_be_one_document(tmp_path, monkeypatch):
    text = "첫 줄\n\nline two\n" * 50
    (tmp_path / "book.txt").write_text(text)
    monkeypatch.setattr(readers, "PIECE_BYTES", 64)
    (source,) = sources.parse(f"{tmp_path}/book.txt?document=file", "retain")
    found = [piece for shard in sources.shards(source) for piece in Reader(shard)]
    assert "".join(piece.text for piece in found) == text
    assert [piece.first for piece in found].count(True) == [piece.last for piece in found].count(True) == 1
    assert max(len(piece.text.encode()) for piece in found) <= 67 and len(found) > 9  # never the whole file


FAULTS = {
    "bytes": ("a.txt", b"good\nfine\nb\xffd\nlast\n", "a.txt:3: not UTF-8 (byte 0xff)", ["good", "fine", "last"]),
    "JSON": (
        "a.jsonl",
        b'{"text": "a"}\n{"text": \n{"text": "b"}\n',
        "a.jsonl:2: no JSON (Expecting value",
        ["a", "b"],
    ),
    "field": ("a.jsonl", b'{"body": "a"}\n', "a.jsonl:1: has no field 'text' but body; name one as ?field=", []),
    "number": ("a.jsonl", b'{"text": "a"}\n\n{"text": 7}\n', "a.jsonl:3: 'text' is int, not text", ["a"]),
    "list": ("a.jsonl", b"[1]\n", "a.jsonl:1: a JSON list instead of an object", []),
    "half a character": ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl:1: half of a surrogate pair, U+D800", []),
}


@pytest.mark.unit
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("shard_bytes", [6, 2**25])
def test_a_broken_document_is_named_with_its_line_or_counted(tmp_path, monkeypatch, fault, shard_bytes):
    name, data, said, rest = FAULTS[fault]
    (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(sources, "SHARD_BYTES", shard_bytes)
    with pytest.raises(Broken) as error:
        read(f"{tmp_path}/{name}")
    assert str(error.value).startswith(f"{tmp_path}/{said}") and "data.broken='skip'" in str(error.value)
    assert read(f"{tmp_path}/{name}", skip_broken=True) == rest


@pytest.mark.unit
def test_a_long_broken_document_is_not_half_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE_BYTES", 8)
    (tmp_path / "a.txt").write_bytes(b"x" * 20 + b"\xff\nfine\n")
    with pytest.raises(Broken, match=r"a\.txt:1: not UTF-8"):
        read(f"{tmp_path}/a.txt", skip_broken=True)


@pytest.mark.unit
@pytest.mark.parametrize(("name", "said"), [("a.txt.gz", "damaged one"), ("a.parquet", "not a parquet file")])
def test_a_damaged_container_is_named(tmp_path, name, said):
    whole = gzip.compress(b"line\n" * 1000)
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=said):
        read(f"{tmp_path}/{name}")


@pytest.mark.unit
def test_a_parquet_file_that_is_damaged_inside_is_named(tmp_path):
    table = pyarrow.table({"text": [f"line {i * i}" for i in range(5000)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1000] = bytes(1000)
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(Broken, match=r"a\.parquet: damaged in row group 0"):
        read(f"{tmp_path}/a.parquet")


@pytest.mark.unit
def test_a_parquet_file_without_the_column_tells_those_it_has(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "url": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(Broken, match="has no field 'text' but body, url; name one as"):
        read(f"{tmp_path}/a.parquet")


# Settings


@pytest.mark.unit
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"retain": "a.txt?feild=x"}, "data.retain='a.txt?feild=x': no option 'feild'; did you mean field?"),
        ({"forget": "a.txt?weight=much"}, "weight must be a number"),
        ({"retain": "a.txt?document=page"}, "document is `line` or `file`"),
        ({"retain": "a?kind=xml"}, "kind=xml; choose one of text, jsonl"),
        ({"validation_share": 0.0}, "data.validation_share=0.0: must be a share"),
        ({"broken": "drop"}, "data.broken='drop': choose 'refuse' or 'skip'"),
        ({"row_length": 1}, "data.row_length=1: must be at least 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, said):
    with pytest.raises(ValueError) as error:
        TextConfig(**given)
    assert said in str(error.value)


@pytest.mark.unit
def test_sources_that_are_not_there_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a\n")
    good = f"{tmp_path}/a.txt"
    for told, said in (
        ({"retain": f"{tmp_path}/b.txt", "forget": good}, "no such file; give a text, .jsonl or .parquet file"),
        ({"retain": f"{tmp_path}/*.md", "forget": good}, "no file has such a name"),
        ({"retain": str(tmp_path), "forget": good}, "is a directory; name its files"),
        ({"retain": good}, "data.forget is empty: name its text"),
        ({"retain": good, "forget": good, "vocabulary": "none.model"}, "data.vocabulary='none.model': no such file"),
    ):
        with pytest.raises(ConfigError) as error:
            TextConfig(**told).with_content_hash(Digests())
        assert said in str(error.value)


@pytest.mark.unit
def test_text_is_known_by_what_it_holds_and_not_by_where_it_lies(tmp_path):
    def known(folder: str, text: str, **more: object) -> dict:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.txt").write_text(text)
        config = TextConfig(retain=f"{tmp_path}/{folder}/a.txt", forget=f"{tmp_path}/{folder}/*.txt", **more)
        digests = Digests(tmp_path / "digests.json")
        found = config.with_content_hash(digests).fingerprint_fields()
        digests.save()
        return found

    here = known("here", "one\ntwo\n")
    assert known("there", "one\ntwo\n") == here == known("there", "one\ntwo\n", workers=7)
    assert known("there", "one\ntwO\n") != here  # found by its time, though its size is the same
    assert known("there", "one\ntwo\n", seed=1) != here


# Rows


@pytest.mark.property
@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), row=st.integers(2, 16))
def test_with_an_overlap_every_token_but_a_first_is_a_target_once(lengths, row):
    ends = np.cumsum(lengths)
    documents = [np.arange(end - n, end) for n, end in zip(lengths, ends, strict=True)]  # every token its own number
    rows = packing.pack((packing.Document(d, d * 0) for d in documents), row, overlap=1)
    pairs: collections.Counter[tuple[int, int]] = collections.Counter()
    for tokens, segments, _ in rows:
        for i in range(row - 1):
            if segments[i] and segments[i] == segments[i + 1]:
                pairs[int(tokens[i]), int(tokens[i + 1])] += 1
    assert pairs == {(int(a), int(b)): 1 for d in documents for a, b in itertools.pairwise(d)}


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(data=st.data(), lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), max_size=9))
def test_documents_come_back_from_the_disk(tmp_path_factory, data, lengths):
    """Each document is a list of pieces; batches end anywhere."""
    path, rng = tmp_path_factory.mktemp("shard"), np.random.default_rng(len(lengths))
    examples = [(rng.integers(0, 99, n), i == 0) for document in lengths for i, n in enumerate(document)]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(examples)), max_size=4)))
    cut_at = len(lengths) and data.draw(st.integers(0, len(lengths)))
    first = sum(map(len, lengths[:cut_at]))
    paths = []
    for name, low, high in (("a", 0, first), ("b", first, len(examples))):
        writer = ShardWriter(path / name)
        edges = [low, *(c for c in cuts if low < c < high), high]
        for start, stop in itertools.pairwise(edges):
            part = examples[start:stop]
            if part:
                ids = [tokens for tokens, _ in part]
                sizes = np.array([len(tokens) for tokens in ids])
                flags = np.array([first for _, first in part])
                columns = {"lengths": sizes, "bytes": 2 * sizes, "hash": sizes, "first": flags}
                writer.write({"tokens": np.concatenate(ids), **columns})
        writer.finish({"note": name})
        assert complete(path / name)
        paths.append(path / name)
    found, ends = Documents(paths), np.cumsum([0, *map(len, lengths)])
    whole = [np.concatenate([t for t, _ in examples[a:b]]) for a, b in itertools.pairwise(ends)]
    assert [found[i].tokens.tolist() for i in range(len(found))] == [document.tolist() for document in whole]
    assert found.lengths.tolist() == [len(document) for document in whole]
    assert found.bytes.tolist() == [2 * len(document) for document in whole]
    assert found.hashes.tolist() == [document[0] for document in lengths]
    assert [note["documents"] for note in found.notes] == [cut_at, len(lengths) - cut_at]


# Vocabulary


def sample_lines() -> list[str]:
    return [
        line for name in ("english", "korean") for line in (SAMPLES / f"sample_{name}.txt").read_text().splitlines()
    ]


@pytest.mark.unit
def test_a_trained_vocabulary_loses_nothing_and_comes_out_again(tmp_path):
    models = [sentencepiece_vocab.train(sample_lines(), 1024) for _ in range(2)]
    assert models[0] == models[1]
    (tmp_path / "a.model").write_bytes(models[0])
    model = sentencepiece_vocab.load(tmp_path / "a.model")
    assert model.get_piece_size() == 1024
    for text in (*sample_lines(), "  two  spaces\tand\na line", "漢字 und 😀 ①"):
        ids = model.encode(text)
        assert model.decode(ids) == text and model.unk_id() not in ids


@pytest.mark.unit
def test_a_vocabulary_that_the_text_cannot_give_is_refused(tmp_path):
    for size, said in ((300, "300 vs"), (100_000, "too high")):
        with pytest.raises(ValueError, match=rf"data\.vocabulary_size={size}: .*{said}"):
            sentencepiece_vocab.train(sample_lines(), size)
    (tmp_path / "a.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        sentencepiece_vocab.load(tmp_path / "a.model")


@pytest.mark.unit
def test_the_vocabulary_is_trained_on_the_head_of_every_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SHARD_BYTES", 100)
    (tmp_path / "a.txt").write_text("".join(f"line {i:03d}\n" for i in range(100)))  # nine bytes each
    (source,) = sources.parse(f"{tmp_path}/a.txt", "retain")
    lines = list(sentencepiece_vocab.sample(sources.shards(source), 180, Reader))
    assert len(lines) == 27 and lines[:4] == ["line 000", "line 001", "line 002", "line 012"]


@pytest.mark.unit
def test_the_samples_are_a_pair():
    english, korean = ((Path(SAMPLES) / f"sample_{name}.txt").read_text() for name in ("english", "korean"))
    assert english.isascii() and not korean.isascii()
    assert len(english.splitlines()) == len(korean.splitlines()) == 40
