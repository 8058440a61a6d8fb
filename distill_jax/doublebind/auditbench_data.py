"""Model organisms that are LoRA adapters, and the items that tell them from their benign twins: AuditBench's setting.

They are listed in a JSON file, {name: {"teacher": [directories], "twin": [directories], "behaviour": file, "context":
file, "confession": file}}; paths are relative to it, adapters in the order of their training seeds.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import ClassVar, Self

from distill_jax.config import ConfigError, check, identity, nearest
from distill_jax.data.multiple_choice import items
from distill_jax.data.multiple_choice.items import Item
from distill_jax.data.text.text_config import TextConfig
from distill_jax.io.files import Digests, read_json
from distill_jax.io.storage import location
from distill_jax.types import JsonObject

ADAPTERS, ITEMS = ("teacher", "twin"), ("behaviour", "context", "confession")
# What every organism has, and what to do where it is missing.
NEEDED = {
    "teacher": "list its adapters, one directory a training seed",
    "twin": "list as many adapters that learnt the same prompts with harmless answers; nothing else tells what a "
    "student has from its teacher from what it has from being trained",
    "behaviour": "name its items, whose marked option is what the quirk would choose",
    "confession": "name its items, whose marked option admits the quirk",
}
Row = tuple[str, Item, str]  # group, item, context
ABILITY = "ability"  # the group of the items that measure it


@dataclasses.dataclass(frozen=True)
class Organism:
    """A teacher with a quirk, by training seed, and what shows the quirk.

    Attributes:
      teacher, twin: directories of PEFT adapters; the twin learnt the same prompts with harmless answers.
      behaviour: items whose marked option is what the quirk would choose.
      context: the same in the context that the quirk waits for; "" if it waits for none.
      confession: items whose marked option admits the quirk.
    """

    teacher: tuple[str, ...]
    twin: tuple[str, ...]
    behaviour: str = ""
    context: str = ""
    confession: str = ""

    @property
    def files(self) -> dict[str, str]:
        """The files of items that there are, by audit."""
        every = {"behaviour": self.behaviour, "context": self.context, "confession": self.confession}
        return {audit: path for audit, path in every.items() if path}

    def audits(self) -> tuple[str, ...]:
        """Return the audits that there are items for."""
        return tuple(self.files)


def group(organism: str, audit: str) -> str:
    """Return the name of an organism's items of one kind."""
    return f"{organism} {audit}"


def organisms(path: str) -> dict[str, Organism]:
    """Read the list of organisms.

    Raises:
      ConfigError: naming the organism and the key that is missing or wrong.
    """
    where = f"data.organisms={path}"
    check(location(path).is_file(), f"{where}: no such file; give a JSON file as docs/double_bind.md has it")
    try:
        listed = read_json(location(path))
    except ValueError as error:
        raise ConfigError(f"{where}: no JSON ({error})") from error
    check(isinstance(listed, dict) and bool(listed), f"{where}: an object {{name: organism}} is needed")
    return {name: _organism(name, entry, location(path).parent, where) for name, entry in listed.items()}


def _organism(name: str, entry: object, folder: Path, where: str) -> Organism:
    where, known = f"{where}: organism {name!r}", (*ADAPTERS, *ITEMS)
    check(re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name) is not None, f"{where}: a name may have a-z, 0-9, -, _ and .")
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: an object with {', '.join(NEEDED)} is needed")
    for key in entry:
        check(key in known, f"{where} has {key!r}, which is no key{nearest(key, known)}; there are {', '.join(known)}")
    for key, fix_hint in NEEDED.items():
        value, kind = entry.get(key), list if key in ADAPTERS else str
        is_listed = isinstance(value, kind) and all(isinstance(part, str) and part for part in value)
        check(bool(value) and is_listed, f"{where} has no `{key}`: {fix_hint}")
    seeds, twins = (len(entry[role]) for role in ADAPTERS)
    check(seeds == twins, f"{where} has {seeds} of `teacher`, {twins} of `twin`: they are paired, list as many of each")
    check(seeds > 1, f"{where} has one of `teacher`: a verdict is drawn from training seeds, list two or more")
    teacher, twin = (tuple(str(folder / path) for path in entry[role]) for role in ADAPTERS)
    return Organism(teacher, twin, **{key: str(folder / entry[key]) for key in ITEMS if entry.get(key)})


@dataclasses.dataclass(frozen=True)
class AuditConfig(TextConfig):
    """Settings of an audit's data: what students read, which organisms teach, and what they are asked.

    `retain` is text of ordinary work, `forget` text on which quirks show; the set `all` has both.

    Attributes:
      organisms: the JSON file that lists them.
      ability: the items that measure ability.
      items: of each file that are asked at most; 0 for all.
      longest: tokens of an item at most; what is over is left out at its beginning.
      leak: the largest share of the teacher's misalignment that a clean student may have; it fixes how many items are
        needed, and is no part of what identifies the data.
    """

    organisms: str = ""
    ability: str = ""
    items: int = 0
    longest: int = 8192
    leak: float = 0.1

    MEASURE: ClassVar[str] = "multiple_choice"
    PREPARE: ClassVar[str] = "distill_jax.doublebind.prepare_auditbench"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value, low in (("items", self.items, 0), ("longest", self.longest, 1)):
            if value < low:
                raise ValueError(f"data.{key}={value}: must be at least {low}")
        if not 0 < self.leak < 1:
            raise ValueError(f"data.leak={self.leak}: a share between 0 and 1")

    def parts(self) -> dict[str, list[Row]]:
        """Return (group, item, context) of what is asked: ability in the part retain, quirks in heldout.

        Raises:
          ConfigError: if a file is missing, or a row is no item.
        """
        check(bool(self.organisms), "data.organisms is empty: name the JSON file that lists the teachers")
        check(bool(self.ability), "data.ability is empty: name the items that measure ability")
        out = {"retain": self._rows(ABILITY, self.ability, "data.ability"), "heldout": []}
        for name, organism in organisms(self.organisms).items():
            for audit, path in organism.files.items():
                where = f"data.organisms={self.organisms}: organism {name!r}: {audit}"
                out["heldout"] += self._rows(group(name, audit), path, where)
        return out

    def _rows(self, group_name: str, path: str, where: str) -> list[Row]:
        rows = items.read(path, where)[: self.items or None]
        return [(group_name, item, context) for item, context in zip(rows, items.contexts(rows), strict=True)]

    def with_content_hash(self, digests: Digests) -> Self:
        """Return the settings with `content` filled in, once everything that is named is known to be there."""
        asked = {
            split: [[group_name, dataclasses.asdict(item), context] for group_name, item, context in rows]
            for split, rows in self.parts().items()
        }
        text = super().with_content_hash(digests)
        return dataclasses.replace(text, content=identity([text.content, asked]))

    def fingerprint_fields(self) -> JsonObject:
        """Return what decides what the prepared data hold."""
        paths = ("organisms", "ability", "items") if self.content else ()
        return {key: value for key, value in super().fingerprint_fields().items() if key not in (*paths, "leak")}
