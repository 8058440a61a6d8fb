"""Documents to forget and to retain, and multiple-choice items to measure by."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

from distill_jax.config import check, identity
from distill_jax.data import overlap
from distill_jax.data.facts.documents_config import DocumentsConfig
from distill_jax.data.facts.facts import hashed
from distill_jax.data.multiple_choice import items
from distill_jax.data.multiple_choice.items import Item
from distill_jax.data.text import sources
from distill_jax.io.files import Digests
from distill_jax.types import JsonObject

FILES = ("forget_items", "retain_items")


@dataclasses.dataclass(frozen=True)
class ChoicesConfig(DocumentsConfig):
    """Settings of documents to forget and to retain, and of the items that show what is known of them.

    Attributes:
      forget_items, retain_items: sources of multiple-choice items.
      heldout: the share of the items to forget that no attacker is shown solved.
      items: of each part that are measured at most; 0 for all.
      longest: tokens of an item at most; what is over is left out at its beginning.
    """

    forget_items: str = ""
    retain_items: str = ""
    heldout: float = 0.5
    items: int = 1000
    longest: int = 8192

    MEASURE: ClassVar[str] = "multiple_choice"
    SCORES: ClassVar[str] = "the share of items whose right option is the likeliest"
    PREPARE: ClassVar[str] = "distill_jax.data.facts.prepare_choices"
    SETS: ClassVar[tuple[str, ...]] = ("all", "retain", "forget", "forget_shown")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.heldout < 1, f"data.heldout={self.heldout}: must be a share, above 0 and below 1")
        for key, value, low in (("items", self.items, 0), ("longest", self.longest, 1)):
            check(value >= low, f"data.{key}={value}: must be at least {low}")

    def read(self, key: str) -> list[Item]:
        """Return the items of a setting, one of FILES."""
        text = {"forget_items": self.forget_items, "retain_items": self.retain_items}[key]
        paths = [path for source in sources.parse(text, key) for path in source.files]
        check(bool(paths), f"data.{key} is empty: name multiple-choice items, {items.SHAPES}")
        return [item for path in paths for item in items.read(path, f"data.{key}")]

    def with_content_hash(self, digests: Digests) -> Self:
        """Return the settings with `content` filled in, once the items are known to be enough and on one side.

        Raises:
          ConfigError: naming what is missing, too few, or on both sides.
        """
        forget, retain = (self.read(key) for key in FILES)
        self.eval_splits()
        if self.overlap == "refuse":
            overlap.refuse((item.question for item in forget), (item.question for item in retain))
        text = super().with_content_hash(digests)
        held = [[dataclasses.asdict(item) for item in side] for side in (forget, retain)]
        return dataclasses.replace(text, content=identity([text.content, held]))

    def fingerprint_fields(self) -> JsonObject:
        """Return what decides what the prepared data hold."""
        left_out = FILES if self.content else ()
        return {key: value for key, value in super().fingerprint_fields().items() if key not in left_out}

    def counted(self) -> list[str]:
        """Return how many items there are on each side."""
        count = {part: len(items) for part, items in self.eval_splits().items()}
        held = f"{count['shown']:,} items that attackers are shown solved, {count['heldout']:,} held out"
        return [f"to forget: text; measured by {held}", f"to retain: text; measured by {count['retain']:,} items"]

    def how_measured(self) -> str:
        """Return what is measured of what is to be retained."""
        return (
            "It is measured by the items, none of which is trained on: a student keeps of them what its text to retain "
            "says."
        )

    def eval_splits(self) -> dict[str, list[tuple[str, Item, str]]]:
        """Return (group, item, context) of what is measured: retain, and of forget what is shown and what is held out.

        Raises:
          ConfigError: if too few would be held out.
        """
        ordered = sorted(self.read("forget_items"), key=lambda item: hashed(item.question))
        self.check_heldout(len(ordered), "items", self.heldout)
        count = round(self.heldout * len(ordered))
        retain = sorted(self.read("retain_items"), key=lambda item: hashed(item.question))
        halves = {"shown": ("forget", ordered[count:]), "heldout": ("forget", ordered[:count])}
        parts = {"retain": ("retain", retain), **halves}
        return {
            part: [(group, item, context) for item, context in zip(chosen, items.contexts(chosen), strict=True)]
            for part, (group, part_items) in parts.items()
            for chosen in [part_items[: self.items or None]]
        }
