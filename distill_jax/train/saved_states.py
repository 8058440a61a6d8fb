"""The saved states of a population: every node keeps those of its own members, and all continue from one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from distill_jax.io.checkpoint import Damaged
from distill_jax.io.journal import Prefix
from distill_jax.io.node import Node
from distill_jax.sharding.distributed import is_primary
from distill_jax.train.layout import Layout
from distill_jax.train.state import State


class SavedStates:
    """Save and restore a population among its nodes' checkpoints.

    Args:
      nodes: of each member, in their order; none if nothing is to be saved.
    """

    def __init__(self, layout: Layout, nodes: Sequence[Node]):
        self._layout = layout
        self._stores = {name: node.checkpoints for name, node in {node.name: node for node in nodes}.items()}
        self._index = {name: [i for i, node in enumerate(nodes) if node.name == name] for name in self._stores}

    def restore(self, state: State, say: Callable[[str], None]) -> State:
        """Return the state of the newest step that all nodes have undamaged, or the given one; either is donated."""
        saved = [set(store.steps()) for store in self._stores.values()]
        for step in sorted(set.intersection(*saved) if saved else (), reverse=True):
            try:
                pieces = {
                    name: store.restore(step, self._layout.shape(state, self._index[name]))
                    for name, store in self._stores.items()
                }
            except Damaged as error:
                say(f"warning: {str(error).split(';')[0]}; going back to the checkpoint before it")
                continue
            say(f"{', '.join(self._stores)}: continuing from step {step} of an earlier run")
            for name, piece in pieces.items():
                state = self._layout.put(state, piece, self._index[name])
            self._forget_after(step)
            return state
        self._forget_after(-1)
        return state

    def save(self, step: int, state: State, journals: Mapping[str, Prefix]) -> None:
        """Save each node's members, and how much of its journal belongs to them."""
        for name, store in self._stores.items():
            piece = self._layout.take(state, self._index[name])
            store.save(step, piece, journals.get(name), background=self._layout.saves_in_background)

    def wait(self) -> None:
        """Wait for what is being saved, and raise what went wrong with it."""
        for store in self._stores.values():
            store.wait()

    def _forget_after(self, step: int) -> None:
        # Newer steps that cannot be used would crowd out those that are about to be saved.
        for store in self._stores.values() if is_primary() else ():
            for later in [saved for saved in store.steps() if saved > step]:
                store.remove(later)
