"""Where wall time goes: a clock on which every moment has exactly one cause, through all processes of a node.

The host runs ahead of the devices, so what is charged is what the host waits for, and nothing is waited for that was
not before:

* "step": handing steps to the devices and waiting for them; reading a batch while a step is still running.
* "compile": tracing, lowering and compiling, wherever they happen, by JAX's own account of them.
* "data": reading a batch that the devices were waiting for.
* "evaluate", "save": from when the steps before are done.
* "restart": whatever came after the checkpoint that the next process continued from, and reading that checkpoint.
* "idle": the rest.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from distill_jax.types import JsonObject

CAUSES = ("step", "compile", "data", "evaluate", "save", "restart", "idle")
MARKS_KEPT = 8  # checkpoints are kept in twos, and one save may be under way


class Mark(NamedTuple):
    """What a node had taken by a checkpoint.

    Attributes:
      training: "", or which of the node's trainings it is (`training_of`).
      seconds: by cause.
    """

    training: str
    step: int
    seconds: Mapping[str, float]


class Timings(NamedTuple):
    """What an unfinished node has taken so far, in all processes that worked on it."""

    seconds: Mapping[str, float]
    marks: tuple[Mark, ...] = ()
    processes: int = 0

    def continued_from(self, training: str, step: int) -> Timings:
        """Return the timings without the marks that a process which continues from a step does not go on from."""
        marks = list(self.marks)
        while marks and marks[-1].training == training and marks[-1].step > step:
            marks.pop()
        return self._replace(marks=tuple(marks))

    def kept(self) -> dict[str, float]:
        """Return the seconds by cause, with all that came after the last mark as lost to a restart."""
        base = dict(self.marks[-1].seconds) if self.marks else dict.fromkeys(CAUSES, 0.0)
        base["restart"] += sum(self.seconds.values()) - sum(base.values())
        return base

    def as_json(self) -> JsonObject:
        """Return it as `from_json` takes it."""
        return {
            "seconds": dict(self.seconds),
            "marks": [list(mark) for mark in self.marks],
            "processes": self.processes,
        }

    @classmethod
    def from_json(cls, value: JsonObject) -> Timings:
        """Return the timings that `as_json` wrote.

        Raises:
          KeyError, TypeError, ValueError: if it did not.
        """
        marks = tuple(Mark(str(training), int(step), _seconds(by)) for training, step, by in value["marks"])
        return cls(_seconds(value["seconds"]), marks, int(value["processes"]))


def _seconds(by_cause: Mapping[str, float]) -> dict[str, float]:
    return {cause: float(by_cause[cause]) for cause in CAUSES}


def training_of(name: str) -> str:
    """Return which of a node's trainings has a (sub)node's name: "" for the node's own."""
    return name.partition(" ")[2]


class Lap(NamedTuple):
    """What a node took.

    Attributes:
      seconds: by cause; they add up to its wall time, or to its share of its population's.
      processes: that worked on it.
      predicted: FLOP/s of its steps by the plan's roofline; None where one of its trainings has none.
    """

    seconds: Mapping[str, float]
    processes: int = 1
    predicted: float | None = None

    def share(self, share: float) -> Lap:
        """Return a node's share of what its population took."""
        return self._replace(seconds={cause: share * seconds for cause, seconds in self.seconds.items()})

    def plus(self, own: Lap) -> Lap:
        """Return what it took together with what it took alone."""
        return self._replace(seconds=_sum([self.seconds, own.seconds]))


class _Moment(NamedTuple):
    seconds: dict[str, float]
    cause: str
    since: float
    compiled: float


class _Training(NamedTuple):
    name: str
    step: int
    steps: int
    calls: int
    first: int  # the step from which the rate is taken, and when it was
    since: float


