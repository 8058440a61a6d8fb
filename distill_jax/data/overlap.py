"""Texts that stand on both sides, to forget and to retain: a model cannot do both with them. Needs no TensorFlow."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from distill_jax.config import check

SHINGLE = 8  # words in a row
SHARE = 0.5  # of the shorter text's shingles, from which on the two are near duplicates
LONG = 2 * SHINGLE  # words from which on a text has shingles enough to be compared by


class Pair(NamedTuple):
    """A text to retain, and the one to forget that it repeats: exactly (but for case and punctuation) or nearly."""

    retain: str
    forget: str
    exact: bool


class Overlaps:
    """Find texts that repeat one of these.

    Short texts are the same if they have the same words in any order; long ones nearly so if half of the runs of eight
    words of the shorter one stand in the other.
    """

    def __init__(self, forget: Iterable[str]) -> None:
        self._texts: list[str] = []
        self._exact: dict[str, int] = {}
        self._words: dict[tuple[str, ...], int] = {}
        self._shingles: dict[int, list[int]] = collections.defaultdict(list)
        self._sizes: list[int] = []
        for number, text in enumerate(forget):
            words, shingles = _words(text), _shingles(text)
            self._texts.append(text)
            self._sizes.append(len(shingles))
            self._exact.setdefault(" ".join(words), number)
            self._words.setdefault(tuple(sorted(words)), number)
            for shingle in shingles:
                self._shingles[shingle].append(number)

    def find(self, retain: Iterable[str]) -> Iterator[Pair]:
        """Yield a pair for each text that repeats one of those to forget."""
        for text in retain:
            words = _words(text)
            if not words:
                continue
            number = self._exact.get(" ".join(words))
            if number is not None:
                yield Pair(text, self._texts[number], True)
            elif (near := self._near(text, words)) is not None:
                yield Pair(text, self._texts[near], False)

    def _near(self, text: str, words: list[str]) -> int | None:
        same = self._words.get(tuple(sorted(words)))
        if same is not None:
            return same
        shingles = _shingles(text)
        hits = collections.Counter(number for shingle in shingles for number in self._shingles.get(shingle, ()))
        for number, count in hits.most_common(1):
            if count >= SHARE * min(len(shingles), self._sizes[number]):
                return number
        return None


def refuse(forget: Iterable[str], retain: Iterable[str]) -> None:
    """Refuse texts to retain that are to be forgotten as well.

    Raises:
      ConfigError: with how many there are, and the first of them.
    """
    pairs = list(Overlaps(forget).find(retain))
    exact = sum(pair.exact for pair in pairs)
    mend = "take them out of one; --config.data.overlap=allow goes on all the same"
    first = f"such as {' '.join(pairs[0].retain.split())[:80]!r}" if pairs else ""
    counted = f"{len(pairs):,} texts are on both sides ({exact:,} exactly, {len(pairs) - exact:,} nearly)"
    check(not pairs, f"data.forget and data.retain overlap: {counted}, {first}; {mend}")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _shingles(text: str) -> set[int]:
    words = _words(text)
    if len(words) < LONG:
        return set()
    return {hash(tuple(words[i : i + SHINGLE])) for i in range(len(words) - SHINGLE + 1)}
