"""Multiple-choice items as WMDP and MMLU have them: read from files, and formatted as lm-evaluation-harness does.

A file is JSON (lines, or an array), CSV or parquet of records in one of the shapes of SHAPES, perhaps with a `subject`.
MMLU's own CSV files have no heading; their name has the subject.
"""

from __future__ import annotations

import csv
import dataclasses
import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from distill_jax.config import ConfigError, check
from distill_jax.data import tables
from distill_jax.data.lines import bare_name, damage_named, not_utf8, objects, open_bytes
from distill_jax.io import storage
from distill_jax.types import JsonObject

LETTERS = string.ascii_uppercase
SHAPES = (
    "question, choices (a list) and answer (a letter, or an index from 0); question, columns A, B, … and answer; or "
    "ARC's question, choices {text, label} and answerKey (a label)"
)
COLUMNS = ("question", "choices", *LETTERS, "answer", "answerKey", "subject", "fact")
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
    files = storage.glob(pattern)
    fetch = FETCH.format(storage.location(pattern).parent)
    check(bool(files), f"{flag}={pattern}: no file has such a name; {fetch}")
    items: list[Item] = []
    for path in map(storage.location, files):
        check(path.is_file(), f"{flag}={path}: no such file; {fetch}")
        for where, row in rows(path):
            try:
                items.append(item(row, subject))
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from error
    check(bool(items), f"{flag}={pattern}: holds no items")
    return items


def rows(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """Yield the records of a file of JSON, CSV or parquet, each with its place for errors."""
    name = bare_name(str(path))
    read = _csv if name.endswith(".csv") else _parquet if name.endswith((".parquet", ".pq")) else objects
    yield from read(str(path))


def _parquet(path: str) -> Iterator[tuple[str, JsonObject]]:
    columns = [name for name in tables.top_names(path) if name in COLUMNS]
    for where, row in tables.rows(path, columns):
        if isinstance(row, ValueError):
            raise ConfigError(f"{where}: {row}") from row
        yield where, row


def _csv(path: str) -> Iterator[tuple[str, JsonObject]]:
    names: list[str] = []
    for number, row in _csv_rows(path):
        where = f"{path}:{number}"
        if not names and {"question", "answer"} <= set(row):
            names = row
            continue
        if not names:  # as MMLU has it: question, options, letter
            words = "of questions with answers in words a first line `question,answer`, and perhaps `fact`, with commas"
            shapes = f"{words}; or {SHAPES}"
            check(4 <= len(row) <= len(LETTERS) + 2, f"{where}: has {len(row)} columns; needed are {shapes}")
            names = ["question", *LETTERS[: len(row) - 2], "answer"]
        check(len(row) == len(names), f"{where}: has {len(row)} columns, {len(names)} are needed")
        named = re.fullmatch(r"(.+)_(test|dev|val)", storage.location(path).stem)
        yield where, {"subject": named[1] if named else "", **dict(zip(names, row, strict=True))}


def _csv_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of each row; a cell in quotes may hold line ends."""
    with damage_named(path), open_bytes(path) as file:
        reader = csv.reader(_text(path, file))
        try:
            yield from ((reader.line_num, row) for row in reader)
        except csv.Error as error:
            raise ConfigError(f"{path}:{reader.line_num}: no CSV ({error})") from error


def _text(path: str, file: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}:{number}: {not_utf8(error)}") from error


def item(row: JsonObject, subject: str = "") -> Item:
    """Return the item that a record holds; ConfigError if it is none."""
    key = next((key for key in ("answer", "answerKey") if row.get(key) is not None), "")
    missing = "question" if "question" not in row else "" if key else "answer"
    check(not missing, f"has no `{missing}` but {', '.join(row) or 'nothing'}; needed are {SHAPES}")
    choices, labels = _choices(row)
    fix_hint = "its choices have no labels that it could be one of; name an index from 0 `answer`"
    lettered = labels or key == "answer" or str(row[key]).strip().isalpha()
    check(bool(lettered), f"answerKey = {row[key]!r}: {fix_hint}")
    answer = _label(row[key], labels) if labels else _index(row[key])
    return Item(row["question"], tuple(choices), answer, str(row.get("subject") or subject))


def _choices(row: JsonObject) -> tuple[list[str], list[str]]:
    """Return the options and, where they have some, their labels."""
    choices = row["choices"] if "choices" in row else [row[x] for x in LETTERS if row.get(x) is not None]
    if not isinstance(choices, dict):
        check(
            isinstance(choices, list), f"choices: a list is needed, not {type(choices).__name__}; needed are {SHAPES}"
        )
        return choices, []
    texts, labels = choices.get("text"), choices.get("label")
    good = isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels) == len(set(labels))
    check(good, f"choices: has {', '.join(choices)}; a text and a label of its own for each are needed")
    return list(texts or ()), [str(label).strip() for label in labels or ()]


def _label(answer: object, labels: list[str]) -> int:
    text = _plain(answer)
    check(text in labels, f"answer = {answer!r}: is none of the labels {', '.join(labels)}")
    return labels.index(text)


def _index(answer: object) -> int:
    text = _plain(answer)
    if re.fullmatch(r"[0-9]{1,4}", text) and not isinstance(answer, bool):
        return int(text)
    good = len(text) == 1 and text.upper() in LETTERS
    check(good, f"answer = {answer!r}: a letter or an index from 0 is needed")
    return LETTERS.index(text.upper())


def _plain(answer: object) -> str:
    """Return an answer as text; a column with gaps has its whole numbers as 2.0."""
    text = str(answer).strip()
    number = isinstance(answer, float | str) and re.fullmatch(r"([0-9]+)\.0+", text)
    return number[1] if number else text


def format_prompt(item: Item) -> str:
    """Return the question as the harness's tasks `mmlu` and `wmdp` format it, up to "Answer:"."""
    options = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
    return f"{item.question.strip()}{options}\nAnswer:"


def solved(item: Item) -> str:
    """Return the question with the letter of its right answer."""
    return f"{format_prompt(item)} {LETTERS[item.answer]}"


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
        which = f"subject {subject!r}" if subject else "items without a subject"
        check(
            len(held) == shots, f"--shots={shots}: the examples have {len(held)} of {which}; give more, or fewer shots"
        )
        about = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        heads[subject] = (about if subject else "") + "".join(f"{solved(example)}\n\n" for example in held)
    return [heads[item.subject] + format_prompt(item) for item in items]
