"""Take times so that their ratios mean something on a machine that others use too."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from distill_jax.bench.bench_results import Goal, Seconds


def interleaved(takers: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call every taker once a round, so that a slow moment of the machine falls on all of them.

    Returns:
      the seconds that each taker gave, a number a round; a first round, which warms up, is dropped.
    """
    taken: dict[str, list[float]] = {name: [] for name in takers}
    for i in range(repeats + 1):
        for name, take in takers.items():
            seconds = take()
            if i:
                taken[name].append(seconds)
    return taken


class Timed(Protocol):
    """What takes steps."""

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of the last steps, over all threads."""

    def run(self, steps: int) -> float:
        """Take steps and return their seconds."""


def timed(runs: Mapping[str, Timed], steps: int, repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the wall and the CPU seconds of a step of each run, a number a round, taken in turn.

    CPU seconds, over all threads, count no waiting for a core that others use.
    """
    busy: dict[str, list[float]] = {name: [] for name in runs}

    def take(name: str) -> float:
        seconds = runs[name].run(steps) / steps
        busy[name].append(runs[name].cpu_seconds / steps)
        return float(seconds)

    taken = interleaved({name: functools.partial(take, name) for name in runs}, repeats)
    return taken, {name: seconds[1:] for name, seconds in busy.items()}


def summary(seconds: Sequence[float]) -> Seconds:
    """Return the minimum and the median."""
    return {"min": min(seconds), "median": statistics.median(seconds)}


def goal(name: str, value: float, most: float | None = None, least: float | None = None) -> Goal:
    """Return a goal beside what was measured: at most `most`, or at least `least`."""
    met = (most is None or value <= most) and (least is None or value >= least)
    bound = f"≤ {most:g}" if most is not None else f"≥ {least:g}"
    return {"name": name, "value": value, "goal": bound, "met": met}
