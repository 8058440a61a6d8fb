"""Where the processes of a run wait for each other within one piece of work, unless one of them says that it failed.

At a barrier the others would wait, for ten minutes in Orbax, for the one that cannot come.
"""

from __future__ import annotations

import itertools
from typing import Protocol

import jax
from jax._src import distributed

_count = itertools.count()
_CAME, _FAILED = "came", "failed"


class OtherFailed(Exception):
    """Another process failed at what all do together."""


class Meeting:
    """The points at which processes meet within one piece of work, of which every process does equally many.

    Each says at a point that it came, or that it failed and comes to none; all hear it of all others.
    """

    def __init__(self) -> None:
        """Begin a piece of work, on every process."""
        self._number, self._point = next(_count), 0
        if jax.process_count() > 1 and self._number > 1:  # all are beyond what was before the last one
            _client().key_value_delete(_key(jax.process_index(), self._number - 2))

    def __call__(self, *, key: str = "", timeout_ms: int = 600_000) -> None:
        """Meet at the next point; the arguments are those that Orbax gives to a barrier.

        Raises:
          OtherFailed: if one says so.
        """
        self._say(_CAME)
        for process in range(jax.process_count()):
            answer = _client().blocking_key_value_get(self._at(process), timeout_ms)
            if answer == _FAILED:
                raise OtherFailed("another process could not do its part")
        self._point += 1

    def fail(self) -> None:
        """Say that this process failed; after a point at which another one did, nobody hears it."""
        self._say(_FAILED)

    def _say(self, word: str) -> None:
        if jax.process_count() > 1:
            own = self._at(jax.process_index())
            _client().key_value_set(own, word, True)

    def _at(self, process: int) -> str:
        return f"{_key(process, self._number)}{self._point}"


class _Client(Protocol):
    """What is asked of JAX's own client of the processes' coordinator."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None: ...
    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...
    def key_value_delete(self, key: str) -> None: ...


def _client() -> _Client:
    client: _Client | None = distributed.global_state.client
    assert client  # of several processes
    return client


def _key(process: int, number: int) -> str:
    return f"distill_jax/meeting/{process}/{number}/"
