"""Write the report of a finished experiment: `summary.json` and one self-contained page, `index.html`.

The page is a function of the summary and of nothing else. It is written for someone who decides whether a model is safe
to release and has not read the code: the answer first, then the figures, every number, the claims and the definitions.
Every string of the summary is escaped; a number that is missing or not finite is shown as a dash and never guessed.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from distill_jax.evals.scale import ACCURACY, MISSING, SCALES, Scale, percent
from distill_jax.io.files import write_atomic
from distill_jax.io.sealed import seal
from distill_jax.reports import figures
from distill_jax.reports.figures import Look, Model
from distill_jax.reports.run_text import WORDINGS

Summary = dict[str, Any]


def write(summary: Mapping[str, Any], directory: str | os.PathLike[str]) -> Path:
    """Write `summary.json` and `index.html` into `directory` and return the page's path.

    Both texts exist before either file is touched, and each file is replaced in one step: a reader sees the old
    report or the new one, never half of one.
    """
    data = clean(summary)
    return write_beside(render(data), data, Path(directory) / "summary.json")


def write_beside(page: str, data: Summary, numbers: Path) -> Path:
    """Write `data`, sealed, to the file `numbers` and the page it draws to `index.html` beside it; return its path."""
    encoded = json.dumps(seal(data), indent=1, ensure_ascii=False, allow_nan=False)
    numbers.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(numbers, encoded + "\n")
    write_atomic(numbers.with_name("index.html"), page)
    return numbers.with_name("index.html")


def clean(tree: Any) -> Any:
    """Return `tree` as plain JSON values: arrays become lists, and NaN and infinities become None."""
    if hasattr(tree, "tolist"):
        tree = tree.tolist()
    if isinstance(tree, Mapping):
        return {str(key): clean(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [clean(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree


def render(summary: Mapping[str, Any]) -> str:
    """Return the whole report as one HTML page that needs no network."""
    data: Summary = clean(summary)
    models = data["models"] = [_named(model, index) for index, model in enumerate(data.get("models") or [])]
    looks, scale = figures.looks(models), scale_of(data)
    relearning = figures.relearning(models, scale)
    compute, missing = figures.compute(models, scale)
    sections = (
        _lead(data, models),
        _relearning_section(data, models, looks, relearning),
        _compute_section(data, models, compute, missing),
        _table_section(models, looks, scale),
        conclusions_section(data.get("conclusions") or []),
        _definitions(data),
        _method(data),
    )
    title = f"{text(data.get('experiment'))} · distill_jax report"
    drawings = {"figures": relearning | compute, "curves": list(relearning)}
    return html_page(title, "\n".join(sections), drawings, CSS, JAVASCRIPT)


def scale_of(data: Mapping[str, Any]) -> Scale:
    """Return how a summary's numbers read; those of a summary that does not say are accuracies."""
    return SCALES[data.get("measure") or ACCURACY.key]


def _named(model: Model, index: int) -> Model:
    """Return the model with a name and a label, which everything on the page refers to."""
    name = str(model.get("name") or f"model-{index + 1}")
    return {**model, "name": name, "label": str(model.get("label") or name)}


# ---------------------------------------------------------------------------------------------------- the answer


@dataclass(frozen=True)
class Leads:
    """Hold the models at the top of the page, each None where the experiment has none."""

    suppressed: Model | None
    undo: Model | None
    student: Model | None
    oracle: Model | None
    best: Model | None  # the more robust of `undo` and `student`
    undo_choices: int


def leads(data: Summary, models: list[Model]) -> Leads:
    """Return the models that the summary's headline names."""
    named, told = {model["name"]: model for model in models}, data.get("headline") or {}
    roles = ("suppressed", "undo", "student", "oracle", "best")
    return Leads(**{role: named.get(told.get(role)) for role in roles}, undo_choices=told.get("undo_choices") or 0)


def _lead(data: Summary, models: list[Model]) -> str:
    steps, scale = figures.landmarks(models), scale_of(data)
    chosen = leads(data, models)
    verdict, story = answer(data, chosen, steps[-1] if steps else None)
    return f"""<header>
<p class="kicker">distill_jax · unlearning report</p>
<h1>{text(data.get("experiment"))}</h1>
<p class="description">{text(data.get("description"), "")}</p>
<h2 class="answer">{verdict}</h2>
<p class="story">{story}</p>
{_cards(chosen, steps, scale)}
<p class="did">{_what_was_done(data, chosen)} {_counts(data.get("conclusions") or [])}</p>
</header>"""


