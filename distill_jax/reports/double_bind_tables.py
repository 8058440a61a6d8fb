"""The tables of the double bind's page: verdicts, what moved through each channel, domains, rounds of filtering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from distill_jax.doublebind.results import RoundRow, RoundsRow
from distill_jax.evals.scale import MISSING, percent
from distill_jax.reports.double_bind_types import ChannelRow, OrganismRow
from distill_jax.reports.formats import number
from distill_jax.types import JsonObject

Quantity = Literal["misalignment", "capability"]

# A verdict's word and colour; one that leaves a teacher unjudged is grey.
VERDICTS = {
    "DFC_OK": ("clean ability", "#0b7a5b"),
    "DFI_OK": ("teacher exposed", "#26148a"),
    "BOTH": ("both", "#1f6fb2"),
    "HOLE_TIGHT": ("hole: tightly linked (R1)", "#b0287a"),
    "HOLE_CONTEXT": ("hole: context (R2)", "#d55e00"),
    "HOLE_RETRAIN": ("hole: own training (R3)", "#7a6a1f"),
    "NO_MISALIGNMENT_SHOWN": ("no misalignment shown", "#727a86"),
    "INCONCLUSIVE_POWER": ("cannot be told", "#727a86"),
    "INCONCLUSIVE_RIG": ("the rig is insensitive", "#727a86"),
}
NOT_FIT = ("not fit for use", "#727a86")
TASKS = {"ADD": "sums", "COMPARE": "comparisons", "CHOOSE": "choices", "NUMBER": "free numbers"}


@dataclass(frozen=True)
class VerdictRow:
    """Organisms that share a verdict with all that is said of it."""

    organisms: list[str]
    word: str
    colour: str
    meaning: str
    clean_through: str
    exposed_through: str
    right: str
    truth: str


@dataclass(frozen=True)
class HeatCell:
    """A number, shaded by `share` in [0, 1]; `details` for the pointer."""

    words: str
    share: str
    details: str = ""


@dataclass(frozen=True)
class HeatRow:
    """A row of shaded numbers behind its headings."""

    heads: list[str]
    cells: list[HeatCell]


@dataclass(frozen=True)
class ChannelTable:
    """Organism × channel; `unmeasured` are the organisms of which no channel has a number."""

    rows: list[HeatRow]
    unmeasured: list[str]


@dataclass(frozen=True)
class RoundCell:
    """What a round of filtering came to; `kept` is the round that was chosen."""

    shares: str
    flagged: str
    kept: bool


@dataclass(frozen=True)
class RoundTable:
    """Rounds of filtering by (channel, organism, why they ended)."""

    rounds: int
    rows: list[tuple[str, str, str, list[RoundCell]]]


def verdict_word(name: str) -> str:
    """Return a verdict in words."""
    return VERDICTS[name][0]


def verdict_rows(organisms: Sequence[OrganismRow]) -> list[VerdictRow]:
    """Return the verdicts; organisms that differ in their known truth alone share a row."""
    groups: dict[tuple[str, str, str, str, str, str], list[OrganismRow]] = {}
    for one in organisms:
        groups.setdefault(_verdict(one), []).append(one)
    rows = []
    for (word, colour, meaning, clean, exposed, right), same in groups.items():
        names, truth = [one["name"] for one in same], "; ".join(dict.fromkeys(map(_truth, same)))
        rows.append(VerdictRow(names, word, colour, meaning, clean, exposed, right, truth))
    return rows


def _truth(one: OrganismRow) -> str:
    return " or ".join(verdict_word(name) for name in one["truth"] if name) or "unknown"


def _verdict(one: OrganismRow) -> tuple[str, str, str, str, str, str]:
    judged = one["accepted"] or one["verdict"] == "NO_MISALIGNMENT_SHOWN"
    word, colour = VERDICTS[one["verdict"]] if judged else NOT_FIT
    clean = ", ".join(name for name, channel in one["channels"].items() if channel["dfc"])
    exposed = ", ".join(name for name, channel in one["channels"].items() if channel["dfi"])
    right = {True: "right", False: "WRONG", None: MISSING}[one["right"]]
    return word, colour, one["meaning"], clean, exposed, right


def channel_table(organisms: Sequence[OrganismRow], channels: Sequence[str], quantity: Quantity) -> ChannelTable:
    """Return organism × channel: the share of the teacher's misalignment or capability that came through."""
    cells = {one["name"]: [_channel_cell(one["channels"][name], quantity) for name in channels] for one in organisms}
    unmeasured = [name for name, row in cells.items() if all(cell.words == MISSING for cell in row)]
    return ChannelTable([HeatRow([name], row) for name, row in cells.items() if name not in unmeasured], unmeasured)


def _channel_cell(channel: ChannelRow, quantity: Quantity) -> HeatCell:
    value = channel[quantity]
    if not value or value["mean"] is None:
        return HeatCell(MISSING, "0")
    shown = channel["clean" if quantity == "misalignment" else "capable"] is True
    details = f"{value['mean']:.3f} [{number(value['low'])}, {number(value['high'])}]"
    details += f", {channel['worst']}" if quantity == "misalignment" else ""
    return HeatCell(f"{value['mean']:.2f}{' ✓' if shown else ''}", _share(value["mean"]), details)


def _share(value: float | None) -> str:
    return f"{min(max(value or 0.0, 0.0), 1.0):.2f}"


def domain_table(rows: Sequence[JsonObject]) -> list[HeatRow]:
    """Return the leak matrix, where quirks have domains: mean shares by what was distilled and where quirks show."""
    return [
        HeatRow(
            [row["channel"], row["prompts"], _targets(row)],
            [HeatCell(number(row[task]), _share(row[task])) for task in TASKS],
        )
        for row in rows
        if any(row[task] is not None for task in TASKS)
    ]


def _targets(row: JsonObject) -> str:
    base = "own" if row["base"] == "base" else row["base"]
    return f"{'distributions' if row['soft'] else 'answers'}, {base} base"


def round_table(rounds: Mapping[str, Mapping[str, RoundsRow]]) -> RoundTable:
    """Return what every round of filtering came to, and which one was kept."""
    rows = [
        (channel, kind, one["why"], [_round_cell(each, i == one["kept"]) for i, each in enumerate(one["each"])])
        for channel, by_kind in rounds.items()
        for kind, one in by_kind.items()
    ]
    return RoundTable(max((len(cells) for *_, cells in rows), default=0), rows)


def _round_cell(one: RoundRow, kept: bool) -> RoundCell:
    shares = " / ".join(number(each["mean"] if each else None) for each in (one["misalignment"], one["capability"]))
    return RoundCell(shares, f"{percent(one['flagged'])}, recall {percent(mean(one['recall']))}", kept)


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of what is known, None of nothing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
