"""Show conclusions, as a summary holds them (`evals.conclusions.to_json`): a section of a page, lines to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.io import report
from distill_jax.io.report import text

STYLES = {"held": "held", "failed": "failed", "open": "open", "void": "open", "not run": "open"}
INTRO = """<p>What the experiment was to show, and whether its numbers show it. “Open”: the seeds cannot tell. “Void”: a
premise is not shown, so that the sentence would mean nothing. “Not run”: what it compares is not there. None of these
is a pass.</p>"""


def section(conclusions: Sequence[Mapping[str, Any]]) -> str:
    """Return the conclusions as the page's section."""
    if not conclusions:
        return report.section("claims", "Claims", "<p>No claim was stated for this experiment.</p>")
    rows = "".join(
        f'<tr><td class="verdict"><span class="{STYLES[one["state"]]}">{text(one["state"])}</span></td>'
        f'<td>{text(one["statement"])}</td><td class="evidence">{text(one["evidence"])}</td></tr>\n'
        for one in conclusions
    )
    head = "<thead><tr><th>state</th><th>claim</th><th>evidence</th></tr></thead>"
    table = f'<div class="scroll"><table class="claims">{head}<tbody>{rows}</tbody></table></div>'
    return report.section("claims", "Claims", INTRO + table)


def line(one: Mapping[str, Any]) -> str:
    """Return a conclusion as a line to print."""
    state = "FAILED" if one["state"] == "failed" else one["state"]
    return f"{state:8}{one['statement']}  {one['evidence']}"
