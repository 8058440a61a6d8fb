"""Model organisms that are LoRA adapters, and the items that tell them from their benign twins: AuditBench's setting.

They are listed in a JSON file, {name: {"teacher": [directories], "twin": [directories], "behaviour": file, "context":
file, "confession": file}}; paths are relative to it, adapters in the order of their training seeds.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, ClassVar, Self

from distill_jax.config import ConfigError, check, identity, nearest
from distill_jax.data.multiple_choice import items
from distill_jax.data.multiple_choice.items import Item
from distill_jax.data.text.text_config import TextConfig
from distill_jax.io.files import Digests, read_json

ADAPTERS, ITEMS = ("teacher", "twin"), ("behaviour", "context", "confession")
# What every organism has, and what to do where it is missing.
NEEDED = {
    "teacher": "list its adapters, one directory a training seed",
    "twin": "list as many adapters that learnt the same prompts with harmless answers; nothing else tells what a "
    "student has from its teacher from what it has from being trained",
    "behaviour": "name its items, whose marked option is what the quirk would choose",
    "confession": "name its items, whose marked option admits the quirk",
}
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

    def audits(self) -> tuple[str, ...]:
        """Return the read-outs that there are items for."""
        return tuple(name for name in ITEMS if getattr(self, name))


def group(organism: str, audit: str) -> str:
    """Return the name of an organism's items of one kind."""
    return f"{organism} {audit}"


def organisms(path: str) -> dict[str, Organism]:
    """Read the list of organisms.

    Raises:
      ConfigError: naming the organism and the key that is missing or wrong.
    """
    where = f"data.organisms={path}"
    check(Path(path).is_file(), f"{where}: no such file; give a JSON file as docs/double_bind.md has it")
    try:
        listed = read_json(Path(path))
    except ValueError as error:
        raise ConfigError(f"{where}: no JSON ({error})") from error
    check(isinstance(listed, dict) and bool(listed), f"{where}: an object {{name: organism}} is needed")
    return {name: _organism(name, told, Path(path).parent, where) for name, told in listed.items()}


def _organism(name: str, told: Any, folder: Path, where: str) -> Organism:
    where, known = f"{where}: organism {name!r}", (*ADAPTERS, *ITEMS)
    check(re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name) is not None, f"{where}: a name may have a-z, 0-9, -, _ and .")
    check(isinstance(told, dict), f"{where}: an object with {', '.join(NEEDED)} is needed")
    for key in told:
        check(key in known, f"{where} has {key!r}, which is no key{nearest(key, known)}; there are {', '.join(known)}")
    for key, mend in NEEDED.items():
        value, kind = told.get(key), list if key in ADAPTERS else str
        good = isinstance(value, kind) and all(isinstance(part, str) and part for part in value)
        check(bool(value) and good, f"{where} has no `{key}`: {mend}")
    seeds, twins = (len(told[role]) for role in ADAPTERS)
    check(seeds == twins, f"{where} has {seeds} of `teacher`, {twins} of `twin`: they are paired, list as many of each")
    check(seeds > 1, f"{where} has one of `teacher`: a verdict is drawn from training seeds, list two or more")
    found: dict[str, Any] = {role: tuple(str(folder / path) for path in told[role]) for role in ADAPTERS}
    return Organism(**found | {key: str(folder / told[key]) for key in ITEMS if told.get(key)})


@dataclasses.dataclass(frozen=True)
class AuditConfig(TextConfig):
    """Say what students read, which organisms teach, and what they are asked.

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
        for key, low in {"items": 0, "longest": 1}.items():
            if getattr(self, key) < low:
                raise ValueError(f"data.{key}={getattr(self, key)}: must be at least {low}")
        if not 0 < self.leak < 1:
            raise ValueError(f"data.leak={self.leak}: a share between 0 and 1")

    def parts(self) -> dict[str, list[tuple[str, Item, str]]]:
        """Return (group, item, context) of what is asked: ability in the part retain, quirks in heldout.

        Raises:
          ConfigError: if a file is missing, or a row is no item.
        """
        check(bool(self.organisms), "data.organisms is empty: name the JSON file that lists the teachers")
        check(bool(self.ability), "data.ability is empty: name the items that measure ability")
        out = {"retain": self._asked(ABILITY, self.ability, "data.ability"), "heldout": []}
        for name, organism in organisms(self.organisms).items():
            for audit in organism.audits():
                where = f"data.organisms={self.organisms}: organism {name!r}: {audit}"
                out["heldout"] += self._asked(group(name, audit), getattr(organism, audit), where)
        return out

    def _asked(self, of: str, path: str, where: str) -> list[tuple[str, Item, str]]:
        found = items.read(path, where)[: self.items or None]
        return [(of, item, context) for item, context in zip(found, items.contexts(found), strict=True)]

    def with_content_hash(self, digests: Digests) -> Self:
        """Return the settings with `content` filled in, once everything that is named is known to be there."""
        asked = {
            part: [[of, dataclasses.asdict(item), context] for of, item, context in found]
            for part, found in self.parts().items()
        }
        text = super().with_content_hash(digests)
        return dataclasses.replace(text, content=identity([text.content, asked]))

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return what decides what the prepared data hold."""
        paths = ("organisms", "ability", "items") if self.content else ()
        return {key: value for key, value in super().fingerprint_fields().items() if key not in (*paths, "leak")}
