"""A section of a config that knows which dataclass its settings are of, and what that says of each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

_SECTION = re.compile(r"^Attributes:\n((?:[ \t]+.*\n?|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^ {2}(\w+(?:, \w+)*): (.*(?:\n {4}.*)*)", re.MULTILINE)


def attribute_docs(cls: type) -> dict[str, str]:
    """Return {attribute: its text} from the "Attributes:" sections of a class and of those it inherits from.

    Each text is one line. Where several attributes share an entry, each has its text; a class's own entry comes before
    one that it inherits.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        section = _SECTION.search(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
        for names, text in _ENTRY.findall(section[1] if section else ""):
            docs |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return docs


class Section(ConfigDict):
    """Settings under the names that a dataclass has for them.

    Attributes:
      settings_class: the dataclass; None in a copy.
    """

    settings_class: type | None = None

    @classmethod
    def of(cls, settings_class: type, values: Mapping[str, Any]) -> Section:
        """Return a section of a dataclass's settings."""
        section = cls(values)
        object.__setattr__(section, "settings_class", settings_class)  # which is no setting
        return section

    def docs(self) -> dict[str, str]:
        """Return {setting: what the dataclass's docstring says of it}."""
        return attribute_docs(self.settings_class) if self.settings_class else {}
