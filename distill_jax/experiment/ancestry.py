"""What a node was made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from distill_jax.io.node import Node


def ancestry(names: Iterable[str], nodes: Mapping[str, Node]) -> list[str]:
    """Return the named nodes and all they were made from, each once, but the data, which is no input by name."""
    todo, needed = [*names], []
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.append(name)
            todo += nodes[name].inputs.values()
    return needed
