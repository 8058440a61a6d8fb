"""Write the trade-off report of a sweep: `sweep.json` and one self-contained interactive page, `index.html`.

It answers how much robustness a unit of compute buys. The page is a function of the summary and of what its reader
chooses. What does not depend on a choice is written here, escaped; `tradeoff.js` draws the rest in the browser from the
same numbers. A number that is missing or not finite is shown as a dash and never guessed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from distill_jax.reports import figures, run_page
from distill_jax.reports.run_page import MISSING, Summary, clean, text
from distill_jax.statistics.student_t import quantile

SOURCES = files(__package__)


def write(summary: Mapping[str, Any], directory: str | os.PathLike[str]) -> Path:
    """Write `sweep.json` and `index.html` into `directory`, each in one step, and return the page's path."""
    data = clean(summary)
    return run_page.write_beside(render(data), data, Path(directory) / "sweep.json")


def render(summary: Mapping[str, Any]) -> str:
    """Return the whole report as one HTML page that needs no network.

    The summary holds the sweep's `runs`, one a point and seed, its `fits` (`evals.fits.fit_all`) and `conclusions`;
    accuracies are fractions, compute is in FLOPs, and any number may be None or NaN.
    """
    data: Summary = clean(summary)
    runs = data.get("runs") or []
    seeds = len({run.get("seed") for run in runs})
    drawings = {
        "runs": runs,
        "fits": data.get("fits") or {},
        "layout": figures.layout(),
        "quantiles": [quantile(freedom) for freedom in range(1, seeds)],  # Student's t at 1, 2, ... degrees of freedom
    }
    head = _header(data) + _findings(data.get("conclusions") or []) + _completeness(data, runs, seeds)
    fits = data.get("fits") or {}
    tables = {
        "steps": _steps(fits.get("steps_against_alpha") or []),
        "sizes": _sizes(fits.get("compute_against_size") or []),
    }
    body = BODY.format(**tables)
    title = f"{text(data.get('sweep'))} · distill_jax trade-off"
    css = run_page.CSS + (SOURCES / "tradeoff.css").read_text(encoding="utf-8")
    return run_page.html_page(title, head + body, drawings, css, (SOURCES / "tradeoff.js").read_text(encoding="utf-8"))


def _header(data: Summary) -> str:
    attack = data.get("attack") or {}
    numbers = {**attack, "learning rates": len(attack.get("learning_rates") or [])}
    fields = ("steps", "learning rates", "seeds", "batch")
    parts = {
        "attack": ", ".join(f"{name} {_count(numbers.get(name))}" for name in fields) if attack else None,
        "device": data.get("device"),
        "created": data.get("created"),
    }
    said = " · ".join(f"{name} <code>{text(value)}</code>" for name, value in parts.items() if value)
    return f"""<header><p class="kicker">distill_jax · trade-off of a sweep</p>
<h1>{text(data.get("sweep"))}</h1><p class="description">{text(data.get("description"), "")}</p>
<p class="small">{said} · every number is in <code>sweep.json</code> beside this page.</p></header>"""


def _findings(conclusions: list[dict[str, Any]]) -> str:
    """Return what was found as cards, what was not run in one line."""
    cards = "".join(
        f'<div class="finding"><h3>{text(one.get("statement"))}</h3>'
        f'<p class="verdict"><span class="{text(one["state"])}">{run_page.STATES[one["state"]]}</span></p>'
        f'<p class="evidence small">{text(one.get("evidence"), "")}</p></div>'
        for one in conclusions
        if one["state"] != "not run"
    )
    missing = " ".join(text(one.get("statement")) for one in conclusions if one["state"] == "not run")
    rest = f'<p class="small"><b>Not run:</b> {missing}</p>' if missing else ""
    return (f'<div class="findings">{cards}</div>' if cards else "") + rest


