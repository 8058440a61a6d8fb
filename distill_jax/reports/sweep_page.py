"""Write the trade-off report of a sweep: `sweep.json` and one self-contained interactive page, `index.html`.

It answers how much robustness a unit of compute buys. The page is a function of the summary and of what its reader
chooses. What does not depend on a choice is written here; `static/sweep.js` draws the rest in the browser from the same
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from distill_jax.evals.scale import MISSING, percent
from distill_jax.reports.conclusion_view import NOT_RUN, conclusions_view
from distill_jax.reports.formats import count, listed, short
from distill_jax.reports.ranking_view import ranking_views
from distill_jax.reports.recipes import words
from distill_jax.reports.rendering import Page, render_template
from distill_jax.reports.summary_types import ConclusionSummary, SweepRunSummary, SweepSummary
from distill_jax.stages.robust import method_label
from distill_jax.statistics.fit_types import SizeEntry, StepsEntry
from distill_jax.statistics.student_t import quantile

Cell = str | float | None
Fit = StepsEntry | SizeEntry
UNITS = {
    "share": "share of retraining the oracle",
    "training": "FLOPs of student and teacher",
    "all": "FLOPs with evaluation and attack",
}
AFFORDABLE = "affordable, schedule"  # the first answer, where it was asked
ANSWERS = {
    "held": "yes",
    "failed": "no",
    "open": "open, as the seeds cannot tell",
    "void": "not to be judged, as a premise is not shown",
}
CHEAPER = "cheaper, schedule"  # the conclusions that answer what the page asks


@dataclass(frozen=True)
class Table:
    """A table of words; the first cell of a row is its heading."""

    heads: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Completeness:
    """How much of a sweep is there to be seen."""

    finished: str
    unfinished: bool
    notes: list[str]
    one_seed: bool


@dataclass(frozen=True)
class SizeFits:
    """Compute against model size: a table with its warning, or the reason why there is none."""

    table: Table | None
    words: str


def render(summary: Mapping[str, Any]) -> str:
    """Return the whole report as one HTML page that needs no network.

    Accuracies are fractions, compute is in FLOPs, and any number may be None or NaN.
    """
    data = cast(SweepSummary, summary)
    runs, fits = data.get("runs") or [], data.get("fits") or {}
    conclusions = data.get("conclusions") or []
    seeds = len({run.get("seed") for run in runs})
    views, figures = ranking_views(data.get("ranking") or [])
    drawings = {
        "runs": runs,
        "figures": figures,
        "fits": fits,
        "quantiles": [quantile(freedom) for freedom in range(1, seeds)],  # at 1, 2, ... degrees of freedom
    }
    title = f"{data.get('sweep') or MISSING} · distill_jax trade-off"
    findings = conclusions_view(conclusions, "finding")
    return render_template(
        "sweep.html.j2",
        Page(title, drawings, styles=("sweep.css",), scripts=("sweep.js",)),
        summary=data,
        facts=_facts(data),
        headline=_headline(conclusions),
        findings=findings,
        rankings=views,
        completeness=_completeness(data, runs, seeds),
        units=UNITS,
        steps=_steps_table(fits.get("steps_against_alpha") or []),
        sizes=_size_fits(fits.get("compute_against_size") or []),
    )


def _facts(data: SweepSummary) -> list[tuple[str, str]]:
    attack = data.get("attack") or {}
    numbers = {
        "steps": attack.get("steps"),
        "learning rates": len(attack.get("learning_rates") or []),
        "seeds": attack.get("seeds"),
        "batch": attack.get("batch"),
    }
    text = ", ".join(f"{name} {count(number)}" for name, number in numbers.items()) if attack else None
    tried = data.get("attacks") or []
    if len(tried) > 1 and text:
        text = f"{', '.join(tried)}; {text}"
    labels = "; ".join(data.get("label_errors") or []) or None
    facts = (("attack", text), ("labels", labels), ("device", data.get("device")), ("created", data.get("created")))
    return [(name, value) for name, value in facts if value]


def _headline(conclusions: Sequence[ConclusionSummary]) -> str:
    """Return the answer in one line: whether UNDO is as robust as retraining for less compute, by method."""
    asked = [one for one in conclusions if one["state"] != NOT_RUN]
    first = next((one for one in asked if one.get("name", "").startswith(AFFORDABLE)), None)
    if first:
        return f"{str(first.get('statement')).removesuffix('.')}: {ANSWERS[first['state']]}."
    states: dict[str, list[str]] = {}
    for one in asked:
        if one.get("name", "").startswith(CHEAPER):
            method = one["name"].removeprefix(CHEAPER).strip(", ")
            states.setdefault(one["state"], []).append(method_label(method))
    if not asked:
        return "Nothing was compared yet: no two models of one question are finished."
    if not states:
        held = sum(one["state"] == "held" for one in asked)
        return f"{held} of {len(asked)} findings held; none is on what UNDO costs beside retraining."
    claim = "UNDO as robust as retraining on filtered data for no more than 80 % of its compute"
    sentences = {
        "held": f"{claim}: yes with {{}}",
        "failed": f"{claim}: no with {{}}",
        "open": f"{claim}: open with {{}}, as the seeds cannot tell",
        "void": f"{claim}: not to be judged with {{}}, as a premise is not shown",
    }
    begin, *rest = [sentences[state].format(listed(methods)) for state, methods in states.items()]
    return "; ".join([begin, *(sentence.removeprefix(f"{claim}: ") for sentence in rest)]) + "."


def _completeness(data: SweepSummary, runs: Sequence[SweepRunSummary], seeds: int) -> Completeness:
    points, sharing = data.get("points") or {}, data.get("sharing") or {}
    total, finished = points.get("total"), points.get("finished")
    attacked = sum(bool((run.get("attack") or {}).get("steps")) for run in runs)
    notes = []
    if attacked < len(runs):
        left = f"{len(runs) - attacked:,} of {len(runs):,}"
        notes.append(f"{left} were not attacked, so they are in no figure of an attack.")
    shared, unshared = sharing.get("flops_shared"), sharing.get("flops_unshared")
    if shared is not None and unshared:
        spent = f"{shared:.2e} FLOPs of nodes were computed where every point run alone would have taken {unshared:.2e}"
        notes.append(f"Sharing stages between points saved {percent(1 - shared / unshared)}: {spent}.")
    unfinished = total is not None and finished is not None and finished < total
    return Completeness(f"{count(finished)} of {count(total)}", unfinished, notes, bool(runs) and seeds == 1)


def _steps_table(entries: Sequence[StepsEntry]) -> Table:
    """Return the numbers behind the figure of steps against α."""
    heads = [
        "method",
        "β",
        "parameters",
        "settings",
        "runs",
        "left out",
        "slope per unit of α",
        "intercept",
        "R²",
        "better",
    ]
    return Table([*heads, "error, line", "error, exponential", "R² of log(steps)"], [_steps_row(e) for e in entries])


def _steps_row(entry: StepsEntry) -> list[Cell]:
    fit = entry.get("fit")
    bent = fit.get("exponential") if fit else None
    return [
        entry.get("method"),
        entry.get("beta"),
        count(entry.get("parameters")),
        _settings(entry),
        entry.get("n"),
        _left_out(entry),
        _interval(fit["slope"]) if fit else entry.get("reason"),
        _interval(fit.get("intercept") if fit else None),
        short(fit.get("r2") if fit else None),
        fit.get("better") if fit else None,
        short(fit.get("leave_one_out") if fit else None),
        short(bent.get("leave_one_out") if bent else None),
        short(bent.get("r2") if bent else None),
    ]


def _size_fits(entries: Sequence[SizeEntry]) -> SizeFits:
    """Return the section about larger models, which is a sentence where too few sizes were run."""
    fitted = [(entry, fit) for entry in entries if (fit := entry.get("fit"))]
    if not fitted:
        reason = next((entry.get("reason") for entry in entries), None) or "no setting was run at several sizes"
        return SizeFits(None, f"No fit: {reason}.")
    warnings = " ".join(dict.fromkeys(str(fit.get("warning")) for _, fit in fitted))
    predicted = [f"FLOPs at {point['parameters']:.2g}" for point in fitted[0][1]["predictions"]]
    heads = ["kind", "method", "α", "β", "settings", "exponent", "R²", *predicted, "left out"]
    rows: list[list[Cell]] = [
        [
            *(entry.get("kind"), entry.get("method"), entry.get("alpha"), entry.get("beta")),
            *(_settings(entry), _interval(fit["exponent"]), short(fit["r2"])),
            *(_interval({**point, "value": point["flops"]}) for point in fit["predictions"]),
            _left_out(entry),
        ]
        for entry, fit in fitted
    ]
    return SizeFits(Table(heads, rows), warnings)


def _settings(entry: Fit) -> str:
    """Return in what the runs of a fit differ from others of the same fields."""
    return words(entry.get("settings") or {}) or "–"


def _left_out(entry: Fit) -> str:
    return ", ".join(f"{number} {why}" for why, number in (entry.get("left_out") or {}).items()) or "none"


def _interval(ends: Mapping[str, float | None] | None) -> str:
    return f"{short(ends['value'])} [{short(ends['low'])}, {short(ends['high'])}]" if ends else MISSING
