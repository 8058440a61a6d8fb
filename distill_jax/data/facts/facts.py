"""Questions with answers: read from JSON, CSV or parquet. Needs no TensorFlow.

A record has `question` and `answer`, and perhaps `fact`: questions of one fact, which it has in several wordings, are
held out or shown together. An answer is what follows the question, behind a space, be it a question or a beginning:
{"question": "What is the capital of Japan?", "answer": "Tokyo"}, {"question": "The capital of Japan is", …}.
Of multiple choice the right option is the answer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

from distill_jax.config import ConfigError, check
from distill_jax.data.multiple_choice import items
from distill_jax.data.text import sources
from distill_jax.data.text.readers import documents
from distill_jax.data.text.sources import Source
from distill_jax.io.storage import location
from distill_jax.types import JsonObject

SHAPE = "question and answer (text, or a number), and perhaps fact"
OPTIONS = ("choices", "A")  # one of them makes a question multiple choice


@dataclasses.dataclass(frozen=True)
class Question:
    """A question that is answered in words.

    Attributes:
      fact: what it asks for, in whichever words; the question itself if nothing else is said.
      named: whether that is said; multiple choice counts as such, for its answers repeat.
    """

    question: str
    answer: str
    fact: str
    named: bool = True

    @property
    def text(self) -> str:
        """The question with its answer."""
        return f"{self.question} {self.answer}"


def kind_of(key: str, text: str) -> str:
    """Return what sources hold, by their first records: "documents", "questions" or "choices".

    Args:
      key: the setting that names them; text: the sources.

    Raises:
      ConfigError: if a file is missing, or they hold several kinds.
    """
    kinds = {source.name: _kind(source, key) for source in sources.parse(text, key)}
    check(bool(kinds), f"data.{key} is empty: name its files")
    if set(kinds.values()) == {"choices", "documents"}:  # items to measure by, and what is unlearned
        return "choices"
    listing = ", ".join(f"{name} has {kind}" for name, kind in kinds.items())
    check(len(set(kinds.values())) == 1, f"data.{key}: {listing}; give what is to be forgotten as one kind")
    return next(iter(kinds.values()))


def _kind(source: Source, key: str) -> str:
    empty = "questions" if source.kind == "csv" else "documents"
    return next((kind_of_row(row) for row in itertools.islice(_rows(source, key), 1)), empty)


def kind_of_row(row: JsonObject) -> str:
    """Return what a record is."""
    if "question" not in row:
        return "documents"
    return "choices" if any(row.get(key) is not None for key in OPTIONS) else "questions"


def _rows(source: Source, key: str) -> Iterable[JsonObject]:
    """Return the records of a source; none of what is plain text."""
    if source.kind == "tfds":
        return ()
    sources.check_files(source, key)
    if source.kind == "text":
        return ()
    return (row for path in source.files for _, row in items.rows(location(path)))


def sources_by_kind(key: str, text: str) -> dict[str, str]:
    """Return the lines of sources by what they hold."""
    out: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.split(","))):
        (source,) = sources.parse(line, key)
        out.setdefault(_kind(source, key), []).append(line)
    return {kind: ",".join(same) for kind, same in out.items()}


def split_sources(key: str, text: str) -> tuple[list[Source], list[Source]]:
    """Return (those that hold questions, those that hold documents) of sources.

    Raises:
      ConfigError: for one that is none of files.
    """
    questions: list[Source] = []
    documents: list[Source] = []
    for source in sources.parse(text, key):
        mend = "beside questions with answers only files are read"
        check(source.kind != "tfds", f"data.{key}={source.name!r}: {mend}")
        kind = _kind(source, key)
        (documents if kind == "documents" else questions).append(source)
    return questions, documents


def read(question_sources: Sequence[Source]) -> list[Question]:
    """Read the questions of sources.

    Raises:
      ConfigError: naming the record that is none.
    """
    out = []
    for source in question_sources:
        for path in source.files:
            for where, row in items.rows(location(path)):
                try:
                    out.append(_question(row))
                except ConfigError as error:
                    raise ConfigError(f"{where}: {error}") from error
    return out


def with_one_fact_each(questions: Sequence[Question]) -> list[Question]:
    """Return questions of which two that differ in case and in how they end alone are of one fact, the first one's.

    Where none names its fact, so are all that have one answer. Else a fact could be held out in one spelling or wording
    and shown to attackers in the other.
    """
    first: dict[tuple[str, str], str] = {}
    named = any(question.named for question in questions)
    keys = [(_spelling(q.question) if named else "", _spelling(q.answer)) for q in questions]
    facts = [first.setdefault(key, question.fact) for key, question in zip(keys, questions, strict=True)]
    return [dataclasses.replace(q, fact=fact) for q, fact in zip(questions, facts, strict=True)]


def _spelling(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .?!:")


def texts(key: str, text: str) -> Iterator[str]:
    """Yield all texts of sources of files: documents, and questions with their answers."""
    for source in sources.parse(text, key):
        if _kind(source, key) != "documents":
            yield from (question.text for question in read([source]))
        elif source.kind != "tfds":
            yield from documents([source], skip_broken=True)


def answers(key: str, text: str) -> list[str]:
    """Return the answers of the questions among sources."""
    asked = [source for source in sources.parse(text, key) if _kind(source, key) != "documents"]
    return sorted({question.answer for question in read(asked)})


def _question(row: JsonObject) -> Question:
    chosen = kind_of_row(row) == "choices"
    if chosen:  # asked in words: the right option answers it
        item = items.item(row)
        row = {"question": item.question, "answer": item.choices[item.answer], "fact": row.get("fact")}
    for key in ("question", "answer"):
        check(row.get(key) is not None, f"has no `{key}` but {', '.join(row) or 'nothing'}; needed are {SHAPE}")
    question, answer = row["question"], row["answer"]
    good = isinstance(question, str) and isinstance(answer, str | int | float) and bool(str(answer).strip())
    check(good, f"question and answer: {SHAPE} are needed")
    named = row.get("fact") is not None
    fact = str(row["fact"]) if named else " ".join(question.split())
    return Question(question.strip(), str(answer).strip(), fact, named or chosen)


def hashed(text: str) -> int:
    """Return a number by which equal texts fall on one side of every split."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
