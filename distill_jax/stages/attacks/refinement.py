"""Where to try next: a search that begins with part of a grid and refines around the best so far.

It knows nothing of training. A search over half of the facts must not learn from the other half, on which its result
is reported: each half proposes its own points, and what only one half proposed counts for that half alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from distill_jax.statistics.attack_choice import GRID, HALVES


@dataclasses.dataclass(frozen=True)
class Point:
    """A configuration of an attack: optimiser, batch, learning rate."""

    optimizer: str
    batch: int
    rate: float

    def moved(self, *, rate: float = 1.0, batch: float = 1.0) -> Point:
        """Return the point with its rate and its batch multiplied."""
        moved = float(f"{self.rate * rate:.3g}")
        return dataclasses.replace(self, rate=moved, batch=max(1, round(self.batch * batch)))


Values = Mapping[Point, Sequence[float]]  # what came back of each half of the facts


def first_round(points: Sequence[Point]) -> list[Point]:
    """Return every other rate of each optimiser and batch of a grid, from the second on."""
    by_line: dict[tuple[str, int], list[Point]] = {}
    for point in sorted(points, key=lambda p: -p.rate):
        by_line.setdefault((point.optimizer, point.batch), []).append(point)
    return [point for line in by_line.values() for point in (line[1::2] or line)]


def proposals(best: Iterable[Point], known: Iterable[Point], spacing: float, width: float) -> list[Point]:
    """Return what lies around the best points and was not tried: rates `spacing` apart of each, and then its batches.

    Args:
      width: what batches are multiplied with, both ways; 1 leaves them as they are.
    """
    points, known = list(best), set(known)
    near = [point.moved(rate=factor) for point in points for factor in (1 / spacing, spacing)]
    near += [point.moved(batch=factor) for point in points for factor in (width, 1 / width) if width > 1]
    return [point for point in dict.fromkeys(near) if point not in known]


def search(
    grid: Sequence[Point], measure: Callable[[Sequence[Point]], Values], budget: int, width: float = 1.0, keep: int = 2
) -> dict[Point, int]:
    """Search with no more compute than a budget allows; return every point tried with the half that proposed it.

    First every other rate of the grid. Then of each optimiser the rates beside its best, which the first round left
    out: of values that rise and fall once over an optimiser's rates the best of the grid is now among those tried, so
    that the search is no weaker than a grid of four rates or more. What is left goes to the `keep` best optimisers of
    each half, ever nearer to their best rates.

    Args:
      measure: points -> their values on both halves; called once a round.
      budget: in trials of the grid's first batch; one of a larger batch counts as many as it reads more, one of a
        smaller batch no less, as its evaluations are not fewer.
      width: what batches are multiplied with, both ways, at first; 1 leaves them as they are.
    """
    origin = dict.fromkeys(_affordable(first_round(grid), budget, grid[0].batch), GRID)
    values = dict(measure(list(origin)))
    spacing, beside = _spacing(grid), len(grid)
    while (left := budget - sum(_trials(p, grid[0].batch) for p in origin)) >= 1 and spacing > 1.05:
        proposed = {half: proposals(_best(values, origin, half, beside), origin, spacing, width) for half in HALVES}
        both = _affordable(_in_turn([proposed[half] for half in HALVES]), left, grid[0].batch)
        if both:
            origin |= {p: GRID if all(p in proposed[h] for h in HALVES) else _only(p, proposed) for p in both}
            values |= measure(both)
        spacing, width, beside = math.sqrt(spacing), 1.0, keep
    return origin


def _spacing(grid: Sequence[Point]) -> float:
    """Return the ratio of neighbouring rates of a grid, on the mean; 2 where there is one rate."""
    first = [p.rate for p in grid if (p.optimizer, p.batch) == (grid[0].optimizer, grid[0].batch)]
    return (max(first) / min(first)) ** (1 / (len(first) - 1)) if len(first) > 1 else 2.0


def _best(values: Values, origin: Mapping[Point, int], half: int, keep: int) -> list[Point]:
    """Return the best point of each of the `keep` best optimisers, of those that a half may choose from."""
    mine = sorted((p for p in values if origin[p] in (GRID, half)), key=lambda p: -values[p][half])
    by_optimizer: dict[str, Point] = {}
    for point in mine:
        by_optimizer.setdefault(point.optimizer, point)
    return list(by_optimizer.values())[:keep]


def _trials(point: Point, batch: int) -> float:
    """Return how many trials of a batch a point counts as."""
    return max(1.0, point.batch / batch)


def _affordable(points: Iterable[Point], budget: float, batch: int) -> list[Point]:
    """Return the points, from the first on, that a budget pays for, without those that cost more than is left."""
    chosen = []
    for point in points:
        if (cost := _trials(point, batch)) <= budget:
            chosen.append(point)
            budget -= cost
    return chosen


def _in_turn(lists: Sequence[Sequence[Point]]) -> list[Point]:
    """Return what is in any of the lists, once, taking from each in turn."""
    longest = max(map(len, lists), default=0)
    return list(dict.fromkeys(each[i] for i in range(longest) for each in lists if i < len(each)))


def _only(point: Point, proposed: Mapping[int, Sequence[Point]]) -> int:
    return next(half for half, points in proposed.items() if point in points)
