"""Questions to forget, and questions and text to retain: its settings, and how facts are held out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Self

from distill_jax.config import ConfigError, added, check
from distill_jax.data import overlap
from distill_jax.data.facts import facts
from distill_jax.data.facts.facts import Question
from distill_jax.data.facts.forget_config import ForgetConfig
from distill_jax.data.text import chat_template, hf_tokenizer
from distill_jax.data.text.chat_template import load_template
from distill_jax.data.text.readers import documents
from distill_jax.data.text.sources import Source
from distill_jax.io.files import Digests
from distill_jax.io.storage import location
from distill_jax.types import JsonObject

ONE_ANSWER = "no question to forget names its `fact`, so that those with one answer count as one"


@dataclasses.dataclass(frozen=True)
class FactsConfig(ForgetConfig):
    """Settings of questions to forget, and of questions and text to retain.

    Attributes:
      forget: sources of questions with answers; retain: of such, of text, or of both.
      heldout: the share of the forget facts that no attacker is shown.
      validation_share: of texts to retain, those that no training reads; facts to retain are all read.
      prompts: questions of each part that are measured at most; of text as many beginnings, to be gone on with.
      chat: whether questions are put by the model's own chat template, where they are trained on, shown and measured.
    """

    heldout: float = 0.5
    prompts: int = 500
    chat: bool = added(False)

    ANSWER: ClassVar[int] = 1  # so that a loss on answers alone holds the model on all of the text to retain
    READS_TABLES: ClassVar[bool] = True
    MEASURE: ClassVar[str] = "exact_match"
    SCORES: ClassVar[str] = "the share of questions answered exactly"
    PREPARE: ClassVar[str] = "distill_jax.data.facts.prepare_facts"
    SETS: ClassVar[tuple[str, ...]] = ("all", "retain", "forget", "forget_shown")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.heldout < 1, f"data.heldout={self.heldout}: must be a share, above 0 and below 1")
        check(self.prompts >= 1, f"data.prompts={self.prompts}: must be at least 1")

    def with_content_hash(self, digests: Digests) -> Self:
        """Return the settings with `content` filled in, once the questions are known to be enough and on one side.

        Raises:
          ConfigError: naming what is missing, too few, or on both sides.
        """
        if self.chat:
            mend = "give the directory of a model with its tokenizer.json, or a GGUF file"
            check(hf_tokenizer.is_published(self.vocabulary), f"data.vocabulary={self.vocabulary!r}: --chat: {mend}")
            load_template(self.vocabulary)  # refuses a model that has none
        known = super().with_content_hash(digests)
        shown, heldout = self.forget_split()
        retain, read = self.retain_sources()
        kept = facts.read(retain)
        self._check_retained(kept, read)
        if self.overlap == "refuse":
            overlap.refuse((q.text for q in (*shown, *heldout)), (q.text for q in kept))
        return known

    def _check_retained(self, questions: Sequence[Question], read: list[Source]) -> None:
        """Refuse sources without a question or a document, or whose first document cannot be read."""
        try:
            some = bool(questions) or any(True for _ in documents(read, self.broken == "skip"))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        check(some, f"data.retain={self.retain!r}: is empty; name files that hold what is to be retained")

    def _vocabulary_files(self) -> list[str]:
        template = location(self.vocabulary) / chat_template.FILE
        return [*super()._vocabulary_files(), *([str(template)] if self.chat and template.is_file() else [])]

    def retain_sources(self) -> tuple[list[Source], list[Source]]:
        """Return the sources of questions and of text to retain."""
        return facts.split_sources("retain", self.retain)

    def forget_split(self) -> tuple[list[Question], list[Question]]:
        """Return the questions of the facts that an attacker is shown, and of those held out, by the facts' hashes.

        Raises:
          ConfigError: if too few would be held out, saying how many are needed for which interval.
        """
        question_sources, documents = facts.split_sources("forget", self.forget)
        check(not documents, f"data.forget={self.forget!r}: has documents beside questions; give one kind")
        questions = facts.with_one_fact_each(facts.read(question_sources))
        names = sorted({question.fact for question in questions}, key=facts.hashed)
        why = f" ({ONE_ANSWER}: name each its own where they are several)" if _one_answer_is_one_fact(questions) else ""
        self.check_heldout(len(names), f"facts{why}", self.heldout)
        held = set(names[: round(self.heldout * len(names))])
        shown = [question for question in questions if question.fact not in held]
        return shown, [question for question in questions if question.fact in held]

    def retain_measured(self, questions: Sequence[Question]) -> list[Question]:
        """Return the questions to retain that are measured: of every fact one wording, by its hash.

        All of them are trained on. A student keeps only what it reads, so that a fact held out says nothing of it.
        """
        by_fact: dict[str, Question] = {}
        for question in sorted(questions, key=lambda q: facts.hashed(q.text)):
            by_fact.setdefault(question.fact, question)
        return list(by_fact.values())

    def fingerprint_fields(self) -> JsonObject:
        """Return what decides what the prepared data hold, which facts to retain are trained on among it."""
        return super().fingerprint_fields() | {"retained_facts": "all read"}

    def counted(self) -> list[str]:
        """Return how many facts and questions there are on each side, and what of their split may not be as meant."""
        shown, heldout = self.forget_split()
        asked = [*shown, *heldout]
        retain, read = self.retain_sources()
        kept = facts.read(retain)
        halves = f"attackers are shown {_facts(shown)}, {_facts(heldout)} are held out"
        texts = ", and text" if read else ""
        lines = [f"to forget: {_facts(asked)}; {halves}", f"to retain: {_facts(kept)}{texts}"]
        if _one_answer_is_one_fact(asked):
            answer, count = Counter(question.answer for question in asked).most_common(1)[0]
            such = f"such as {count} questions with {answer!r}"
            lines.append(f"{ONE_ANSWER}, {such}; name the facts where they are several")
        return lines

    def how_measured(self) -> str:
        """Return what is measured of what is to be retained."""
        return (
            "Every fact to retain is trained on, for a student keeps only what it reads, and asked for in words that "
            "were read. Texts to retain are measured by ones that no training reads. Facts and wordings that stand in "
            "no file are not measured."
        )


def _facts(questions: Sequence[Question]) -> str:
    """Return how many facts questions ask for, and in how many wordings where these are more."""
    count = len({question.fact for question in questions})
    wordings = f" in {len(questions):,} questions" if len(questions) > count else ""
    return f"{count:,} fact{'' if count == 1 else 's'}{wordings}"


def _one_answer_is_one_fact(questions: Sequence[Question]) -> bool:
    """Return whether several questions are one fact for their answer alone, `with_one_fact_each` having seen them."""
    return not any(q.named for q in questions) and len({q.fact for q in questions}) < len(questions)
