"""What a node was made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def ancestry(names: Iterable[str], nodes: Mapping[str, Any]) -> list[str]:
    """Return the named nodes and all they were made from, each once, but the data, which is no input by name."""
    todo, found = [*names], []
    while todo:
        name = todo.pop()
        if name not in found:
            found.append(name)
            todo += nodes[name].inputs.values()
    return found
