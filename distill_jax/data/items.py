"""Multiple-choice items as WMDP and MMLU have them: read from files, and put as lm-evaluation-harness puts them.

A file is JSON lines, CSV or parquet with `question`, the options (a list `choices`, or columns A, B, …), `answer` (a
letter, or an index from 0) and perhaps `subject`. MMLU's own CSV files have no heading; their name has the subject.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import json
import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill_jax.config import ConfigError, check

LETTERS = string.ascii_uppercase
FETCH = "`hf download cais/wmdp --repo-type dataset --local-dir {0}` fetches WMDP's, cais/mmlu MMLU's"


@dataclasses.dataclass(frozen=True)
class Item:
    """A question with its options.

    Attributes:
      question: its text.
      choices: the options, 2 to 26.
      answer: index of the right one.
      subject: what it is about, in MMLU's words (`us_foreign_policy`); "" if that is not said.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""

    def __post_init__(self) -> None:
        good = isinstance(self.question, str) and all(isinstance(choice, str) for choice in self.choices)
        check(good, "question and choices: strings are needed")
        check(2 <= len(self.choices) <= len(LETTERS), f"choices: has {len(self.choices)}; 2 to {len(LETTERS)} may be")
        check(0 <= self.answer < len(self.choices), f"answer = {self.answer}: is none of {len(self.choices)} choices")


def read(pattern: str, flag: str, subject: str = "") -> list[Item]:
    """Read the items of a file, or of all files of a pattern in the order of their names.

    Args:
      flag: what named it, for errors.
      subject: of items that have none.

    Raises:
      ConfigError: naming the file and the row that is no item.
    """
    files = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
    fetch = FETCH.format(Path(pattern).parent)
    check(bool(files), f"{flag}={pattern}: no file has such a name; {fetch}")
    found = []
    for path in map(Path, files):
        check(path.is_file(), f"{flag}={path}: no such file; {fetch}")
        for where, row in _rows(path):
            try:
                found.append(_item(row, subject))
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from error
    check(bool(found), f"{flag}={pattern}: holds no items")
    return found


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of a file, each with its place for errors."""
    kind = path.suffix if path.suffix in (".csv", ".parquet") else ".jsonl"
    try:
        yield from {".csv": _csv, ".parquet": _parquet, ".jsonl": _json_lines}[kind](path)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise ConfigError(f"{path}: no {kind} file, or a damaged one ({str(error).splitlines()[0]})") from error


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{where}: no JSON ({error})") from error
            check(isinstance(row, dict), f"{where}: an object with `question`, `choices` and `answer` is needed")
            yield where, row


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        names: list[str] = []
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if not names and {"question", "answer"} <= set(row):
                names = row
                continue
            if not names:  # as MMLU has it: question, options, letter
                check(len(row) >= 4, f"{where}: has {len(row)} columns; question, options and answer are needed")
                names = ["question", *LETTERS[: len(row) - 2], "answer"]
            check(len(row) == len(names), f"{where}: has {len(row)} columns, {len(names)} are needed")
            named = re.fullmatch(r"(.+)_(test|dev|val)", path.stem)
            yield where, {"subject": named[1] if named else "", **dict(zip(names, row, strict=True))}


def _item(row: dict[str, Any], subject: str) -> Item:
    for key in ("question", "answer"):
        check(key in row, f"has no `{key}` but {', '.join(row) or 'nothing'}")
    choices = row["choices"] if "choices" in row else [row[x] for x in LETTERS if row.get(x) is not None]
    check(isinstance(choices, list), "choices: a list is needed, or columns A, B, …")
    return Item(row["question"], tuple(choices), _index(row["answer"]), str(row.get("subject") or subject))


def _index(answer: Any) -> int:
    text = str(answer).strip()
    if re.fullmatch(r"\d+", text) and not isinstance(answer, bool):
        return int(text)
    check(len(text) == 1 and text.upper() in LETTERS, f"answer = {answer!r}: a letter or an index from 0 is needed")
    return LETTERS.index(text.upper())


def put(item: Item) -> str:
    """Return the question as the harness's tasks `mmlu` and `wmdp` put it, up to "Answer:"."""
    options = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
    return f"{item.question.strip()}{options}\nAnswer:"


def solved(item: Item) -> str:
    """Return the question with the letter of its right answer."""
    return f"{put(item)} {LETTERS[item.answer]}"


def contexts(items: Sequence[Item], examples: Sequence[Item] = (), shots: int = 0) -> list[str]:
    """Return what stands before each item's answer: a line on its subject, the solved examples, the question.

    Args:
      examples: in the order in which they are shown; an item has the first `shots` of its own subject.

    Raises:
      ConfigError: naming a subject that has fewer.
    """
    by_subject: dict[str, list[Item]] = {}
    for example in examples:
        by_subject.setdefault(example.subject, []).append(example)
    heads = {}
    for subject in dict.fromkeys(item.subject for item in items):
        held = by_subject.get(subject, [])[:shots]
        of = f"subject {subject!r}" if subject else "items without a subject"
        check(len(held) == shots, f"--shots={shots}: the examples have {len(held)} of {of}; give more, or fewer shots")
        about = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        heads[subject] = (about if subject else "") + "".join(f"{solved(example)}\n\n" for example in held)
    return [heads[item.subject] + put(item) for item in items]