def answer(data: Summary, chosen: Leads, step: int | None) -> tuple[str, str]:
    """Return the answer in one line and the numbers behind it, as HTML, for the curves at attack step `step`."""
    scale, decided = scale_of(data), (data.get("headline") or {}).get("conclusions") or []
    if step is None:
        return "No model was attacked, so robustness is not known.", WORDINGS[scale.key].unknown
    base, best, oracle = chosen.suppressed, chosen.best, chosen.oracle
    told = [(model, figures.at_step(model, step)[0]) for model in (base, chosen.undo, chosen.student, oracle) if model]
    parts = [f"<b>{scale.show(value)}</b> from {text(model['label'])}" for model, value in told if value is not None]
    said = _listed(parts) if parts else "none was measured"
    story = WORDINGS[scale.key].story.format(step=f"{step:,}", told=said)
    story += _gap(base, best, oracle, step, scale) + _caveat(best, oracle, scale)
    story += " ".join(text(one.get("evidence"), "") for one in decided if one["state"] not in ("void", "not run"))
    return _verdict(decided, text(best["label"]) if best else "Distillation", oracle is not None), story


def _verdict(decided: list[dict[str, Any]], name: str, has_oracle: bool) -> str:
    """Return the headline's two conclusions, beyond suppression and as the oracle, as one sentence."""
    if not decided or decided[0]["state"] == "not run":
        return "No distilled model was attacked beside a suppressed one and a reference: nothing to compare."
    first, second = (one["state"] for one in decided)
    if first == "void":
        missing = next(premise for premise in decided[0]["premises"] if not premise["shown"])
        told = f"{text(missing['statement'])} ({text(missing['evidence'])})"
        return f"Nothing can be concluded of robustness. Not shown: {told}."
    if first != "held":
        less = "is less robust than" if first == "failed" else "is not shown to be more robust than"
        return f"{name} {less} suppression alone."
    ends = {
        "held": f"{name} resists relearning: better than suppression alone, and no worse than the oracle.",
        "failed": f"{name} resists relearning better than suppression alone, but less than the oracle.",
        "open": f"{name} resists relearning better than suppression alone; whether as well as the oracle is open.",
    }
    other = "no oracle to compare with" if not has_oracle else "the comparison with the oracle is void"
    return ends.get(second, f"{name} resists relearning better than suppression alone; {other}.")


def _gap(base: Model | None, best: Model | None, oracle: Model | None, step: int, scale: Scale) -> str:
    """Say how much of the way from suppression to the oracle was covered, and for what compute."""
    start, here, goal = (figures.at_step(model, step)[0] if model else None for model in (base, best, oracle))
    if best is None or start is None or here is None or goal is None or scale.ability(start) <= scale.ability(goal):
        return ""
    share, cost = (start - here) / (start - goal), best.get("compute_vs_oracle")
    price = f" for {percent(cost)} of the oracle’s compute" if cost is not None else ""
    passage = best.get("compute_vs_first_passage")
    if price and passage is not None:
        price += f" ({percent(passage)} of what the oracle itself took to reach the same goal)"
    return f"{text(best['label'])} covers {percent(share)} of the way from suppression to the oracle{price}. "


def _caveat(best: Model | None, oracle: Model | None, scale: Scale) -> str:
    """Warn when a model looks robust because it is a weaker model altogether."""
    if not best or not oracle or best.get("retain") is None or oracle.get("retain") is None:
        return ""
    less = scale.sign * (oracle["retain"] - best["retain"]) > 0.02
    keeps = "<b>It also keeps less</b>" if less else "It keeps what it should"
    return f"{keeps}: retain {scale.name} {scale.show(best['retain'])}, the oracle’s {scale.show(oracle['retain'])}. "


def _cards(chosen: Leads, steps: tuple[int, int, int] | None, scale: Scale) -> str:
    note = f"best of {chosen.undo_choices} settings by this very number" if chosen.undo_choices > 1 else ""
    shown = (
        (chosen.suppressed, "unlearned, not distilled"),
        (chosen.undo, note),
        (chosen.student, "distilled into a fresh network"),
        (chosen.oracle, WORDINGS[scale.key].goal),
    )
    cards = "".join(_card(model, note, steps, scale) for model, note in shown if model)
    return f'<div class="cards">{cards}</div>'


