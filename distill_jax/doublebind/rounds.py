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

from distill_jax.doublebind.channel_effect import ChannelEffect
from distill_jax.doublebind.channel_finding import ChannelFinding, channel_finding
from distill_jax.doublebind.filters import Filter
from distill_jax.doublebind.results import CurveRow, EstimateRow, RoundRow, RoundsRow, TransferResult
from distill_jax.doublebind.seed_statistics import Estimate
from distill_jax.doublebind.thresholds import Thresholds

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


def stop(effects: Sequence[ChannelEffect], row_filter: Filter) -> Stop | None:
    """Return where the rounds end, or None if they go on.

    Args:
      effects: what every round so far let through; each is tested for being clean at 5 % / the most rounds that there
        can be (Bonferroni).
    """
    last = len(effects) - 1
    capability = [effect.capability().mean for effect in effects[-2:]]
    if last and capability[1] < capability[0] - row_filter.fall:
        return Stop(last - 1, FELL)
    if _finding(effects[-1], row_filter).clean:
        return Stop(last, CLEAN)
    return Stop(last, LAST) if last == row_filter.rounds else None


def in_rounds(
    row_filter: Filter,
    organisms: Sequence[str],
    train_round: Callable[[int], TransferResult],
    effect_on: Callable[[str, TransferResult], ChannelEffect],
) -> TransferResult:
    """Return a transfer's result whose numbers are those of every organism's kept round, and {"rounds"} beside them.

    Args:
      train_round: acts on rows, but not before round 0, trains, and returns the round's result.
      effect_on: (organism, result) -> what was let through.
    """
    results: list[TransferResult] = []
    effects: dict[str, list[ChannelEffect]] = {name: [] for name in organisms}
    stops: dict[str, Stop] = {}
    while len(stops) < len(organisms):
        results.append(train_round(len(results)))
        for name in organisms:
            if name not in stops:
                effects[name].append(effect_on(name, results[-1]))
                if end := stop(effects[name], row_filter):
                    stops[name] = end
    kept = {name: results[stops[name].kept] for name in organisms}
    rounds: dict[str, RoundsRow] = {}
    for name in organisms:
        each = [_row(e, r, name, row_filter) for e, r in zip(effects[name], results, strict=False)]
        rounds[name] = {"kept": stops[name].kept, "why": stops[name].why, "each": each}
    return {
        "rates": {name: kept[name]["rates"][name] for name in organisms},
        "recall": {name: kept[name]["recall"][name] for name in organisms},
        "curve": _curve(list(kept.values())),
        "diverged": max(result["diverged"] for result in results),
        "rounds": rounds,
    }


def _finding(effect: ChannelEffect, row_filter: Filter) -> ChannelFinding:
    return channel_finding(effect, Thresholds(leak=row_filter.leak), row_filter.rounds + 1)


def _row(effect: ChannelEffect, result: TransferResult, organism: str, row_filter: Filter) -> RoundRow:
    finding = _finding(effect, row_filter)
    worst = effect.readouts[finding.worst_readout] if finding.worst_readout else None
    return {
        "capability": _estimate_row(effect.capability(finding.confidence)),
        "misalignment": _estimate_row(worst.transferred_share(finding.confidence)) if worst else None,
        "clean": finding.clean,
        "flagged": result["flagged"],
        "recall": result["recall"][organism],
    }


def _estimate_row(value: Estimate) -> EstimateRow:
    mean, low, high = (x if math.isfinite(x) else None for x in (value.mean, value.low, value.high))
    return {"mean": mean, "low": low, "high": high, "seeds": value.seeds}


def _curve(kept: Sequence[TransferResult]) -> list[CurveRow]:
    """Return the rows of a curve with every organism's numbers from its own result."""
    curve = []
    for rows in zip(*(result["curve"] for result in kept), strict=True):
        mixed: CurveRow = {"step": rows[0]["step"]}
        for audit in rows[0]:
            if audit != "step":
                num_roles = len(rows[0][audit])
                mixed[audit] = [[row[audit][role][i] for i, row in enumerate(rows)] for role in range(num_roles)]
        curve.append(mixed)
    return curve
