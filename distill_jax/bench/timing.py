"""Take times so that their ratios mean something on a machine that others use too."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence


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


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Return {"min", "median"}: the minimum is the least disturbed, the median tells how disturbed the others were."""
    return {"min": min(seconds), "median": statistics.median(seconds)}


def goal(name: str, value: float, most: float | None = None, least: float | None = None) -> dict[str, object]:
    """Return a goal beside what was measured: at most `most`, or at least `least`."""
    met = (most is None or value <= most) and (least is None or value >= least)
    bound = f"≤ {most:g}" if most is not None else f"≥ {least:g}"
    return {"name": name, "value": value, "goal": bound, "met": met}