def _card(model: Model, note: str, steps: tuple[int, int, int] | None, scale: Scale) -> str:
    first, last = (steps[0], steps[-1]) if steps else (None, None)
    value, low, high = figures.at_step(model, last)
    band = "" if low is None or high is None else f"band {scale.show(low)} to {scale.show(high)}"
    missed = ' <span class="warn">goal not met</span>' if model.get("recovered") is False else ""
    cost = model.get("compute_vs_oracle")
    rows = {
        "before the attack": scale.show(figures.at_step(model, first)[0]),
        "retain": scale.show(model.get("retain")) + missed,
        "compute": MISSING if cost is None else f"{percent(cost)} of oracle",
    }
    listed = "".join(f"<div><dt>{term}</dt><dd>{words}</dd></div>" for term, words in rows.items())
    return f"""<div class="card" style="border-top-color:{figures.looks([model])[0].colour}">
<h3>{text(model["label"])}</h3><p class="note">{text(note, "")}</p>
<p class="big">{scale.show(value)}<span class="band">{band}</span></p>
<p class="caption">{WORDINGS[scale.key].caption} {f"after {last:,} attack steps" if steps else "(not attacked)"}</p>
<dl>{listed}</dl></div>"""


def _what_was_done(data: Summary, chosen: Leads) -> str:
    if not chosen.suppressed:
        return ""
    said = "<b>What was done.</b> A reference model was trained on everything and then made to suppress some of it."
    if chosen.best:
        said += " Its outputs were distilled into models whose weights had been damaged or drawn afresh."
    attack, facts = data.get("attack") or {}, data.get("facts") or {}
    if not attack:
        return said
    rates = _plural(len(attack.get("learning_rates") or []), "learning rate")
    scale = scale_of(data)
    filled = {
        "shown": _plural(facts.get("shown"), f"forgotten {scale.item}"),
        "steps": _plural(attack.get("steps"), "step"),
        "rates": rates,
        "seeds": _plural(attack.get("seeds"), "seed"),
        "heldout": _count(facts.get("heldout")),
    }
    return said + WORDINGS[scale.key].attacked.format(**filled)


def _counts(conclusions: list[dict[str, Any]]) -> str:
    """Say how many conclusions are in each state; what was not run was not asked."""
    states = Counter(one["state"] for one in conclusions)
    asked = sum(states.values()) - states["not run"]
    if not conclusions:
        return ""
    words = f"{states['held']} held, {states['failed']} failed, {states['open']} open, {states['void']} void"
    left = f"; {states['not run']} were not run" if states["not run"] else ""
    return f'<a href="#claims">Of {_plural(asked, "claim")} {words}{left}.</a>'


# ---------------------------------------------------------------------------------------------------- the figures


def _relearning_section(data: Summary, models: list[Model], looks: list[Look], drawn: dict[str, Any]) -> str:
    words = WORDINGS[scale_of(data).key]
    title = words.question
    if not drawn:
        return section("relearning", title, "<p>No relearning attack was run.</p>")
    facts = data.get("facts") or {}
    counts = {"heldout": _count(facts.get("heldout")), "shown": _count(facts.get("shown"))}
    panels = "".join(_figure(place, head, told.format(**counts)) for place, head, told in words.relearning)
    yardstick = words.yardstick if any(look.role == "oracle" for look in looks) else ""
    intro = f"<p>{RELEARNING_INTRO.format(yardstick=yardstick)}</p>"
    return section("relearning", title, f'{intro}{_legend(models, looks)}<div class="three">{panels}</div>')


RELEARNING_INTRO = """Each line is one model under the worst-case attack: at every step, the learning rate that brings
most back. The shaded band is its 95 % interval. {yardstick}Click a name to hide or show that
model in all three panels."""


def _legend(models: list[Model], looks: list[Look]) -> str:
    buttons = ""
    for model, look in zip(models, looks, strict=True):
        if figures.curve(model, "")["steps"]:
            words = f"{_swatch(look)}{text(model['label'])}"
            buttons += f'<button type="button" aria-pressed="true" data-group="{text(model["name"])}">{words}</button>'
    return f'<div class="legend" role="group" aria-label="Models to show">{buttons}</div>'


