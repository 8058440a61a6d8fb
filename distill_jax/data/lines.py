"""The one way in for text that people give, in lines or in JSON: corpora, items, and rows to score or to continue.

One rule each, whoever reads:

* Bytes are UTF-8. A byte order mark may begin a file, gzipped or not, and is no part of its text.
* A line ends with LF or CR LF and with nothing else: U+2028, U+0085, a form feed or a lone CR stand within it.
* JSON is that of RFC 8259: no NaN, no Infinity, no number beyond a double's range, no half of a surrogate pair. It is
  nested DEPTH deep at most. Of equal names in an object the last one counts.

Needs no TensorFlow.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, NoReturn, cast

from distill_jax.config import ConfigError
from distill_jax.io import storage
from distill_jax.io.storage import is_local, location
from distill_jax.types import JsonObject

RECORD_BYTES = 2**28  # of what has to be held whole: a JSON line, or a file that is one array
DEPTH = 256
JSON_BLANKS = b" \t\r\n"

Json = Any  # whatever JSON can hold
Record = JsonObject


class Broken(ConfigError):
    """A line of a file is broken."""


def bare_name(path: str) -> str:
    """Return a name as its kind is told by: in lower case, without what says that it is gzipped."""
    return path.lower().removesuffix(".gz")


def is_gzipped(path: str) -> bool:
    """Return whether a file is gzipped, by its name or by its first bytes, which no UTF-8 text begins with."""
    if path.lower().endswith(".gz"):
        return True
    with location(path).open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def open_bytes(path: str) -> IO[bytes]:
    """Open a file behind its byte order mark; what is gzipped is read as what it holds."""
    place, file = location(path), storage.open_bytes(location(path))  # the caller closes it
    if is_gzipped(path):
        file.close()
        file = cast(IO[bytes], gzip.open(place if is_local(place) else storage.open_bytes(place)))  # noqa: SIM115 - nor this
    if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        file.seek(0)
    return file


@contextlib.contextmanager
def damage_named(path: str) -> Iterator[None]:
    """Turn what gzip raises into Broken."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Broken(f"{path}: not a gzip file, or a damaged one ({error})") from error


