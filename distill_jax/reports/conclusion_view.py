"""Conclusions as pages show them: a badge, the sentence, its evidence; what shares its evidence stands together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from distill_jax.reports.formats import plural
from distill_jax.reports.summary_types import ConclusionSummary

NOT_RUN = "not run"
BADGES = {"held": "✓ held", "failed": "✗ failed", "open": "– open", "void": "∅ void"}


@dataclass(frozen=True)
class ConclusionRow:
    """Sentences of one state that rest on the same evidence."""

    state: str
    badge: str
    statements: list[str | None]
    evidence: str | None


@dataclass(frozen=True)
class Conclusions:
    """What a page shows of its conclusions; what was not run is told in one line."""

    rows: list[ConclusionRow]
    not_run: list[ConclusionSummary]
    counts: str


def conclusions_view(conclusions: Sequence[ConclusionSummary], noun: str = "claim") -> Conclusions:
    """Return conclusions as a page shows them."""
    groups: dict[tuple[str, str | None], list[str | None]] = {}
    for one in conclusions:
        if one["state"] != NOT_RUN:
            groups.setdefault((one["state"], one.get("evidence")), []).append(one.get("statement"))
    rows = [ConclusionRow(state, BADGES[state], same, evidence) for (state, evidence), same in groups.items()]
    return Conclusions(rows, [one for one in conclusions if one["state"] == NOT_RUN], _counts(conclusions, noun))


def _counts(conclusions: Sequence[ConclusionSummary], noun: str) -> str:
    """Return how many conclusions are in each state; what was not run was not asked."""
    states = Counter(one["state"] for one in conclusions)
    if not conclusions:
        return ""
    asked = plural(sum(states.values()) - states[NOT_RUN], noun)
    counted = f"{states['held']} held, {states['failed']} failed, {states['open']} open, {states['void']} void"
    return f"Of {asked} {counted}" + (f"; {states[NOT_RUN]} were not run." if states[NOT_RUN] else ".")
