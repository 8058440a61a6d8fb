"""Take times so that their ratios mean something on a machine that others use too."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any


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


def timed(runs: Mapping[str, Any], steps: int, repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the wall and the CPU seconds of a step of each run, a number a round, taken in turn.

    CPU seconds, over all threads, count no waiting for a core that others use.

    Args:
      runs: each has `run(steps)`, which gives its seconds, and `cpu_seconds`, those of its last steps.
    """
    busy: dict[str, list[float]] = {name: [] for name in runs}

    def take(name: str) -> float:
        seconds = runs[name].run(steps) / steps
        busy[name].append(runs[name].cpu_seconds / steps)
        return float(seconds)

    taken = interleaved({name: functools.partial(take, name) for name in runs}, repeats)
    return taken, {name: seconds[1:] for name, seconds in busy.items()}


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Return {"min", "median"}: the minimum is the least disturbed, the median tells how disturbed the others were."""
    return {"min": min(seconds), "median": statistics.median(seconds)}


def goal(name: str, value: float, most: float | None = None, least: float | None = None) -> dict[str, object]:
    """Return a goal beside what was measured: at most `most`, or at least `least`."""
    met = (most is None or value <= most) and (least is None or value >= least)
    bound = f"≤ {most:g}" if most is not None else f"≥ {least:g}"
    return {"name": name, "value": value, "goal": bound, "met": met}