def numbered(path: str) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of each line that is not blank, counted from 1."""
    with damage_named(path), open_bytes(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(RECORD_BYTES + 1), b""), 1):
            if len(line) > RECORD_BYTES:
                raise Broken(f"{path}:{number}: {too_long()}")
            if line.strip(JSON_BLANKS):
                yield number, line


def value_at(record: Mapping[str, Json], field: str) -> Json:
    """Return the value of a field: of that very name, or with dots the one inside of others, `doc.text`.

    Raises:
      ValueError: if there is none, naming those that there are.
    """
    value: Json = record
    for name in [field] if field in record else field.split("."):
        if value is None:  # what is inside of null is null
            return None
        if not isinstance(value, Mapping) or name not in value:
            raise ValueError(no_field(field, _names(record)))
        value = value[name]
    return value


def no_field(field: str, names: Iterable[str]) -> str:
    """Return the message that there is no such field, with those that there are."""
    return f"has no field {field!r} but {', '.join(names) or 'none'}; name one as ?field="


def _names(record: Mapping[str, Json]) -> Iterator[str]:
    for name, value in record.items():
        yield from [f"{name}.{inner}" for inner in value] if isinstance(value, Mapping) and value else [name]


def too_long() -> str:
    """Return the message that a record is longer than one may be."""
    return f"a record of over {RECORD_BYTES >> 20} MiB; cut its text in several"


def objects(path: str) -> Iterator[tuple[str, Record]]:
    """Yield the JSON objects of a file, each with its place `path:line`: one a line, or in a .json in an array.

    Raises:
      Broken: naming the line that is none.
    """
    read = elements if bare_name(path).endswith(".json") and is_array(path) else numbered
    for number, held in read(path):
        where = f"{path}:{number}"
        try:
            value = parse_object(held)
        except ValueError as error:
            raise Broken(f"{where}: {error}") from error
        yield where, value


def is_array(path: str) -> bool:
    """Return whether a file is one JSON array; otherwise it has an object a line.

    Raises:
      Broken: if it is neither.
    """
    for _, line in numbered(path):
        if line.lstrip(JSON_BLANKS).startswith(b"["):
            return True
        try:
            parse_object(line)
        except ValueError as error:
            fix_hint = "write one object a line (`jq -c`) and name the file .jsonl"
            raise Broken(f"{path}: neither an array of objects nor an object a line ({error}); {fix_hint}") from error
        break
    return False


def elements(path: str) -> Iterator[tuple[int, Json]]:
    """Yield (line where it begins, element) of a file that is one JSON array.

    Raises:
      Broken: if it is none.
    """
    text, at, line = _read_text(path), 0, 1

    def skip(places: int) -> str:
        """Go on by so many characters and all blanks, and return the character that comes."""
        nonlocal at, line
        end = _BLANKS.match(text, at + places).end()  # type: ignore[union-attr]
        at, line = end, line + text.count("\n", at, end)
        return text[at : at + 1]

    def refuse(what: str) -> NoReturn:
        raise Broken(f"{path}:{line}: no JSON ({what})")

    if skip(0) != "[":
        refuse("an array is needed")
    following = skip(1)
    while following != "]":
        try:
            element, end = _decode(text, at)
        except ValueError as error:
            raise Broken(f"{path}:{line}: {error}") from error
        yield line, element
        following = skip(end - at)
        if following == "," and skip(1) != "]":
            continue
        if following != "]":
            refuse("a comma or the array's end is needed")
    if skip(1):
        refuse("more stands behind the array")


def _read_text(path: str) -> str:
    with damage_named(path), open_bytes(path) as file:
        data = file.read(RECORD_BYTES + 1)
    if len(data) > RECORD_BYTES:
        fix_hint = "write its elements one a line (`jq -c '.[]'`)"
        raise Broken(f"{path}: an array of over {RECORD_BYTES >> 20} MiB; {fix_hint}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise Broken(f"{path}:{line}: {not_utf8(error)}") from error


def parse_object(held: Json) -> Record:
    """Return the object that a line of bytes holds, or an element is; ValueError says why it is none."""
    value = parse(held) if isinstance(held, bytes) else held
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__} instead of an object")
    return value


def parse(line: bytes) -> Json:
    """Return the JSON value of a line; ValueError says why there is none."""
    try:
        text = line.decode().strip(JSON_BLANKS.decode())
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(error)) from error
    value, end = _decode(text, 0)
    if end != len(text):
        raise ValueError(f"no JSON (more stands behind the value, at column {end + 1})")
    return value


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return the message that names the byte which is not UTF-8."""
    return f"not UTF-8 (byte {error.object[error.start]:#04x}); convert the file, such as with `iconv -t utf-8`"


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"no JSON (the number {text[:20]} is beyond a double's range)")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"no JSON ({name} is no number of it)")


_BLANKS = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(parse_float=_number, parse_constant=_constant)


def _decode(text: str, start: int) -> tuple[Json, int]:
    """Return the JSON value that begins at a place of a text, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, start)
        deep = text.count("[", start, end) + text.count("{", start, end) > DEPTH and _depth(value) > DEPTH
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""  # of an array
        raise ValueError(f"no JSON ({error.msg}, at column {error.colno}{line})") from error
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"JSON nested more than {DEPTH} deep")
    if _ESCAPED_SURROGATE.search(text, start, end):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(error.object[error.start]):04X}"
            raise ValueError(f"half of a surrogate pair, {half}, which is no text") from error
    return value, end


_ESCAPED_SURROGATE = re.compile(r"\\u[dD]")


def _depth(value: Json) -> int:
    """Return how deep arrays and objects are nested."""
    depth, level = 0, [value]
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
    return depth
