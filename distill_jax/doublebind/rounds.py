"""Filtering in rounds with the student: see what it has become, act on the rows that made it so, begin again.

Round 0 learns all that came through; before each later one a further part of the rows is acted on, and the student
starts where it always does. An organism's rounds end, over all its seeds, when its student is shown to be clean, or has
lost ability, or when there are no more. Whoever stops by an audit knows what to look for: this is what such a filter
can do at best.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from distill_jax.doublebind.filters import Filter
from distill_jax.doublebind.seed_statistics import Estimate
from distill_jax.doublebind.verdict import Finding, Passage, Thresholds, examine

CLEAN, FELL, LAST = "clean", "ability fell", "rounds"


@dataclasses.dataclass(frozen=True)
class Stop:
    """Where an organism's rounds ended.

    Attributes:
      kept: the round whose student counts.
      why: it was clean, the ability fell in the round after it, or there were no more rounds.
    """

    kept: int
    why: str


def stop(passages: Sequence[Passage], given: Filter) -> Stop | None:
    """Return where the rounds end, or None if they go on.

    Args:
      passages: what every round so far let through; each is tested for being clean at 5 % / their most (Bonferroni).
    """
    last = len(passages) - 1
    able = [passage.capability().mean for passage in passages[-2:]]
    if last and able[1] < able[0] - given.fall:
        return Stop(last - 1, FELL)
    if _finding(passages[-1], given).clean:
        return Stop(last, CLEAN)
    return Stop(last, LAST) if last == given.rounds else None


def in_rounds(
    given: Filter,
    kinds: Sequence[str],
    learn: Callable[[int], dict[str, Any]],
    through: Callable[[str, dict[str, Any]], Passage],
) -> dict[str, Any]:
    """Return a transfer's result whose numbers are those of every organism's kept round, and {"rounds"} beside them.

    Args:
      learn: acts on rows, but not before round 0, trains, and returns the round's result.
      through: (organism, result) -> what it let through.
    """
    results: list[dict[str, Any]] = []
    passages: dict[str, list[Passage]] = {kind: [] for kind in kinds}
    stops: dict[str, Stop] = {}
    while len(stops) < len(kinds):
        results.append(learn(len(results)))
        for kind in kinds:
            if kind not in stops:
                passages[kind].append(through(kind, results[-1]))
                if found := stop(passages[kind], given):
                    stops[kind] = found
    told = {
        kind: dataclasses.asdict(stops[kind])
        | {"each": [_told(p, r, kind, given) for p, r in zip(passages[kind], results, strict=False)]}
        for kind in kinds
    }
    kept = {kind: results[stops[kind].kept] for kind in kinds}
    per_kind = {key: {kind: kept[kind][key][kind] for kind in kinds} for key in ("rates", "recall")}
    diverged = max(r["diverged"] for r in results)
    return {**per_kind, "curve": _curve(list(kept.values())), "diverged": diverged, "rounds": told}


def _finding(passage: Passage, given: Filter) -> Finding:
    return examine(passage, Thresholds(leak=given.leak), given.rounds + 1)


def _told(passage: Passage, result: dict[str, Any], kind: str, given: Filter) -> dict[str, Any]:
    """Return what a round came to: C, M by the worst read-out, whether it was clean, and what was acted on so far."""
    found = _finding(passage, given)
    worst = passage.readouts.get(found.worst)
    return {
        "capability": _plain(passage.capability(found.confidence)),
        "misalignment": _plain(worst.share(found.confidence)) if worst else None,
        "clean": found.clean,
        "flagged": result["flagged"],
        "recall": result["recall"][kind],
    }


def _plain(value: Estimate) -> dict[str, float | None]:
    return {name: x if math.isfinite(x) else None for name, x in dataclasses.asdict(value).items()}


def _curve(kept: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows {"step", audit: [roles, O, S]} with every organism's numbers from its own result."""
    rows = []
    for looks in zip(*(result["curve"] for result in kept), strict=True):
        audits = [name for name in looks[0] if name != "step"]
        roles = range(len(looks[0][audits[0]]))
        mixed = {name: [[look[name][role][i] for i, look in enumerate(looks)] for role in roles] for name in audits}
        rows.append({"step": looks[0]["step"], **mixed})
    return rows