def _swatch(look: Look) -> str:
    stroke = f'stroke="{look.colour}" stroke-width="3" stroke-dasharray="{SWATCH_DASHES[look.dash]}"'
    line = f'<line x1="0" y1="5" x2="30" y2="5" {stroke}/>'
    return f'<svg class="swatch" width="30" height="10" aria-hidden="true">{line}</svg>'


SWATCH_DASHES = {
    "solid": "none", "dot": "2 3", "dash": "7 4", "longdash": "11 4", "dashdot": "7 3 2 3", "longdashdot": "11 3 2 3",
}  # fmt: skip


def _compute_section(data: Summary, models: list[Model], drawn: dict[str, Any], missing: list[str]) -> str:
    title = "What does robustness cost?"
    if not drawn:
        return section("compute", title, "<p>No attacked model has a compute count.</p>")
    picks = ""
    for index, (key, words, _) in enumerate(figures.measures(models)):
        picks += f'<button type="button" aria-pressed="{str(not index).lower()}" data-measure="{key}">{words}</button>'
    picks = f'<span class="picks" role="group" aria-label="Measure">{picks}</span>'
    texts = WORDINGS[scale_of(data).key].compute
    panels = "".join(_figure(place, head, words.format(picks=picks)) for place, head, words in texts)
    left_out = f"Without a compute count, so not drawn: {_listed(map(text, missing))}." if missing else ""
    return section("compute", title, f'{COMPUTE_INTRO}<div class="two">{panels}</div><p class="small">{left_out}</p>')


COMPUTE_INTRO = """<p>Each marker is one model; point at it for its name. A thin line joins UNDO models in order of α,
the share of the weights that was damaged; another shape of marker means other settings besides α. A hollow marker is a
model that had not regained its retain ability when training stopped.</p>"""


def _figure(place: str, head: str, words: str) -> str:
    label = f"{head}; the numbers are in the table of all models"
    plot = f'<div class="plot" id="{place}" role="img" aria-label="{label}"></div>'
    return f"<figure><figcaption><h3>{head}</h3><p>{words}</p></figcaption>{plot}</figure>"


# ---------------------------------------------------------------------------------------------------- the tables


@dataclass(frozen=True)
class Column:
    """Hold one column of the table of models: where its number comes from and how it is written."""

    group: str
    label: str
    value: Callable[[Model], Any]
    show: Callable[[Any], str]
    shaded: bool = False


def columns(models: list[Model], scale: Scale) -> list[Column]:
    """Return the columns that these models fill: one a group of prompts, one a landmark of the attack."""

    def group(name: str) -> Callable[[Model], Any]:
        return lambda model: ((model.get("by_group") or {}).get(name) or {}).get(scale.key)

    def at(step: int) -> Callable[[Model], Any]:
        return lambda model: figures.at_step(model, step)[0]

    names = dict.fromkeys(name for model in models for name in model.get("by_group") or {})
    steps = sorted(set(figures.landmarks(models) or ()))
    shaded = math.isfinite(scale.bounds[1])
    passed = any(model.get("compute_vs_first_passage") is not None for model in models)
    title, own = "to the same goal", "compute_vs_first_passage"
    passage = [Column("training", title, lambda model: model.get(own), _tenths)] if passed else []
    return [
        Column(scale.name, "retain", lambda model: model.get("retain"), scale.cell, shaded),
        Column(scale.name, "forget", lambda model: model.get("forget"), scale.cell, shaded),
        *(Column(*_split(name, scale), group(name), scale.cell, shaded) for name in names),
        *(Column("held-out, worst case", f"step {step:,}", at(step), scale.cell, shaded) for step in steps),
        Column("training", "steps", lambda model: model.get("steps"), _count),
        Column("training", "compute", lambda model: model.get("compute_vs_oracle"), _tenths),
        *passage,
        Column("training", "goal", lambda model: model.get("recovered"), _goal),
    ]


def _split(name: str, scale: Scale) -> tuple[str, str]:
    operation, _, form = name.partition("/")
    return (operation, form) if form else (f"{scale.name} by group", operation)