def _completeness(data: Summary, runs: list[dict[str, Any]], seeds: int) -> str:
    points, sharing = data.get("points") or {}, data.get("sharing") or {}
    total, finished = points.get("total"), points.get("finished")
    said = [f"<b>{_count(finished)} of {_count(total)}</b> points have finished."]
    if total is not None and finished is not None and finished < total:
        said[0] += ' <span class="warn">This sweep is unfinished: means, fits and fronts may still move.</span>'
    attacked = sum(bool((run.get("attack") or {}).get("steps")) for run in runs)
    if attacked < len(runs):
        said.append(
            f"{len(runs) - attacked:,} of {len(runs):,} were not attacked, so they are in no figure of an attack."
        )
    if runs and seeds == 1:
        said.append("<b>One training seed:</b> there are no bands, and the luck of training is not covered.")
    shared, unshared = sharing.get("flops_shared"), sharing.get("flops_unshared")
    if shared is not None and unshared:
        saved = f"{shared:.2e} FLOPs of nodes were computed where every point run alone would have taken {unshared:.2e}"
        said.append(f"Sharing stages between points saved {run_page.percent(1 - shared / unshared)}: {saved}.")
    return f'<p class="did">{" ".join(said)}</p>'


def _steps(entries: list[dict[str, Any]]) -> str:
    """Return the numbers behind the figure of steps against α."""
    head = ["method", "β", "parameters", "runs", "left out", "slope per unit of α", "intercept", "R²", "better"]
    head += ["error, line", "error, exponential", "R² of log(steps)"]
    rows = []
    for entry in entries:
        fit = entry.get("fit") or {}
        bent = fit.get("exponential") or {}
        row = [
            entry.get("method"),
            entry.get("beta"),
            _count(entry.get("parameters")),
            entry.get("n"),
            _left_out(entry),
        ]
        row += [_ends(fit["slope"]) if fit else entry.get("reason"), _ends(fit.get("intercept")), _short(fit.get("r2"))]
        row += [
            fit.get("better"),
            *(_short(shape.get("leave_one_out")) for shape in (fit, bent)),
            _short(bent.get("r2")),
        ]
        rows.append(row)
    return _table(head, rows) if rows else "<p>No run of UNDO: no fit.</p>"


def _sizes(entries: list[dict[str, Any]]) -> str:
    """Return the section about larger models, which is a sentence where too few sizes were run."""
    fitted = [entry for entry in entries if entry.get("fit")]
    if not fitted:
        reason = next((entry.get("reason") for entry in entries), None) or "no setting was run at several sizes"
        return f"<p>No fit: {text(reason)}.</p>"
    warnings = " ".join(dict.fromkeys(str(entry["fit"].get("warning")) for entry in fitted))
    predicted = [point["parameters"] for point in fitted[0]["fit"]["predictions"]]
    rows = [
        [entry.get(field) for field in ("kind", "method", "alpha", "beta")]
        + [_ends(entry["fit"]["exponent"]), _short(entry["fit"]["r2"])]
        + [_ends({**point, "value": point["flops"]}) for point in entry["fit"]["predictions"]]
        + [_left_out(entry)]
        for entry in fitted
    ]
    head = ["kind", "method", "α", "β", "exponent", "R²", *(f"FLOPs at {size:.2g}" for size in predicted), "left out"]
    figure = _figure(
        "sizes", "Student and teacher FLOPs against parameters", "Whole compute; 95 % prediction intervals."
    )
    return f'<p class="warn">{text(warnings)}</p>{figure}{_table(head, rows)}'


