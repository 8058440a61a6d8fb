"""Points of a sweep: settings put together by `axis`, `product`, `zipped` and `chain`.

A sweep file has `get_sweep(arg)`, which returns the config that it is over (a path from the file's directory, with a
preset) and a list of points. A point is a dict of settings of that config; `select_stages` says which stages of the
experiment it asks for, and those come with all they are made from. What is computed is in `experiment/sweep_graph.py`.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence
from typing import Any

from distill_jax.config import ConfigError, check

Point = dict[str, Any]
STAGES = "stages"  # the key of a point that is no setting: the stages it asks for


def axis(key: str, *values: Any) -> list[Point]:
    """Return a point for each value of a setting, such as axis("undo.beta", 0.0, 0.1)."""
    return [{key: value} for value in values]


def product(*axes: Sequence[Point]) -> list[Point]:
    """Return every combination of a point from each."""
    return [_merged(points) for points in itertools.product(*axes)]


def zipped(*axes: Sequence[Point]) -> list[Point]:
    """Return the first points of all merged, the second ones, and so on; all must have as many."""
    lengths = [len(points) for points in axes]
    check(len(set(lengths)) <= 1, f"zipped: axes of {lengths} points; give all the same number")
    return [_merged(points) for points in zip(*axes, strict=True)]


def chain(*parts: Sequence[Point]) -> list[Point]:
    """Return all points of the first, then of the second, and so on."""
    return list(itertools.chain(*parts))


def select_stages(points: Sequence[Point], *stages: str) -> list[Point]:
    """Have points ask for the named stages (all of the experiment's if none ever is)."""
    return [{**point, STAGES: (*point.get(STAGES, ()), *stages)} for point in points]


def _merged(points: Sequence[Point]) -> Point:
    out: Point = {}
    for point in points:
        out.update(point)
    if len(out) < sum(map(len, points)):  # found out so as a sweep may have a million points
        counts = collections.Counter(itertools.chain(*points))
        twice = sorted(key for key, count in counts.items() if count > 1)
        raise ConfigError(f"{', '.join(twice)} is set by two axes of one sweep; leave it to one")
    return out