def _table_section(models: list[Model], looks: list[Look], scale: Scale) -> str:
    if not models:
        return section("models", "All models", "<p>No model is finished.</p>")
    chosen = columns(models, scale)
    groups = Counter(column.group for column in chosen)  # counts in order of first appearance
    chosen.sort(key=lambda column: list(groups).index(column.group))
    spans = "".join(f'<th colspan="{width}" scope="colgroup">{text(name)}</th>' for name, width in groups.items())
    heads = _head("model") + "".join(_head(column.label, _edge(chosen, i)) for i, column in enumerate(chosen))
    rows = "".join(_row(model, look, chosen) for model, look in zip(models, looks, strict=True))
    table = f"<thead><tr><th></th>{spans}</tr><tr>{heads}</tr></thead><tbody>{rows}</tbody>"
    table = f'<div class="scroll"><table id="models-table" class="numbers">{table}</table></div>'
    intro = f"<p>{WORDINGS[scale.key].table} {TABLE_INTRO}</p>"
    return section("models", "All models", intro + table + _ledger(models))


TABLE_INTRO = """Compute is in per cent of training the oracle for its whole schedule, and <i>to the same goal</i> in
per cent of what the oracle itself took to first reach the student’s retain goal; <i>goal</i> says whether retain
ability reached the level at which training was to stop. Click a column to sort by it."""


def _head(label: str, edge: str = "") -> str:
    return f'<th{edge} scope="col" aria-sort="none"><button type="button">{text(label)}</button></th>'


def _edge(chosen: list[Column], index: int) -> str:
    first = index == 0 or chosen[index - 1].group != chosen[index].group
    return ' class="edge"' if first else ""


def _row(model: Model, look: Look, chosen: list[Column]) -> str:
    cells = "".join(_cell(column.value(model), column, _edge(chosen, index)) for index, column in enumerate(chosen))
    name, label = text(model["name"]), text(model["label"])
    head = f'<th scope="row" data-value="{label}">{_swatch(look)}{label}</th>'
    return f'<tr data-model="{name}">{head}{cells}</tr>\n'


def _cell(value: Any, column: Column, edge: str) -> str:
    if value is None:
        return f'<td{edge} data-value="">{MISSING}</td>'
    shade = f' style="--v:{min(max(value, 0), 1):.3f}"' if column.shaded else ""
    return f'<td{edge} data-value="{json.dumps(value)}"{shade}>{column.show(value)}</td>'


def _ledger(models: list[Model]) -> str:
    """Return the settings and the compute by cause, folded away."""
    causes = list(dict.fromkeys(cause for model in models for cause in model.get("flops") or {}))
    rows = ""
    for model in models:
        settings = ", ".join(f"{key} = {value}" for key, value in (model.get("settings") or {}).items())
        numbers = [_scientific((model.get("flops") or {}).get(cause)) for cause in causes]
        numbers += [_count(model.get("seeds")), _count((model.get("attack") or {}).get("diverged"))]
        words = f'<td class="words">{text(model.get("stage"))}</td><td class="words">{text(settings, "")}</td>'
        cells = "".join(f"<td>{number}</td>" for number in numbers)
        rows += f'<tr><th scope="row">{text(model["label"])}</th>{words}{cells}</tr>\n'
    heads = "".join(f"<th>{text(head)}</th>" for head in (*(f"{c}, FLOPs" for c in causes), "seeds", "diverged"))
    head = f'<thead><tr><th>model</th><th class="words">stage</th><th class="words">settings</th>{heads}</tr></thead>'
    table = f'<div class="scroll"><table class="numbers">{head}<tbody>{rows}</tbody></table></div>'
    return f"<details><summary>Settings, compute by cause, attackers that diverged</summary>{table}</details>"


STATES = {"held": "✓ held", "failed": "✗ failed", "open": "– open", "void": "∅ void"}
STATES_INTRO = """<p>What the experiment was to show, and whether its numbers show it. <b>Held</b>: the whole 95 %
interval is on the claimed side. <b>Failed</b>: it is on the other. <b>Open</b>: it is on both; that is not a pass.
<b>Void</b>: something that the sentence rests on is not shown, so that it would mean nothing.</p>"""


