"""Text to retain and to forget, and multiple-choice items to measure by: WMDP's setting."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import ClassVar, Self

from distill_jax.config import ConfigError, check, identity
from distill_jax.data.multiple_choice import items
from distill_jax.data.multiple_choice.items import Item
from distill_jax.data.text.text_config import TextConfig
from distill_jax.io.files import Digests
from distill_jax.types import JsonObject

FILES = ("bio", "cyber", "mmlu", "mmlu_dev")
ABOUT = {"bio": "biology", "cyber": "cybersecurity"}  # as lm-evaluation-harness says it


@dataclasses.dataclass(frozen=True)
class QuizConfig(TextConfig):
    """Settings of text to retain and to forget, and of the items that show what is known of it.

    Attributes:
      bio, cyber: the items to forget, files or patterns (`data.items`); one of them may be empty.
      mmlu: the items to retain; mmlu_dev: those that are shown solved before them.
      shots: how many are; items to forget have none.
      items: of each part that are measured at most; 0 for all.
      longest: tokens of a context at most; what is over is left out at its beginning.
    """

    bio: str = ""
    cyber: str = ""
    mmlu: str = ""
    mmlu_dev: str = ""
    shots: int = 5
    items: int = 1000
    longest: int = 8192

    MEASURE: ClassVar[str] = "multiple_choice"
    PREPARE: ClassVar[str] = "distill_jax.data.multiple_choice.prepare_quiz"
    SETS: ClassVar[tuple[str, ...]] = ("all", "retain", "forget", "forget_shown")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value, low in (("shots", self.shots, 0), ("items", self.items, 0), ("longest", self.longest, 1)):
            check(value >= low, f"data.{key}={value}: must be at least {low}")

    def read(self) -> dict[str, list[Item]]:
        """Return the items of every file that is named.

        Raises:
          ConfigError: if one is missing, or a row is no item.
        """
        paths = {"bio": self.bio, "cyber": self.cyber, "mmlu": self.mmlu, "mmlu_dev": self.mmlu_dev}
        return {key: items.read(path, f"data.{key}", ABOUT.get(key, "")) for key, path in paths.items() if path}

    def with_content_hash(self, digests: Digests) -> Self:
        """Return the settings with `content` filled in, once everything that is named is known to be there."""
        check(bool(self.bio or self.cyber), "data.bio and data.cyber are empty: name WMDP's items")
        check(bool(self.mmlu), "data.mmlu is empty: name the items to retain, such as MMLU's")
        check(bool(self.mmlu_dev) or not self.shots, f"data.mmlu_dev is empty, with data.shots={self.shots}: name them")
        held = {key: [dataclasses.asdict(item) for item in found] for key, found in self.read().items()}
        self.eval_splits()  # refuses what is no quiz
        text = super().with_content_hash(digests)
        return dataclasses.replace(text, content=identity([text.content, held]))

    def fingerprint_fields(self) -> JsonObject:
        """Return what decides what the prepared data hold."""
        return {
            key: value for key, value in super().fingerprint_fields().items() if not (self.content and key in FILES)
        }

    def eval_splits(self) -> dict[str, list[tuple[str, Item, str]]]:
        """Return (group, item, context) of what is measured: retain, and the halves of forget, shown and heldout.

        Which half an item is in, and which items are measured where not all are, is a matter of its question's hash.

        Raises:
          ConfigError: if a half is empty, or examples are missing.
        """
        by_file = self.read()
        out: dict[str, list[tuple[str, Item]]] = {"retain": [("mmlu", item) for item in by_file["mmlu"]]}
        for key in ABOUT:
            ordered = sorted(by_file.get(key, []), key=_hash)
            for part, start in (("shown", 0), ("heldout", 1)):
                out.setdefault(part, []).extend((key, item) for item in ordered[start::2])
        splits = {}
        for part, pairs in out.items():
            check(bool(pairs), f"data.bio and data.cyber: have no two items, and {part!r} would be empty")
            chosen = sorted(pairs, key=lambda pair: _hash(pair[1]))[: self.items or None]
            shown, shots = (by_file.get("mmlu_dev", []), self.shots) if part == "retain" else ([], 0)
            try:
                contexts = items.contexts([item for _, item in chosen], shown, shots)
            except ConfigError as error:
                raise ConfigError(str(error).replace("--shots", "data.shots")) from error
            splits[part] = [(*pair, context) for pair, context in zip(chosen, contexts, strict=True)]
        return splits


def _hash(item: Item) -> str:
    return hashlib.sha256(item.question.encode()).hexdigest()