def _table(head: list[str], rows: list[list[Any]]) -> str:
    heads = "".join(f"<th>{text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _left_out(entry: dict[str, Any]) -> str:
    return ", ".join(f"{count} {why}" for why, count in (entry.get("left_out") or {}).items()) or "none"


def _ends(interval: dict[str, Any] | None) -> str:
    if not interval:
        return MISSING
    return f"{_short(interval['value'])} [{_short(interval['low'])}, {_short(interval['high'])}]"


def _short(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}" if abs(value) < 1000 or abs(value) >= 1e6 else f"{value:,.0f}"


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def _figure(place: str, title: str, words: str = "") -> str:
    caption = f'<figcaption><h3>{title}</h3><p id="{place}-note">{words}</p></figcaption>'
    return f'<figure>{caption}<div class="plot" id="{place}"></div></figure>'


def _select(place: str, words: str, options: Mapping[str, str] | None = None) -> str:
    listed = "".join(f'<option value="{value}">{label}</option>' for value, label in (options or {}).items())
    return f'<label id="{place}-label">{words} <select id="{place}">{listed}</select></label>'


ACCOUNTINGS = {"whole": "whole", "own": "own", "amortised": "amortised"}
UNITS = {
    "share": "share of retraining the oracle",
    "training": "FLOPs of student and teacher",
    "all": "FLOPs with evaluation and attack",
}

STEPS_NOTE = """Solid in its band: the straight line; dotted: the exponential, where it is better. Marks are means
over the seeds that recovered, arrows are runs that did not."""
BODY = f"""
<div class="explorer"><aside>
<div id="filters" role="group" aria-label="Filters"></div>
<p class="small"><b id="shown"></b> <button type="button" id="reset">reset</button></p>
<p class="small">What is ticked here is what every figure and the table show. Colour is the method, the mark is the
kind, the line's dash is β; a hollow mark has a seed that diverged or did not recover.</p>
</aside><div>
<section id="tradeoff"><h2>What does robustness cost?</h2>
<p>A mark is the mean over training seeds of one setting, its bar the 95 % Student-t interval over seeds. Down and to
the left is better. The broad line is the Pareto front: no setting drawn beats one on it, with less compute, a lower
held-out accuracy or both. Click a mark to add its relearning curve below, or to take it away.</p>
<div class="controls">{_select("unit", "Compute as", UNITS)}{_select("accounting", "counted", ACCOUNTINGS)}
{_select("step", "after attack step")}
<label>front needs retain within <input id="tolerance" type="number" min="0" max="1" step="0.01" value="0.05"> of the
oracle's</label><label><input id="log" type="checkbox"> logarithmic</label></div>
{_figure("compute", "Held-out forget accuracy under attack against compute")}
<dl class="terms small"><dt>whole</dt><dd>The model and everything it was made from, as if it were the only one; the
pretrained reference exists already and is left out.</dd><dt>own</dt><dd>Only the stages that no other point of the
sweep uses: what adding this point to the sweep costs.</dd><dt>amortised</dt><dd>Every shared stage divided by the
number of models made from it, so that all models together cost what all nodes did, but for references and attacks.
A student's work includes its teacher's forward passes, which a population of students runs once for all.</dd></dl>
<p class="small">The share of retraining counts student and teacher, over what training the oracle took; evaluation and
attack are counted apart.</p></section>
<section id="relearning"><h2>Relearning curves of the selection</h2>
<p>Each line is the worst case over the attacker's learning rates, its mean and 95 % band over training seeds; above, a
ring of its colour is around its mark. Click a name to take it away.</p>
<div class="legend" id="selection"></div><div class="three">
{_figure("heldout", "Held-out facts", "Forgotten facts the attacker never showed. Lower is safer.")}
{_figure("relearned", "Shown facts", "Forgotten facts the attacker trains on.")}
{_figure("kept", "Retained ability", "Of the same members, at the same step.")}</div></section>
<section id="grid"><h2>α and β together</h2>
<div class="controls">{_select("method", "Method")}{_select("size", "Parameters")}</div><div class="two">
{_figure("grid-heldout", "Held-out forget accuracy under attack")}{_figure("grid-retain", "Retain accuracy")}</div>
</section>
<section id="before"><h2>Before the attack</h2>
{_figure("accuracies", "Retain against forget accuracy")}
</section>
<section id="recovery"><h2>How long until the retain ability is back?</h2>
{_figure("steps", "Steps to recover against α", STEPS_NOTE)}
<p class="small">Least squares over all seeds of the recovered runs, whatever is filtered here, each taken as
independent although the α of one seed share a teacher; the band is the 95 % interval of the mean. Runs that did not
recover would have taken longer, so leaving them out makes a slope too small. The better shape has the smaller
leave-one-out error, in steps.</p>{{steps}}</section>
<section id="scaling"><h2>What would a larger model cost?</h2>{{sizes}}</section>
</div></div>
<section id="table"><h2>All runs</h2><p>One row a run; a click on its box draws its curve above, a click on a heading
sorts. <button type="button" id="download">Download as CSV</button> exports the rows shown, in full precision.</p>
<div class="scroll tall"><table class="numbers" id="runs"><thead></thead><tbody></tbody></table></div></section>
"""
