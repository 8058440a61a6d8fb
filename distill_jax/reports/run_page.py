"""Write the report of a finished run: `summary.json` and one self-contained page, `index.html`.

The page is a function of the summary and of nothing else. It is written for someone who decides whether a model is safe
to release and has not read the code: the answer first, then the figures, every number, the claims and the definitions.
What a run does not have, an oracle or bands, its page does not speak of.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from distill_jax.data.label_errors import described_errors
from distill_jax.evals.scale import MISSING, Scale
from distill_jax.io.files import write_atomic
from distill_jax.io.storage import location
from distill_jax.reports import run_copy, run_figures, weight_measures
from distill_jax.reports.attack_curves import curve, has_bands
from distill_jax.reports.attack_view import attack_view
from distill_jax.reports.card import card_json, card_text, card_view
from distill_jax.reports.conclusion_view import conclusions_view
from distill_jax.reports.formats import count, duration, plural
from distill_jax.reports.rendering import Page, clean, render_template, write_page
from distill_jax.reports.run_answer import answer, compared_names, scale_of
from distill_jax.reports.run_copy import COPY, PanelText
from distill_jax.reports.run_tables import ledger, model_table
from distill_jax.reports.summary_types import ModelSummary, RunSummary
from distill_jax.reports.trace_style import TraceStyle, role, trace_styles


@dataclass(frozen=True)
class Contents:
    """What a run has, so that its page speaks of nothing else: `roles` of its models, whether it has bands."""

    roles: frozenset[str]
    bands: bool
    hollow: bool
    relative_compute: bool
    first_passage: bool

    @property
    def oracle(self) -> bool:
        """Return whether an oracle was trained."""
        return "oracle" in self.roles


@dataclass(frozen=True)
class Panel:
    """A figure with the words over it."""

    place: str
    heading: str
    words: str
    key: str
    direction: str


def write(summary: Mapping[str, Any], directory: str | os.PathLike[str]) -> Path:
    """Write `summary.json` and `index.html`, and the card of a run that has one; return the page's path."""
    page = write_page(render, summary, location(directory) / "summary.json")
    if summary.get("card"):
        data = clean(summary)
        write_atomic(page.with_name("card.md"), card_text(data))
        write_atomic(page.with_name("card.json"), json.dumps(card_json(data), indent=1, ensure_ascii=False) + "\n")
    return page


def render(summary: Mapping[str, Any]) -> str:
    """Return the whole report as one HTML page that needs no network."""
    data = cast(RunSummary, summary)
    models = [_with_label(model, index) for index, model in enumerate(data.get("models") or [])]
    scale, contents = scale_of(data), _contents(models)
    curves = run_figures.relearning(models, scale, compared_names(data))
    compute, missing = run_figures.compute(models, scale)
    tried = data.get("attack_catalogue")
    attacks, trials = attack_view(tried, models, scale) if tried else (None, {})
    drawings = {
        "figures": curves | compute | trials,
        "curves": list(curves),
        "titles": {"panel-robustness": run_figures.measure_titles(models, scale)} if compute else {},
    }
    page = Page(f"{data.get('experiment') or MISSING} · distill_jax report", drawings, scripts=("run.js", "tables.js"))
    return render_template(
        "run.html.j2",
        page,
        summary=data,
        copy=COPY[scale.key],
        contents=contents,
        answer=answer(data, models),
        legend=_legend(models),
        curve_panels=_panels(COPY[scale.key].curves, data, contents) if curves else [],
        compute_panels=_panels(COPY[scale.key].compute, data, contents) if compute else [],
        curves_intro=_curves_intro(scale, contents),
        compute_intro=_compute_intro(contents),
        measures=run_figures.measures(models),
        missing=missing,
        attacks=attacks,
        weights=_weights(data, models, scale),
        table=model_table(models, scale) if models else None,
        ledger=ledger(models),
        card=card_view(data) if data.get("card") else None,
        conclusions=conclusions_view(data.get("conclusions") or []),
        terms=_terms(data, scale, contents),
        method=_method(data, scale, contents),
        colophon=_colophon(data),
    )


def _weights(data: RunSummary, models: Sequence[ModelSummary], scale: Scale) -> weight_measures.WeightsView | None:
    measures = data.get("weights")
    return weight_measures.view(measures, {m["name"]: m["label"] for m in models}, scale) if measures else None


def _with_label(model: ModelSummary, index: int) -> ModelSummary:
    """Return the model with a name and a label, which everything on the page refers to."""
    name = str(model.get("name") or f"model-{index + 1}")
    return {**model, "name": name, "label": str(model.get("label") or name)}