class Clock:
    """Count the time of a population from now on, each moment for one cause.

    Args:
      rest: the cause of what no block names.
      earlier: of each node that is computed, what processes before this one have taken; they share what this one takes.
      save: is called at every mark.
    """

    def __init__(
        self,
        rest: str = "idle",
        earlier: Sequence[Timings] = (Timings(dict.fromkeys(CAUSES, 0.0)),),
        save: Callable[[Clock], None] | None = None,
    ) -> None:
        self._earlier, self._marks, self._lapped = list(earlier), list[Mark](), dict.fromkeys(CAUSES, 0.0)
        self._save = save
        self._training: _Training | None = None
        self._predictions: list[tuple[float, float | None]] = []  # FLOPs and seconds of the trainings of this lap
        self._spans = _compile_spans(threading.get_ident())
        # One tuple, replaced whole: another thread may read it at any time.
        self._now = _Moment(dict.fromkeys(CAUSES, 0.0), rest, time.monotonic(), self._spans.total)

    @contextlib.contextmanager
    def spent_on(self, cause: str) -> Iterator[None]:
        """Charge the time of a block to a cause; a block within it has its own."""
        before = self._now.cause
        self._turn_to(cause)
        try:
            yield
        finally:
            self._turn_to(before)

    def charge(self, cause: str) -> None:
        """Charge the block that is under way to another cause."""
        self._now = self._now._replace(cause=cause)

    def step_to(self, training: str, step: int, steps: int) -> None:
        """Note how far a training is; called before each step and after the last."""
        if self._training is None or self._training.name != training:
            self._training = _Training(training, step, steps, 0, step, 0.0)
        at = self._training
        # The first step's time is mostly compilation.
        first = (step, time.monotonic()) if at.calls == 1 else at[4:]
        self._training = _Training(training, step, steps, at.calls + 1, *first)

    def training(self) -> JsonObject | None:
        """Return {"name", "step", "steps", "rate"} of the training under way, the last in steps a second or None."""
        at = self._training
        if at is None:
            return None
        rate = (at.step - at.first) / (time.monotonic() - at.since) if at.calls > 1 and at.step > at.first else None
        return {"name": at.name, "step": at.step, "steps": at.steps, "rate": rate}

    def predict(self, flops: float, seconds: float | None) -> None:
        """Note what a training's steps compute, and the seconds that they take by the plan; None if it has none."""
        self._predictions.append((flops, seconds))

    def mark(self, training: str, step: int) -> None:
        """Note that a process may continue from here."""
        self._marks = [m for m in self._marks if (m.training, m.step) != (training, step)][-MARKS_KEPT:]
        self._marks.append(Mark(training, step, self._own()))
        if self._save:
            self._save(self)

    def continued_from(self, training: str, step: int) -> None:
        """Note where a training goes on, before it does: what earlier processes did after that is lost."""
        self._earlier = [one.continued_from(training, step) for one in self._earlier]

    def split(self) -> dict[str, float]:
        """Return the seconds by cause, those of earlier processes among them."""
        return _sum([self._own(), *(one.kept() for one in self._earlier)])

    def lap(self) -> Lap:
        """Return the seconds by cause since the last lap, of the first one also those of earlier processes."""
        before, self._lapped = self._lapped, self.split()
        predictions, self._predictions = self._predictions, []
        known = [seconds for _, seconds in predictions if seconds]
        predicted = sum(flops for flops, _ in predictions) / sum(known) if known else None
        predicted = predicted if len(known) == len(predictions) else None
        return Lap({cause: self._lapped[cause] - before[cause] for cause in CAUSES}, self._processes, predicted)

    @property
    def goodput(self) -> float:
        """The share of the time that went into steps."""
        seconds = self.split()
        return seconds["step"] / max(sum(seconds.values()), 1e-9)

    def timings(self) -> list[Timings]:
        """Return each node's part, for a process that may continue."""
        return [self._timings(one) for one in self._earlier]

    def _timings(self, earlier: Timings) -> Timings:
        def part(own: Mapping[str, float]) -> dict[str, float]:
            return _sum([earlier.kept(), {cause: x / len(self._earlier) for cause, x in own.items()}])

        marks = [m._replace(seconds=part(m.seconds)) for m in self._marks]
        return Timings(part(self._own()), (*earlier.marks, *marks)[-MARKS_KEPT:], self._processes)

    @property
    def _processes(self) -> int:
        return 1 + max((one.processes for one in self._earlier), default=0)

    def _own(self) -> dict[str, float]:
        return self._moment(self._now.cause).seconds

    def _turn_to(self, cause: str) -> None:
        self._now = self._moment(cause)

    def _moment(self, cause: str) -> _Moment:
        before, now, compiled = self._now, time.monotonic(), self._spans.total
        elapsed = now - before.since
        compiling = min(max(compiled - before.compiled, 0.0), elapsed)
        seconds = dict(before.seconds)
        seconds["compile"] += compiling
        seconds[before.cause] += elapsed - compiling
        return _Moment(seconds, cause, now, compiled)


def _sum(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {cause: sum(part[cause] for part in parts) for cause in CAUSES}


class Spans:
    """The length of the union of time spans, which come as they end: one within another comes before it."""

    def __init__(self) -> None:
        self.total = 0.0
        self._apart: list[tuple[float, float]] = []

    def add(self, begin: float, end: float) -> None:
        """Add a span."""
        inside = 0.0
        while self._apart and self._apart[-1][0] >= begin:
            first, last = self._apart.pop()
            inside += last - first
        self._apart.append((begin, end))
        self.total += end - begin - inside  # at once: another thread may read it


_SPANS: dict[int, Spans] = {}  # of each thread


def _compile_spans(thread: int) -> Spans:
    _listen()
    return _SPANS.setdefault(thread, Spans())


@functools.cache
def _listen() -> None:
    jax.monitoring.register_event_time_span_listener(_on_time_span)


def _on_time_span(event: str, start_time: float, end_time: float, **_: str | int) -> None:
    if event.startswith("/jax/core/compile/"):
        _SPANS.setdefault(threading.get_ident(), Spans()).add(start_time, end_time)
