"""The saved states of a population: every node keeps those of its own members, and all continue from one step."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence

from distill_jax.io.checkpoint import Damaged
from distill_jax.io.journal import Prefix
from distill_jax.io.node import Node
from distill_jax.sharding.distributed import is_primary, on_any
from distill_jax.train.layout import Layout
from distill_jax.train.state import State


class SavedStates:
    """Save and restore a population among its nodes' checkpoints.

    A save that the storage refuses costs no more than itself: it is said in a line, what was saved before stays, and
    the next save tries again.

    Args:
      nodes: of each member, in their order; none if nothing is to be saved.
      say: prints a line.
    """

    def __init__(self, layout: Layout, nodes: Sequence[Node], say: Callable[[str], None]):
        self._layout, self._say = layout, say
        self._stores = {name: node.checkpoints for name, node in {node.name: node for node in nodes}.items()}
        self._index = {name: [i for i, node in enumerate(nodes) if node.name == name] for name in self._stores}
        self._step = 0  # of the newest save
        self._errors: list[OSError] = []  # of that save

    def restore(self, state: State) -> State:
        """Return the state of the newest step that all nodes have undamaged, or the given one; either is donated."""
        saved = [set(store.steps()) for store in self._stores.values()]
        for step in sorted(set.intersection(*saved) if saved else (), reverse=True):
            try:
                pieces = {
                    name: store.restore(step, self._layout.shape(state, self._index[name]))
                    for name, store in self._stores.items()
                }
            except Damaged as error:
                self._say(f"warning: {str(error).split(';')[0]}; going back to the checkpoint before it")
                continue
            self._say(f"{', '.join(self._stores)}: continuing from step {step} of an earlier run")
            for name, piece in pieces.items():
                state = self._layout.put(state, piece, self._index[name])
            self._forget_after(step)
            return state
        self._forget_after(-1)
        return state

    def save(self, step: int, state: State, journals: Mapping[str, Prefix]) -> None:
        """Save each node's members, and how much of its journal belongs to them."""
        self.wait()
        self._step = step
        for name, store in self._stores.items():  # all of them, whatever fails: every host takes part in each
            piece = self._layout.take(state, self._index[name])
            with self._noted():
                store.save(step, piece, journals.get(name), background=self._layout.saves_in_background)
        if on_any(bool(self._errors)):
            self.wait()

    def wait(self, *, together: bool = True) -> None:
        """Wait for what is being saved, and give it up for all nodes if it failed for one: they continue together.

        Args:
          together: whether all processes wait here, so that one's failure is all others'.
        """
        for store in self._stores.values():
            with self._noted():
                store.wait()
        if not (on_any(bool(self._errors)) if together else self._errors):
            return
        elsewhere = OSError(errno.EIO, "another process could not write its part")
        error = next(iter(self._errors), elsewhere)
        self._errors = []
        for store in self._stores.values() if is_primary() else ():
            with contextlib.suppress(OSError):  # where it refused to write it may refuse this too
                store.remove(self._step)
        # Without that step, which the first process may not have removed yet.
        kept = set.intersection(*(set(store.steps()) - {self._step} for store in self._stores.values()))
        before = f"step {max(kept)} stays" if kept else "nothing is saved yet"
        where = f": {error.filename}" if error.filename else ""
        self._say(
            f"warning: step {self._step} of {', '.join(self._stores)} could not be saved ({error.strerror}{where}); "
            f"{before}, and the next save tries again"
        )

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._errors.append(error)

    def _forget_after(self, step: int) -> None:
        # Newer steps that cannot be used would crowd out those that are about to be saved.
        for store in self._stores.values() if is_primary() else ():
            for later in [saved for saved in store.steps() if saved > step]:
                store.remove(later)
