"""Files that nobody would write on purpose: each is read as it should be, or refused with its name and line.

What should be is what the json module says of what a split at line feeds leaves.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from distill_jax.config import ConfigError
from distill_jax.data import lines
from distill_jax.data.multiple_choice import items
from distill_jax.data.text import sources
from distill_jax.data.text.readers import Reader
from distill_jax.interop.model_source import Model
from distill_jax.interop.rows import Rows
from distill_jax.models.presets import preset

SEPARATORS = ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1e", "\ufeff", "\x7f", "\xa0"]
TEXTS = ["plain", "two\nlines", "", "  ", "세 번째", "😀", '"quoted" \\ back', "\r", "\x00", *SEPARATORS]
VALUES: list[Any] = [None, True, 7, -1.5, 1e300, "x", [], {}, [1, [2, [3]]], {"text": "inner"}, "\u2028"]


# The generator: a good file, and what is done to its bytes


def good_objects(rng: random.Random, kind: str) -> list[dict[str, Any]]:
    def one(i: int) -> dict[str, Any]:
        extra = {rng.choice("abcde"): rng.choice(VALUES) for _ in range(rng.randrange(3))}
        if kind == "items":
            answer = rng.choice([0, 1, "B"])
            return {"question": rng.choice(TEXTS), "choices": ["p", rng.choice(TEXTS)], "answer": answer}
        if kind == "rows":
            return {"tokens": [rng.randrange(50) for _ in range(1 + rng.randrange(5))], "id": i, **extra}
        return {**extra, "text": rng.choice(TEXTS) + rng.choice(TEXTS)}

    return [one(i) for i in range(1 + rng.randrange(5))]


def encoded(rng: random.Random, rows: list[dict[str, Any]], array: bool) -> bytes:
    ascii_only = rng.random() < 0.3
    texts = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    end = rng.choice(["\n", "\r\n", "\n\n", " \n\t\n"])
    if array:
        return ("[" + f",{end}".join(texts) + "]" + rng.choice(["", "\n"])).encode()
    return (end.join(texts) + rng.choice(["", end])).encode()


def spliced(what: bytes) -> Callable[[random.Random, bytes], bytes]:
    def splice(rng: random.Random, data: bytes) -> bytes:
        at = rng.randrange(len(data) + 1)
        return data[:at] + what + data[at:]

    return splice


def replaced(pattern: bytes, by: bytes) -> Callable[[random.Random, bytes], bytes]:
    return lambda rng, data: re.sub(pattern, lambda _: by, data, count=1)


MUTATIONS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "nothing": lambda rng, data: data,
    "mark": lambda rng, data: b"\xef\xbb\xbf" + data,
    "mark inside": spliced(b"\xef\xbb\xbf"),
    "two marks": lambda rng, data: b"\xef\xbb\xbf\xef\xbb\xbf" + data,
    "UTF-16": lambda rng, data: data.decode().encode("utf-16"),
    "UTF-16 without mark": lambda rng, data: data.decode().encode("utf-16-le"),
    "UTF-32": lambda rng, data: data.decode().encode("utf-32"),
    "Latin-1": spliced("é".encode("latin-1")),
    "overlong": spliced(b"\xc0\xaf"),
    "raw surrogate": spliced(b"\xed\xa0\x80"),
    "surrogate": replaced(rb'": "', rb'": "\ud83d'),
    "pair": replaced(rb'": "', rb'": "\ud83d\ude00'),
    "halves in the wrong order": replaced(rb'": "', rb'": "\ude00\ud83d'),
    "key surrogate": replaced(rb'\{"', rb'{"\udfff": 1, "'),
    "separator": lambda rng, data: spliced(rng.choice(SEPARATORS).encode())(rng, data),
    "lone CR": spliced(b"\r"),
    "NUL": spliced(b"\x00"),
    "line feed": spliced(b"\n"),
    "deep": replaced(rb"\{", b'{"deep": ' + b"[" * 100_000 + b"]" * 100_000 + b", "),
    "deep and open": lambda rng, data: data + b"\n" + b'{"a":' * 50_000,
    "deep enough": replaced(rb"\{", b'{"deep": ' + b"[" * 200 + b"]" * 200 + b", "),
    "brackets in a text": replaced(rb"\{", b'{"flat": "' + b"[{" * 500 + b'", '),
    "NaN": replaced(rb"\{", b'{"x": NaN, '),
    "Infinity": replaced(rb"\{", b'{"x": -Infinity, '),
    "beyond a double": replaced(rb"\{", b'{"x": 1e999, '),
    "many digits": replaced(rb"\{", b'{"x": ' + b"9" * 5000 + b", "),
    "twice": replaced(rb"\{", b'{"text": "first", '),
    "a list": lambda rng, data: data + b"\n[1, 2]\n",
    "a number": lambda rng, data: b"17\n" + data,
    "null": lambda rng, data: b"null\n" + data,
    "cut": lambda rng, data: data[: rng.randrange(len(data))],
    "empty": lambda rng, data: b"",
    "blanks": lambda rng, data: b" \n\t\r\n" * 3,
    "a byte": lambda rng, data: spliced(bytes([rng.randrange(256)]))(rng, data),
    "trailing comma": lambda rng, data: data.rstrip().removesuffix(b"]") + b",]",
    "comment": lambda rng, data: b"// rows\n" + data,
    "quotes": lambda rng, data: data.replace(b'"', b"'", 2),
}


# What should be, without the reader


def expected(data: bytes, array: bool) -> list[dict[str, Any]] | None:
    """Return the objects of a file, or None where it has to be refused."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        parts = [data] if array else [line for line in data.split(b"\n") if line.strip(b" \t\r\n")]
        values = [json.loads(part.decode("utf-8", "strict")) for part in parts]
        values = values[0] if array else values
        good = isinstance(values, list) and all(isinstance(value, dict) for value in values)
        return values if good and all(map(plain, values)) else None
    except (ValueError, RecursionError):
        return None


def plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is JSON of RFC 8259 and its texts are Unicode."""
    if depth > lines.DEPTH:
        return False
    if isinstance(value, str):
        return not any(0xD800 <= ord(c) < 0xE000 for c in value)
    if isinstance(value, list):
        return all(plain(part, depth + 1) for part in value)
    if isinstance(value, dict):
        return all(plain(key) and plain(part, depth + 1) for key, part in value.items())
    return not isinstance(value, float) or math.isfinite(value)


def check_file(path: Path, kind: str, wanted: list[dict[str, Any]] | None) -> None:
    """Read a file in its three ways; what is wrong with one object's meaning and not its JSON may be refused, too."""
    try:
        found = [row for _, row in lines.objects(str(path))]
    except ConfigError as error:
        assert wanted is None, error
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        empty_json = path.stat().st_size == 0
        assert re.match(r":\d+: |: (neither|not a gzip)", str(error).removeprefix(str(path))) or empty_json, error
    else:
        assert found == wanted
    read = {"rows": read_rows, "items": read_items, "corpus": read_corpus}[kind]
    try:
        meant = read(path)
    except ConfigError as error:
        assert wanted is None or not wanted or str(path) in str(error)
        if wanted:
            assert re.search(rf"{re.escape(str(path))}:\d+: ", str(error)), error
        return
    assert wanted is not None
    if kind == "rows":
        assert meant == [row["tokens"] for row in wanted]
    elif kind == "corpus":
        assert meant == [row["text"] for row in wanted if row["text"].strip()]
    else:
        assert [item.question for item in meant] == [row["question"] for row in wanted]


def read_rows(path: Path) -> list[list[int]]:
    return Rows.read(path, Model(preset("cpu", vocab=50), no_weights, {}, "words")).tokens


def no_weights(*_: Any) -> Any:
    raise AssertionError("rows are read without the model's weights")