def _contents(models: Sequence[ModelSummary]) -> Contents:
    return Contents(
        roles=frozenset(role(model) for model in models),
        bands=has_bands(models),
        hollow=any(model.get("recovered") is False for model in models),
        relative_compute=any(model.get("compute_vs_oracle") is not None for model in models),
        first_passage=any(model.get("compute_vs_first_passage") is not None for model in models),
    )


def _legend(models: Sequence[ModelSummary]) -> list[tuple[ModelSummary, TraceStyle]]:
    """Return the models that have curves, with how they are drawn."""
    pairs = zip(models, trace_styles(models), strict=True)
    return [(model, style) for model, style in pairs if curve(model, "").steps]


def _panels(texts: Sequence[PanelText], data: RunSummary, contents: Contents) -> list[Panel]:
    facts = data.get("facts") or {}
    counts = {"heldout": count(facts.get("heldout")), "shown": count(facts.get("shown"))}
    return [
        Panel(
            text.place,
            text.heading,
            text.words.format(**counts),
            text.key if contents.oracle else text.key_alone,
            text.direction,
        )
        for text in texts
    ]


def _curves_intro(scale: Scale, contents: Contents) -> list[str]:
    return [
        run_copy.CURVES_INTRO,
        *([run_copy.BAND_LINE] if contents.bands else []),
        *([COPY[scale.key].oracle_line] if contents.oracle else []),
    ]


def _compute_intro(contents: Contents) -> list[str]:
    return [
        run_copy.COMPUTE_INTRO,
        *([run_copy.BARS_LINE] if contents.bands else []),
        *([run_copy.UNDO_LINE] if "undo" in contents.roles else []),
        *([run_copy.HOLLOW_LINE] if contents.hollow else []),
    ]


def _terms(data: RunSummary, scale: Scale, contents: Contents) -> dict[str, str]:
    facts = data.get("facts") or {}
    counts = {"heldout": count(facts.get("heldout")), "shown": count(facts.get("shown"))}
    absent = {term for term, needed in run_copy.TERMS_OF_ROLES.items() if needed not in contents.roles}
    terms = COPY[scale.key].terms.items()
    return {term: words.format(**counts) for term, words in terms if term not in absent}


def _method(data: RunSummary, scale: Scale, contents: Contents) -> dict[str, str]:
    """Return how it was measured, as {heading: words}."""
    copy = COPY[scale.key]
    heading, words = copy.evaluated
    sets = data.get("evaluated") or {}
    counts = {key: count(sets.get(key)) for key in ("retain", "forget_shown", "forget_heldout")}
    worst, taken = "Worst case", copy.worst
    if contents.bands:
        worst, taken = f"{worst} and band", f"{taken} {copy.band}"
    compute = run_copy.METHOD["Compute"] + (f" {run_copy.ORACLE_COMPUTE}" if contents.relative_compute else "")
    errors = data.get("label_errors")
    labels = {"Labels": "; ".join(described_errors(errors)) + ", as counted on the prepared data."} if errors else {}
    choice = {"Choice": run_copy.CHOICE_NOTE} if "undo" in contents.roles else {}
    return {
        heading: words.format(**counts),
        **labels,
        "Attack": _attack(data),
        worst: taken.format(item=scale.item),
        "Different": copy.compared.format(item=scale.item),
        "What training reads": copy.reads.format(item=scale.item),
        **run_copy.METHOD,
        "Compute": compute,
        **choice,
    }


def _attack(data: RunSummary) -> str:
    attack = data.get("attack") or {}
    rates = ", ".join(f"{rate:g}" for rate in attack.get("learning_rates") or [] if rate is not None)
    steps, batch, seeds = count(attack.get("steps")), count(attack.get("batch")), plural(attack.get("seeds"), "seed")
    rank = attack.get("lora_rank")
    weights = f"LoRA adapters of rank {rank}" if rank else "all weights"
    words = f"{steps} steps of fine-tuning {weights}, batch {batch}, {seeds} at each learning rate"
    return f"{words}: {rates or MISSING}."


def _colophon(data: RunSummary) -> list[tuple[str, str]]:
    seconds = data.get("duration_seconds")
    parts = (
        ("experiment", data.get("experiment")), ("identity", data.get("identity")), ("device", data.get("device")),
        ("created", data.get("created")), ("duration", duration(seconds) if seconds is not None else None),
    )  # fmt: skip
    return [(name, value) for name, value in parts if value]
