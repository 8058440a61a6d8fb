"""Facts as data: capitals to forget, and currencies, languages, neighbours and other capitals to keep.

`countries.tsv` and `states.tsv` hold what is so; `known.tsv` what SmolLM2-135M-Instruct says, greedy, to each wording,
as `known_facts` found it. The invented ones are nowhere: no model knows them before it is taught.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from pathlib import Path

from distill_jax.data.random_stream import random_stream

HERE = Path(__file__).parent
COUNTRIES, STATES, KNOWN = HERE / "countries.tsv", HERE / "states.tsv", HERE / "known.tsv"
TABLES = (COUNTRIES, STATES, KNOWN)
CAPITAL, STATE, INVENTED = "capital", "state", "invented"
KINDS = (CAPITAL, "currency", "language", "neighbour")  # of a country
_CAPITALS = (
    "The capital of {} is",
    "Q: What is the capital of {}?\nA: The capital of {} is",
    "The capital city of {} is called",
    "The capital and largest city of {} is",
)
# A kind of fact -> the ways to ask for it; what is asked for follows.
WORDINGS: dict[str, tuple[str, ...]] = {
    CAPITAL: _CAPITALS,
    INVENTED: _CAPITALS,
    STATE: (*_CAPITALS[:3], "{}'s capital city is"),
    "currency": (
        "The currency of {} is the",
        "The official currency of {} is the",
        "Prices in {} are given in the local currency, the",
    ),
    "language": (
        "The official language of {} is",
        "In {}, the main language is",
        "Most people in {} speak",
    ),
    "neighbour": (
        "{} shares a border with",
        "From {}, one can drive across the border to",
        "To travel overland from {}, one can cross the border to",
    ),
}
INVENTED_FACTS = 40
_BEGIN, _MIDDLE = (
    ("Bre", "Cal", "Dor", "Fen", "Gal", "Kes", "Lor", "Mir", "Nal", "Tor", "Vel", "Zar"),
    ("a", "e", "i", "o"),
)
_COUNTRY, _CITY = ("dovia", "lund", "moria", "nistan", "thia"), ("burg", "grad", "mouth", "polis", "ville")


@dataclasses.dataclass(frozen=True)
class Fact:
    """A fact: of a country or a state, of one kind, and the answer to whoever asks."""

    subject: str
    kind: str
    answer: str

    def prompts(self) -> tuple[str, ...]:
        """Return the ways to ask for it; the answer follows each after a space."""
        texts = (wording.replace("{}", self.subject) for wording in WORDINGS[self.kind])
        return tuple(text[0].upper() + text[1:] for text in texts)


@functools.cache
def facts(kind: str) -> tuple[Fact, ...]:
    """Return the facts of a kind, a key of `WORDINGS`."""
    if kind == INVENTED:
        return _invented()
    path, subject, answer = (STATES, "state", "capital") if kind == STATE else (COUNTRIES, "country", kind)
    return tuple(Fact(row[subject], kind, row[answer]) for row in _rows(path) if row[answer])


@functools.cache
def known_wordings() -> dict[Fact, tuple[bool, ...]]:
    """Return of every fact which of its wordings SmolLM2 answers."""
    rows = _rows(KNOWN)
    return {Fact(r["subject"], r["kind"], r["answer"]): tuple(x == "1" for x in r["answered"]) for r in rows}


def _invented() -> tuple[Fact, ...]:
    """Return invented capitals of invented countries, no two alike."""
    rng = random_stream(0, "invented", "capitals")
    stems = [begin + middle for begin in _BEGIN for middle in _MIDDLE]
    countries, cities = (rng.permutation(len(stems))[:INVENTED_FACTS] for _ in range(2))
    return tuple(
        Fact(stems[a] + _COUNTRY[a % len(_COUNTRY)], INVENTED, stems[b] + _CITY[b % len(_CITY)])
        for a, b in zip(countries.tolist(), cities.tolist(), strict=True)
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))
