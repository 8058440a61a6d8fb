"""Where text comes from: lines that name files or TFDS data sets, cut into shards that any process can read.

A line is `PATH` or `tfds:NAME`, options follow a question mark: `corpus/*.jsonl?field=body&weight=2`. The kind is told
by the ending in either case: .jsonl, .ndjson, .json (an object a line, or an array of them), .parquet, .csv (that is
questions), and any other is text, unless it begins like one of these; all but parquet may be gzipped. No TensorFlow.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import zlib
from urllib.parse import parse_qsl

from distill_jax.config import check
from distill_jax.data import lines, tables
from distill_jax.io import storage

SHARD_BYTES = 2**25
PROBE_BYTES = 2**16
TFDS_SHARDS = 20  # five per cent each
OPTIONS = ("kind", "field", "document", "weight", "split")
KINDS = ("text", "jsonl", "json", "parquet", "csv", "tfds")
ENDINGS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".pq": "parquet", ".csv": "csv",
}  # fmt: skip
# By their endings no plain text, and not understood either: `kind=text` reads one as text all the same.
FOREIGN = (".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z", ".arrow", ".feather", ".tsv", ".pdf", ".docx")


@dataclasses.dataclass(frozen=True)
class Source:
    """One line of sources.

    Attributes:
      name: the line without its options.
      kind: text, jsonl, json, parquet, csv or tfds; of a shard of json "jsonl" or "array", which its content tells.
      field: where the text lies in a record of any kind but text; `doc.text` is the text inside of doc.
      document: of text, what a document is: a `line` or a whole `file`.
      weight: the source's share of its side's tokens, relative to the others'; 0 takes them as they are.
      split: of a TFDS data set.
      kind_given: whether the line itself says its kind.
    """

    name: str
    kind: str = "text"
    field: str = "text"
    document: str = "line"
    weight: float = 0.0
    split: str = "train"
    kind_given: bool = False

    @property
    def files(self) -> list[str]:
        """The files, in the order of their names; none for TFDS."""
        if self.kind == "tfds":
            return []
        return storage.glob(self.name)

    def reading(self) -> dict[str, str]:
        """Return what decides how the bytes become documents."""
        if self.kind == "text":
            return {"kind": self.kind, "document": self.document}
        if self.kind == "tfds":
            return {"kind": self.kind, "name": self.name, "field": self.field, "split": self.split}
        return {"kind": self.kind, "field": self.field}


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a source that is read on its own.

    Attributes:
      path: the file; of TFDS the data set's name.
      start, stop: documents that begin in these bytes; of parquet the row groups, of TFDS the percentages.
      size: bytes, for the progress line.
    """

    source: Source
    path: str
    start: int
    stop: int
    size: int


def parse(lines: str, key: str) -> tuple[Source, ...]:
    """Read comma-separated source lines; ConfigError names the setting `key`, the line and the fix."""
    return tuple(_parse(line.strip(), f"data.{key}={line.strip()!r}") for line in lines.split(",") if line.strip())


def _parse(line: str, where: str) -> Source:
    name, _, query = line.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        near = (difflib.get_close_matches(option, OPTIONS, n=1) or [", ".join(OPTIONS)])[0]
        check(option in OPTIONS, f"{where}: no option {option!r}; did you mean {near}?")
    kind = options.get("kind") or _kind(name)
    check(kind in KINDS, f"{where}: kind={kind}; choose one of {', '.join(KINDS)}")
    check(options.get("document", "line") in ("line", "file"), f"{where}: document is `line` or `file`")
    try:
        weight = float(options.pop("weight", 0.0))
    except ValueError as error:
        raise ValueError(f"{where}: weight must be a number") from error
    check(0 <= weight < math.inf, f"{where}: weight must not be negative, and finite")
    name = name.removeprefix("tfds:")
    kind_given = "kind" in options
    return Source(**{**options, "name": name, "kind": kind, "weight": weight, "kind_given": kind_given})  # type: ignore[arg-type]


def _kind(name: str) -> str:
    if name.startswith("tfds:"):
        return "tfds"
    return next((kind for end, kind in ENDINGS.items() if lines.bare_name(name).endswith(end)), "text")


def check_files(source: Source, key: str) -> None:
    """Raise ConfigError unless every file of the source can be read."""
    where = f"data.{key}={source.name!r}"
    folder = storage.location(source.name.split("*")[0] + "*").parent
    fetch = f"`hf download OWNER/NAME --repo-type dataset --local-dir {folder}` fetches what is on the hub"
    check(bool(source.files) or source.kind == "tfds", f"{where}: no file has such a name; {fetch}")
    for path in source.files:
        check(
            not storage.location(path).is_dir(), f"{where}: {path} is a directory; name its files, such as {path}/*.txt"
        )
        check(
            storage.is_file(storage.location(path)),
            f"{where}: no such file; give a text, .jsonl or .parquet file, or tfds:NAME; {fetch}",
        )
        check(storage.is_readable(storage.location(path)), f"{where}: {path} may not be read; change its permissions")
        if not source.kind_given and source.kind != "tfds":
            _check_kind(source, path, where)


def _check_kind(source: Source, path: str, where: str) -> None:
    """Raise ConfigError where a file would be read as what it is not: silence would train a model on its syntax."""
    fix_hint = "?kind=text reads it as plain text, ?kind=jsonl an object a line"
    kind, foreign = _kind(path), next((end for end in FOREIGN if lines.bare_name(path).endswith(end)), "")
    check(kind == source.kind, f"{where}: {path} is {kind} by its ending, and is read as {source.kind}; {fix_hint}")
    check(not foreign, f"{where}: {path}: {foreign} is not understood; give text, .jsonl or .parquet; {fix_hint}")
    if kind == "text":
        check(not _is_parquet(path), f"{where}: {path} begins as parquet does; ?kind=parquet reads it so")
        check(not _begins_with_object(path), f"{where}: {path} begins with a JSON object; {fix_hint}")


def _is_parquet(path: str) -> bool:
    with storage.location(path).open("rb") as file:
        return file.read(4) == b"PAR1"


def _begins_with_object(path: str) -> bool:
    try:
        with lines.open_bytes(path) as file:
            if not file.read(PROBE_BYTES).lstrip().startswith(b"{"):
                return False
        return any(lines.parse_object(line) for _, line in itertools.islice(lines.numbered(path), 1))
    except (ValueError, EOFError, OSError, zlib.error):  # what is damaged is named when it is read
        return False


def shards(source: Source) -> list[Shard]:
    """Cut a source into shards; an empty file has none."""
    if source.kind == "tfds":
        step = 100 // TFDS_SHARDS
        return [Shard(source, source.name, at, at + step, 0) for at in range(0, 100, step)]
    return [shard for path in source.files for shard in _of_file(source, path)]


def _of_file(source: Source, path: str) -> list[Shard]:
    size = storage.size(storage.location(path))
    if source.kind == "parquet":
        groups = tables.row_groups(path)
        return [Shard(source, path, i, i + 1, size // groups) for i in range(groups)]
    if source.kind == "json":
        source = dataclasses.replace(source, kind="array" if lines.is_array(path) else "jsonl")
    one_document = source.kind == "text" and source.document == "file"
    uncut = source.kind == "array" or one_document or (size > 0 and lines.is_gzipped(path))
    step = max(size, 1) if uncut else SHARD_BYTES
    return [Shard(source, path, at, min(at + step, size), min(step, size - at)) for at in range(0, size, step)]