def conclusions_section(conclusions: list[dict[str, Any]]) -> str:
    """Return conclusions, as `evals.conclusions.to_json` has them, as the page's section; not run ones in one line."""
    asked = [one for one in conclusions if one["state"] != "not run"]
    missing = [one for one in conclusions if one["state"] == "not run"]
    if not conclusions:
        return section("claims", "Claims", "<p>No claim was stated for this experiment.</p>")
    rows = ""
    for one in asked:
        words = f'<td>{text(one.get("statement"))}</td><td class="evidence">{text(one.get("evidence"))}</td>'
        state = f'<span class="{text(one["state"])}">{STATES[one["state"]]}</span>'
        rows += f'<tr><td class="verdict">{state}</td>{words}</tr>\n'
    head = "<thead><tr><th>state</th><th>claim</th><th>evidence</th></tr></thead>"
    table = f'<div class="scroll"><table class="claims">{head}<tbody>{rows}</tbody></table></div>' if asked else ""
    told = "; ".join(f"{text(one.get('statement'))} {text(one.get('evidence'))}" for one in missing)
    rest = f'<p class="small"><b>Not run:</b> {told}</p>' if missing else ""
    return section("claims", "Claims", STATES_INTRO + table + rest)


# ---------------------------------------------------------------------------------------------------- the small print


def _definitions(data: Summary) -> str:
    facts = data.get("facts") or {}
    counts = {"heldout": _count(facts.get("heldout")), "shown": _count(facts.get("shown"))}
    meanings = WORDINGS[scale_of(data).key].terms
    terms = "".join(f"<dt>{term}</dt><dd>{words.format(**counts)}</dd>" for term, words in meanings.items())
    return section("terms", "Terms", f'<dl class="terms">{terms}</dl>')


def _method(data: Summary) -> str:
    sets, attack = data.get("evaluated") or {}, data.get("attack") or {}
    rates = ", ".join(f"{rate:g}" for rate in attack.get("learning_rates") or [] if rate is not None)
    scale = scale_of(data)
    head, words = WORDINGS[scale.key].evaluated
    counts = {key: _count(sets.get(key)) for key in ("retain", "forget_shown", "forget_heldout")}
    steps, batch, seeds = (_count(attack.get(key)) for key in ("steps", "batch", "seeds"))
    rank = attack.get("lora_rank")
    setting = (steps, f"LoRA adapters of rank {rank}" if rank else "all weights", batch, seeds)
    notes = {
        head: words.format(**counts),
        "Attack": "{} steps of fine-tuning {}, batch {}, {} seeds at each learning rate: ".format(*setting)
        + f"{rates or MISSING}.",
        "Worst case and band": WORDINGS[scale.key].worst,
        "Different": WORDINGS[scale.key].compared,
        "What training reads": WORDINGS[scale.key].reads,
        **METHOD,
    }
    listed = "".join(f"<li><b>{head}.</b> {words}</li>" for head, words in notes.items())
    return section("method", "How it was measured", f"<ul>{listed}</ul>{_colophon(data)}")


METHOD = {
    "Retain under attack": "Measured in the same worst-case attacker at the same step, so that forgetting cannot be "
    "mistaken for breaking.",
    "Compute": "FLOPs by cause, as each model’s ledger counts them; 100 % is what training the oracle took, by its "
    "whole schedule. A student stops at a goal and an oracle does not, so the other column divides by what the oracle "
    "took until it first had the student’s goal, to within the steps between two looks at it. That is no schedule to "
    "train an oracle by: one made as short may end with less. What the attacker spends is not part of either.",
    "Choice": "The UNDO model at the top is picked by the number it is judged on; its intervals are widened for the "
    "number of settings it was picked from (Bonferroni).",
}


def _colophon(data: Summary) -> str:
    seconds = data.get("duration_seconds")
    parts = (
        ("experiment", data.get("experiment")), ("identity", data.get("identity")), ("device", data.get("device")),
        ("created", data.get("created")), ("duration", _duration(seconds) if seconds is not None else None),
    )  # fmt: skip
    said = " · ".join(f"{name} <code>{text(value)}</code>" for name, value in parts if value)
    return f'<p class="small">{said} · every number is in <code>summary.json</code> beside this page.</p>'


# ---------------------------------------------------------------------------------------------------- words and page


def _tenths(value: float) -> str:
    return f"{value * 100:.1f}"


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def _plural(number: int | None, noun: str) -> str:
    return f"{_count(number)} {noun}{'' if number == 1 else 's'}"