def read_items(path: Path) -> list[items.Item]:
    return items.read(str(path), "--items")


def read_corpus(path: Path) -> list[str]:
    (source,) = sources.parse(str(path), "retain")
    return [piece.text for shard in sources.shards(source) for piece in Reader(shard)]


def run_case(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    kind = rng.choice(["rows", "items", "corpus"])
    names = list(MUTATIONS)
    name, array = names[seed % len(names)], rng.random() < 0.3
    data = MUTATIONS[name](rng, encoded(rng, good_objects(rng, kind), array))
    path = tmp_path / f"{seed}.{'json' if array else 'jsonl'}{rng.choice(['', '', '.gz'])}"
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    # A .json whose first line is one object holds lines, whatever comes after.
    first = next((line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip(b" \t\r\n")), b"")
    as_array = array and first.lstrip(b" \t\r\n").startswith(b"[")
    wanted = expected(data, as_array) if first else []
    check_file(path, kind, wanted)


@pytest.mark.property
@pytest.mark.parametrize("part", range(6))
def test_hostile_files(tmp_path, part):
    for seed in range(part, 3 * len(MUTATIONS), 6):
        run_case(tmp_path, seed)


@pytest.mark.property
@pytest.mark.thorough
@pytest.mark.parametrize("part", range(20))
def test_more_hostile_files(tmp_path, part):
    for seed in range(1000 + part, 6000, 20):
        run_case(tmp_path, seed)


# By hand


@pytest.mark.unit
@pytest.mark.parametrize("separator", [*SEPARATORS, "\r"], ids=ascii)
def test_nothing_but_a_line_feed_ends_a_line_of_text(tmp_path, separator):
    (tmp_path / "a.txt").write_bytes(f"\ufeffone{separator}two\r\nthree\n".encode())
    assert read_corpus(tmp_path / "a.txt") == [f"one{separator}two", "three"]


@pytest.mark.unit
@pytest.mark.parametrize("piece", range(1, 9))
def test_a_mark_and_the_ends_of_lines_are_no_text_however_it_is_cut(tmp_path, monkeypatch, piece):
    from distill_jax.data.text import readers

    monkeypatch.setattr(readers, "PIECE_BYTES", piece)
    monkeypatch.setattr(sources, "SHARD_BYTES", piece)
    for name in ("a.txt", "a.txt.gz"):
        data = "\ufeffab\r\n세\rde\r\n\r\n\rf\r\r\ng\r".encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        (source,) = sources.parse(f"{tmp_path}/{name}", "retain")
        found: list[str] = []
        for shard in sources.shards(source):
            for part in Reader(shard):
                found = [*found, part.text] if part.first else [*found[:-1], found[-1] + part.text]
        assert [text for text in found if text.strip()] == ["ab", "세\rde", "\rf\r", "g\r"]


@pytest.mark.unit
def test_the_line_of_an_array_that_is_wrong_is_named(tmp_path):
    for data, said in {
        b'[{"text": "a"},\n {"text": "b"},\n {"text": }]': ":3: no JSON (Expecting value, at column 11 of line 3)",
        b'[{"text": "a"},\n\n 7]': ":3: a JSON int instead of an object",
        b'[{"text": "a"}\n {"text": "b"}]': ":2: no JSON (a comma or the array's end is needed)",
        b'[{"text": "a"},\n]': ":2: no JSON (a comma or the array's end is needed)",
        b'[{"text": "a"}]\n[]': ":2: no JSON (more stands behind the array)",
        b'[{"text": "a"},\n{"text": "\xe9"}]': ":2: not UTF-8 (byte 0xe9)",
        b'{\n "text": "a"\n}': ": neither an array of objects nor an object a line",
    }.items():
        (tmp_path / "a.json").write_bytes(data)
        with pytest.raises(ConfigError) as error:
            read_corpus(tmp_path / "a.json")
        assert str(error.value).startswith(f"{tmp_path}/a.json{said}"), error.value


# Sources by name and content


@pytest.mark.unit
@pytest.mark.parametrize("name", ["a.JSONL", "a.NDJson", "a.json", "a.json.gz", "a.JSON.GZ", "a.jsonl.gz"])
@pytest.mark.parametrize("array", [False, True])
def test_json_is_read_as_json_whatever_its_name_looks_like(tmp_path, name, array):
    texts = ["one", "세\n번", '{"not": "an object"}']
    data = (json.dumps([{"text": t} for t in texts], indent=1) if array else
            "".join(json.dumps({"text": t}) + "\n" for t in texts)).encode()  # fmt: skip
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    (source,) = sources.parse(str(path), "retain")
    sources.check_files(source, "retain")
    if array and ".json" not in lines.bare_name(name)[-5:]:
        with pytest.raises(ConfigError, match=":1: "):
            read_corpus(path)
        return
    assert read_corpus(path) == texts


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("part-0000", b'{"text": "a"}\n', "begins with a JSON object; ?kind=text reads it as plain text"),
        ("a.txt", b'\xef\xbb\xbf\n {"text": "a"}\n{', "begins with a JSON object"),
        ("a.txt", gzip.compress(b'{"text": "a"}\n', mtime=0), "begins with a JSON object"),
        ("part-0001", b"PAR1....", "begins as parquet does; ?kind=parquet"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", ".zst is not understood"),
        ("a.TSV", b"a\tb\n", ".tsv is not understood"),
    ],
    ids=ascii,
)
def test_what_would_be_read_as_what_it_is_not_is_refused_by_name(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    for line, refused in ((f"{tmp_path}/{name}", True), (f"{tmp_path}/{name}?kind=text", False)):
        (source,) = sources.parse(line, "forget")
        if refused:
            with pytest.raises(ValueError, match=r"data\.forget=") as error:
                sources.check_files(source, "forget")
            assert said in str(error.value) and f"{tmp_path}/{name}" in str(error.value)
        else:
            sources.check_files(source, "forget")


@pytest.mark.unit
def test_files_of_several_kinds_under_one_pattern_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("{ no JSON\n")
    (source,) = sources.parse(f"{tmp_path}/*", "retain")
    sources.check_files(source, "retain")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl is jsonl by its ending, and is read as text"):
        sources.check_files(source, "retain")


@pytest.mark.unit
def test_a_field_may_be_inside_of_others(tmp_path):
    rows = [{"doc": {"text": "one", "id": 1}}, {"doc": {"text": "두"}, "doc.text": "by its own name"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text(json.dumps({"doc": {"body": "x"}, "id": 1}) + "\n")
    (tmp_path / "c.jsonl").write_text(json.dumps({"doc": ["text"]}) + "\n")
    table = pyarrow.table({"doc": [{"text": "one", "id": 1}, {"text": None, "id": 2}, None, {"text": "두", "id": 3}]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    pyarrow.parquet.write_table(pyarrow.table({"doc.text": ["one"]}), tmp_path / "b.parquet")

    def read(name: str) -> list[str]:
        (source,) = sources.parse(f"{tmp_path}/{name}?field=doc.text", "retain")
        return [piece.text for shard in sources.shards(source) for piece in Reader(shard)]

    assert read("a.jsonl") == ["one", "by its own name"]
    assert read("a.parquet") == ["one", "두"] and read("b.parquet") == ["one"]
    for name, said in {
        "b.jsonl": "b.jsonl:1: has no field 'doc.text' but doc.body, id; name one as ?field=",
        "c.jsonl": "c.jsonl:1: has no field 'doc.text' but doc",
    }.items():
        with pytest.raises(ConfigError) as error:
            read(name)
        assert said in str(error.value)
    pyarrow.parquet.write_table(pyarrow.table({"doc": [{"body": "x"}], "id": [1]}), tmp_path / "c.parquet")
    with pytest.raises(ConfigError, match=r"c\.parquet: has no field 'doc.text' but doc\.body, id"):
        read("c.parquet")
