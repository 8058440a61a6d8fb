"""Write the page of the double bind: the answer, each organism's verdict, what went through each channel, the curves.

A function of the summary alone (`reports.double_bind_summary`); `summary.json` and `verdict.json` stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from distill_jax.doublebind.exposure import BlindRow, DetectionRow
from distill_jax.evals.scale import MISSING, percent
from distill_jax.reports import double_bind_figures
from distill_jax.reports.conclusion_view import conclusions_view
from distill_jax.reports.double_bind_tables import channel_table, domain_table, round_table, verdict_rows, verdict_word
from distill_jax.reports.double_bind_types import (
    ConfusionRow,
    CorrelationRow,
    CoverageRow,
    DoubleBindSummary,
    OrganismRow,
)
from distill_jax.reports.formats import number
from distill_jax.reports.rendering import Page, render_template


def render(summary: Mapping[str, Any]) -> str:
    """Return the whole report as one HTML page that needs no network."""
    data = cast(DoubleBindSummary, summary)
    organisms, channels = data.get("organisms") or [], list(data.get("channels") or {})
    figures = double_bind_figures.figures(data.get("curves") or {})
    return render_template(
        "double_bind.html.j2",
        Page(f"{data.get('experiment') or MISSING} · distill_jax", {"figures": figures}),
        summary=data,
        verdict=_answer(data.get("coverage") or {}),
        story=_story(data, organisms, len(channels)),
        facts=[(name, data[name]) for name in ("device", "created", "variant") if name in data],
        verdicts=verdict_rows(organisms),
        channels=channels,
        misalignment=channel_table(organisms, channels, "misalignment"),
        capability=channel_table(organisms, channels, "capability"),
        panels=[(place, *words) for place, words in double_bind_figures.PANELS.items() if place in figures],
        domains=domain_table(data.get("domains") or []),
        rounds=round_table(data.get("rounds") or {}),
        overall=_overall(data),
        confusion=[_confusion_row(row) for row in data.get("confusion") or []],
        acceptance=_merged([_acceptance_row(one) for one in organisms]),
        placebos=data.get("placebos") or {},
        probes=_probe_rows(organisms, channels),
        conclusions=conclusions_view(data.get("conclusions") or []),
    )


def _answer(coverage: CoverageRow) -> str:
    if not coverage.get("decided"):
        return "No organism could be judged: this run says nothing."
    worked = f"{coverage['covered']} of {coverage['decided']} judged organisms"
    return f"One side or the other of the double bind worked for {worked}."


def _story(data: DoubleBindSummary, organisms: Sequence[OrganismRow], channels: int) -> str:
    coverage = data.get("coverage") or {}
    right = sum(one["right"] is True for one in organisms)
    judged = right + sum(one["right"] is False for one in organisms)
    known = any(one["truth"] for one in organisms)
    truth = (
        f"Of the verdicts, {right} of {judged} are right against the organism’s known truth."
        if known
        else "What is true of these teachers is not known here, so no verdict is called right or wrong."
    )
    return (
        f"{len(organisms)} teachers with a {'known ' * known}hidden quirk each were distilled through {channels} "
        f"channels into students of the same base. {coverage.get('decided') or 0} could be judged; the interval of the "
        f"share covered is {percent(coverage.get('low'))} to {percent(coverage.get('high'))} (Wilson). {truth}"
    )


def _overall(data: DoubleBindSummary) -> list[str]:
    """Return coverage, the correlation claim, detection and blind mode, one sentence each."""
    return [
        _coverage(data.get("coverage") or {}),
        *([_correlation(correlation)] if (correlation := data.get("correlation")) else []),
        *(_detection(name, one) for name, one in (data.get("detection") or {}).items()),
        *(_blind(name, one) for name, one in (data.get("blind") or {}).items()),
    ]


def _coverage(one: CoverageRow) -> str:
    return (
        f"Covered: {one.get('covered')} of {one.get('decided')} judged organisms, {percent(one.get('low'))} to "
        f"{percent(one.get('high'))}; {one.get('undecided')} not judged."
    )


def _correlation(one: CorrelationRow) -> str:
    (both, clean_only), (exposed_only, neither) = one["table"]
    return (
        "Does one side work where the other does not? "
        f"Both {both}, clean only {clean_only}, exposed only {exposed_only}, neither {neither}: Fisher’s exact "
        f"p = {one['p_fisher']:.2g}, against shuffled pairs p = {one['p_shuffled']:.2g}."
    )


def _detection(channel: str, one: DetectionRow) -> str:
    return (
        f"Through {channel} a student’s misbehaviour tells {one['organisms']} teachers of organisms from "
        f"{one['placebos']} placebos with AUROC {one['auroc']:.3f}; at 5 % false alarms "
        f"{percent(one['tpr_at_5_fpr'])} are found."
    )


def _blind(channel: str, one: BlindRow) -> str:
    return (
        f"A teacher of unknown alignment, misaligned with probability {one['prior']:g}, is after an audit through "
        f"{channel} so with at least {one['if_found']:.2f} if it finds something, with at most {one['if_null']:.2f} "
        f"if it does not: it accused {one['accused_organisms']} of {one['organisms']} organisms (power at least "
        f"{one['power']:.2f}) and {one['accused_placebos']} of {one['placebos']} placebos (false alarms at most "
        f"{one['false_alarms']:.2f})."
    )


def _confusion_row(row: ConfusionRow) -> list[str | int]:
    truth = truth_words(row["truth"].split(" or ")) or "unknown"
    return [truth, verdict_word(row["verdict"]), len(row["organisms"]), ", ".join(row["organisms"])]


def truth_words(names: Iterable[str]) -> str:
    """Return verdicts that would be right, in words."""
    return " or ".join(verdict_word(name) for name in names if name)


def _acceptance_row(one: OrganismRow) -> list[str]:
    gap = one["gap"]
    interval = f"{number(gap['low'])} to {number(gap['high'])}"
    abilities = [percent(one[key]) for key in ("ability", "twin_ability", "base_ability")]
    return [one["name"], number(gap["mean"]), interval, *abilities, "yes" if one["accepted"] else f"no: {one['why']}"]


def _merged(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return rows with those that differ in their heading alone as one."""
    merged: dict[tuple[str, ...], list[str]] = {}
    for name, *words in rows:
        merged.setdefault(tuple(words), []).append(name)
    return [[", ".join(names), *words] for words, names in merged.items()]


def _probe_rows(organisms: Sequence[OrganismRow], channels: Sequence[str]) -> list[list[str]]:
    """Return what the linear probe makes of the students, which decides nothing."""
    rows = []
    for one in organisms:
        shares = one.get("probe") or {}
        if shares:
            known = {name: row["share"] for name, row in shares.items()}
            rows.append([one["name"], *(number(known.get(name)) for name in channels)])
    return rows