def _goal(value: bool) -> str:
    return "met" if value else "<b class='warn'>missed</b>"


def _scientific(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2e}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"


def _listed(parts: Iterable[str]) -> str:
    *most, last = list(parts)
    return f"{', '.join(most)} and {last}" if most else last


def text(value: Any, empty: str = MISSING) -> str:
    """Return a value for HTML; what is missing as a dash."""
    return empty if value in (None, "") else escape(str(value))


def section(place: str, title: str, body: str) -> str:
    """Return a section of the page; `title` and `body` are HTML."""
    return f'<section id="{place}"><h2>{title}</h2>{body}</section>'


def _script_json(data: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def html_page(title: str, body: str, drawings: Any, css: str, javascript: str) -> str:
    """Return one self-contained page: `body` and `title` as HTML, `drawings` as JSON that `javascript` reads."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,"><style>{css}</style></head><body><main>
<noscript><p class="warn">The figures need JavaScript. Every number is in the JSON file beside this page.</p></noscript>
{body}
</main>
<script type="application/json" id="drawings">{_script_json(drawings)}</script>
<script id="plotly">{get_plotlyjs()}</script>
<script>{javascript}</script>
</body></html>
"""


CSS = """
:root { --ink: #1d2430; --muted: #5a6372; --rule: #dde2e9; --paper: #fbfbfa; --card: #ffffff; --link: #1f5fa8 }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums }
main { max-width: 1360px; margin: 0 auto; padding: 40px 28px 72px }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em }
h2 { font-size: 1.4rem; line-height: 1.3; margin: 0 0 .5rem }
h3 { font-size: 1rem; margin: 0 }
p { margin: 0 0 .8rem }
section > p, .story, .did, .description, ul, .answer { max-width: 78ch }
a { color: var(--link) }
section { margin-top: 3.2rem; padding-top: 1.6rem; border-top: 1px solid var(--rule) }
.kicker { text-transform: uppercase; letter-spacing: .08em; font-size: .76rem; color: var(--muted);
  margin-bottom: .5rem }
.description, .note, .caption, .small, figcaption p, .evidence { color: var(--muted) }
.small { font-size: .88rem }
.warn { color: #a3271b; font-weight: 600 }
.answer { font-size: 1.55rem; margin: 1.6rem 0 .6rem }
.story { font-size: 1.06rem }

.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 16px; margin: 1.6rem 0 }
.card, figure, .scroll { background: var(--card); border: 1px solid var(--rule); border-radius: 6px }
.card { border-top: 5px solid; padding: 14px 18px }
.card .note { font-size: .84rem; margin: 0 }
.card .caption { font-size: .88rem }
.card .big { font-size: 2.7rem; line-height: 1.1; font-weight: 650; margin: .6rem 0 0; letter-spacing: -.02em }
.card .band { font-size: .82rem; font-weight: 400; letter-spacing: 0; color: var(--muted); margin-left: .7em;
  white-space: nowrap }
.card dl { margin: 0; font-size: .88rem }
.card dl div { display: flex; justify-content: space-between; padding: 3px 0; border-top: 1px solid var(--rule) }
.card dt { color: var(--muted) }
.card dd { margin: 0 }

button { font: inherit; color: inherit; cursor: pointer }
button:focus-visible { outline: 3px solid #3b82d6; outline-offset: 2px }
.legend, .picks { display: flex; flex-wrap: wrap; gap: 6px; margin: 0 0 1rem }
.picks { margin: .6rem 0 0 }
.legend button, .picks button { font-size: .88rem; padding: 3px 11px; border: 1px solid var(--rule);
  border-radius: 99px; background: var(--card); display: inline-flex; align-items: center }
.legend button[aria-pressed=false] { color: var(--muted); text-decoration: line-through; background: none }
.legend button[aria-pressed=false] svg { opacity: .3 }
.picks button[aria-pressed=true] { background: var(--ink); border-color: var(--ink); color: #fff }
.swatch { margin-right: 8px; vertical-align: middle; flex: none }

.three, .two { display: grid; gap: 22px; grid-template-columns: repeat(auto-fit, minmax(min(350px, 100%), 1fr)) }
.two { grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)) }
figure { margin: 0; padding: 14px 14px 4px; display: flex; flex-direction: column; min-width: 0 }
figcaption { flex: 1 }
figcaption p { font-size: .9rem; margin: .2rem 0 .4rem }
figcaption b, .picks button { color: var(--ink) }
.plot { height: 350px; min-width: 0 }
.two .plot { height: 390px }

.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .82rem }
th, td { padding: 6px 7px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap }
tbody tr:last-child > * { border-bottom: 0 }
thead th { font-weight: 600; color: var(--muted); vertical-align: bottom }
tbody th { font-weight: 600 }
thead tr:first-child th[colspan] { text-align: center }
.edge, th[colspan] { border-left: 1px solid var(--rule) }
th:first-child, .words, .claims th, .claims td { text-align: left }
.numbers th:first-child { position: sticky; left: 0; background: var(--card); z-index: 1 }
th button { background: none; border: 0; padding: 0; font-weight: 600 }
th button:hover { text-decoration: underline }
th[aria-sort=ascending] button::after { content: " ▲" }
th[aria-sort=descending] button::after { content: " ▼" }
td[style] { background: color-mix(in srgb, #8fb8e8 calc(var(--v) * 62%), #fff) }
.claims { font-size: .92rem }
.claims td { white-space: normal; vertical-align: top; min-width: 220px }
.claims td.verdict { min-width: 0; white-space: nowrap }
.verdict span { font-weight: 600; padding: 2px 9px; border-radius: 99px; font-size: .84rem }
.held { background: #dff2e7; color: #14663f }
.failed { background: #fbe4e0; color: #a3271b }
.open { background: #e9ecf1; color: #454d5a }
.void { background: #fdf1d6; color: #7a5200 }
details { margin-top: 1rem }
summary { cursor: pointer; color: var(--link); margin-bottom: .6rem }

.terms { display: grid; grid-template-columns: minmax(150px, 240px) minmax(0, 78ch); gap: 10px 24px; margin: 0 }
.terms dt { font-weight: 600 }
.terms dd { margin: 0 }
ul { padding-left: 1.2rem }
li { margin-bottom: .5rem }
@media (max-width: 640px) {
  main { padding: 22px 14px 48px }
  .terms { grid-template-columns: 1fr; gap: 2px }
  .terms dd { margin-bottom: 10px }
  .numbers th:first-child { white-space: normal; min-width: 110px; max-width: 130px }
  .numbers .swatch { display: block }
}
@media print { figure, .card { break-inside: avoid } .scroll { overflow: visible } }
"""

JAVASCRIPT = """
'use strict';
const { figures, curves } = JSON.parse(document.getElementById('drawings').textContent);
const settings = { responsive: true, displaylogo: false, modeBarButtons: [['toImage', 'resetScale2d']] };
for (const [place, drawing] of Object.entries(figures)) Plotly.newPlot(place, drawing.data, drawing.layout, settings);

function show(place, belongs, visible) {
  const chosen = document.getElementById(place).data.flatMap((trace, index) => belongs(trace) ? [index] : []);
  if (chosen.length) Plotly.restyle(place, { visible }, chosen);
}
for (const button of document.querySelectorAll('.legend button')) button.onclick = () => {
  const visible = button.getAttribute('aria-pressed') !== 'true';
  button.setAttribute('aria-pressed', visible);
  for (const place of curves) show(place, trace => trace.legendgroup === button.dataset.group, visible);
};
for (const button of document.querySelectorAll('.picks button')) button.onclick = () => {
  for (const other of document.querySelectorAll('.picks button')) other.setAttribute('aria-pressed', other === button);
  show('panel-robustness', trace => trace.meta.measure !== button.dataset.measure, false);
  show('panel-robustness', trace => trace.meta.measure === button.dataset.measure, true);
};
const key = (row, column) => row.cells[column].dataset.value;
const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
for (const button of document.querySelectorAll('#models-table th button')) button.onclick = () => {
  const head = button.parentElement, column = head.cellIndex, body = head.closest('table').tBodies[0];
  const down = head.getAttribute('aria-sort') === 'ascending';
  for (const other of head.parentElement.cells) other.setAttribute('aria-sort', 'none');
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const missing = row => key(row, column) === '';  // last, whichever way the column is sorted
  const order = (a, b) => (down ? -1 : 1) * compare(key(a, column), key(b, column));
  body.append(...[...body.rows].sort((a, b) => missing(a) - missing(b) || order(a, b)));
};
"""
