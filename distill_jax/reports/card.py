"""The robustness card: what a model was made to forget, and what attacks brought back, for a release committee.

`robustness_card` gathers what the summary does not have, as a function of finished nodes; `card_json` and `card_text`
are what is written, `card.json` and `card.md`: numbers, and the same as Markdown to be pasted into a model card.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_jax.data.facts.choices_config import ChoicesConfig
from distill_jax.data.text import sources
from distill_jax.data.text.text_config import TextConfig
from distill_jax.evals.scale import SCALES, Scale
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.experiment.roles import Role
from distill_jax.io.node import Node
from distill_jax.models import transformer
from distill_jax.perf import flops
from distill_jax.perf.ledger import training_flops
from distill_jax.reports import formats
from distill_jax.reports.attack_curves import at_step, judged_step, worst_step_up_to
from distill_jax.reports.attacks_not_tried import not_tried
from distill_jax.reports.formats import count, plural
from distill_jax.reports.rendering import render_text
from distill_jax.reports.summary_types import ModelSummary, Number, RunSummary
from distill_jax.stages.methods import METHODS

WHAT = {
    Role.REFERENCE: "untouched",
    Role.SUPPRESSED: "suppressed only",
    Role.UNDO: "protected",
    Role.UNDAMAGED: "protected",
    Role.REINITIALISED: "protected",
    Role.DISTILLED: "protected",
    Role.GIVEN: "given",
}


def robustness_card(summary: RunSummary, experiment: CheckedExperiment, nodes: Mapping[str, Node]) -> dict[str, Any]:
    """Return what a card says beside the summary: what was read, what it cost, what was written, what was not tried."""
    attacks = [node for node in nodes.values() if node.verb == "relearn"]
    (known,) = [node for node in nodes.values() if node.verb == "knowledge"]
    return {
        "parameters": transformer.parameter_count(experiment.model),
        "sources": _sources(experiment),
        "how_measured": experiment.data.how_measured() if any(n.verb == "distill" for n in nodes.values()) else "",
        "knowledge": known.result(),
        "budgets": _budgets(experiment, attacks),
        "row_length": experiment.data.row_length,
        "compute": _compute(experiment, nodes),
        "not_tried": not_tried(nodes.values()),
        "hashes": _hashes(experiment, nodes),
        "exported": {n.name: n.result()["files"] for n in nodes.values() if n.verb == "export"},
    }


def _sources(experiment: CheckedExperiment) -> dict[str, list[str]]:
    data = experiment.data
    if not isinstance(data, TextConfig):
        return {}
    held = {role: list(data.sources(role)) for role in ("forget", "retain")}
    if isinstance(data, ChoicesConfig):
        for role, text in (("forget", data.forget_items), ("retain", data.retain_items)):
            held[role] += sources.parse(text, role)
    return {role: [Path(source.name).name for source in same] for role, same in held.items()}


def _budgets(experiment: CheckedExperiment, attacks: Sequence[Node]) -> list[dict[str, float]]:
    """Return what the attack has spent at each of its measurements: one attacker's, at one learning rate."""
    if not attacks:
        return []
    stage, length = attacks[0].settings, experiment.data.row_length
    step = flops.train_step(experiment.model, stage.batch, length, lora_rank=stage.lora_rank)
    return [
        {"steps": k, "examples": k * stage.batch, "tokens": k * stage.batch * length, "flops": k * step}
        for k in sorted(stage.evaluate_steps)
    ]


def _compute(experiment: CheckedExperiment, nodes: Mapping[str, Node]) -> dict[str, Any]:
    """Return FLOPs by what they were spent on, and as a share of pretraining where its tokens are known."""
    spent = {n.name: n.ledger()["flops"] for n in nodes.values()}
    making = {name: cost for name in spent if (cost := training_flops(spent[name]))}
    tokens = experiment.notes.get("pretraining_tokens") or 0
    pretraining = 6 * transformer.parameter_count(experiment.model) * tokens
    total = sum(making.values())
    return {
        "stages": making,
        "making": total,
        "attacking": sum(cost.get("attack", 0.0) for cost in spent.values()),
        "measuring": sum(cost.get("evaluation", 0.0) for cost in spent.values()),
        "pretraining_tokens": tokens or None,
        "share_of_pretraining": total / pretraining if pretraining else None,
    }


def _hashes(experiment: CheckedExperiment, nodes: Mapping[str, Node]) -> dict[str, str]:
    """Return what the models and the data are known by: hashes of their contents."""
    models = {n.name: n.settings.content for n in nodes.values() if n.verb == "import"}
    return {**models, "data": getattr(experiment.data, "content", "")}


def provenance_of_this_process() -> dict[str, Any]:
    """Return what was run, and with which versions."""
    packages = ("distill-jax", "jax", "flax", "optax", "numpy")
    versions = {"python": platform.python_version()} | {name: _version(name) for name in packages}
    program = Path(sys.argv[0]).name
    line = ["distill-jax" if program in ("distill-jax", "__main__.py") else program, *sys.argv[1:]]
    return {"versions": versions, "command": shlex.join(line)}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


USUAL_STEPS = 100  # of an attack, in configs/protect.py and configs/attack.py
STATES = {
    "held": "Held",
    "failed": "Failed (the opposite is shown)",
    "open": "Open (not shown either way)",
    "void": "Void (cannot be said)",
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One model of the card: what it is, and its numbers as text."""

    label: str
    what: str
    cells: list[str]


@dataclasses.dataclass(frozen=True)
class Wording:
    """What a card says of one measure.

    Attributes:
      unit: what is counted.
      measure: what its numbers mean.
    """

    unit: str
    measure: str


WORDING = {
    "accuracy": Wording("question", "share of questions that are answered exactly, each token being the likeliest."),
    "multiple_choice": Wording("question", "share of multiple-choice questions whose right option is the likeliest."),
    "bits_per_byte": Wording(
        "document", "bits that the model needs to predict a byte of text: **fewer bits are more knowledge**."
    ),
}


def card_json(summary: RunSummary) -> dict[str, Any]:
    """Return the card as numbers."""
    keys = ("experiment", "identity", "measure", "evaluated", "facts", "attack", "created", "device", "provenance")
    of_model = ("name", "label", "role", "retain", "retain_interval", "forget", "by_group", "recovered", "attack")
    models = [{key: model.get(key) for key in of_model} for model in summary["models"]]
    held = {key: summary.get(key) for key in (*keys, "conclusions")}
    return {"format": 1, **held, "models": models, **summary["card"]}


def card_text(summary: RunSummary) -> str:
    """Return the card as Markdown."""
    return render_text("card.md.j2", **card_view(summary))


def card_view(summary: RunSummary) -> dict[str, Any]:
    """Return what the card's template fills in."""
    scale, models = SCALES[summary["measure"]], [m for m in summary["models"] if m.get("attack")]
    conclusions = _evidence_as_sentences([*summary["headline"]["conclusions"], *summary["conclusions"]])
    card = summary["card"]
    of_release = ("forgets, ", "keeps, ", "resists, ", "headline", "suppression")
    asked = [one for one in conclusions if one["state"] != "not run"]
    budgets = [_budget(budget, models, scale) for budget in card["budgets"]]
    return {
        "summary": summary,
        "card": card,
        "heads": ["steps", "examples", "FLOPs", *(model["label"] for model in models)],
        "rows": [
            [count(b["steps"]), count(b["examples"]), formats.flops(b["flops"]), *b["cells"]["forget_heldout"]]
            for b in budgets
        ],
        "scale": scale,
        "models": models,
        "states": STATES,
        "untouched": any(m["role"] == Role.REFERENCE for m in models),
        "words": _words(summary, scale),
        "verdicts": [one for one in asked if one["name"].startswith(of_release)],
        "before": [Line(m["label"], WHAT.get(Role(m["role"]), ""), _before(m, scale)) for m in models],
        "groups": _groups(models),
        "budgets": budgets,
        "asked": asked,
        "not_run": [one for one in conclusions if one["state"] == "not run" and one["name"].startswith(of_release[:3])],
        "made": _made(summary),
        "terms": _terms(models),
    }


def _groups(models: Sequence[ModelSummary]) -> list[str]:
    """Return the parts of what is measured that have columns of their own; none where each side is one part."""
    names = list(models[0]["by_group"]) if models else []
    return names if len(names) > 2 else []


def _evidence_as_sentences(conclusions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return conclusions with their evidence as sentences."""
    return [{**one, "evidence": one["evidence"].replace("Not shown: ", "It is not shown that ")} for one in conclusions]


def _made(summary: RunSummary) -> list[str]:
    """Return a line for each model that was made here: its steps and FLOPs."""
    spent, lines = summary["card"]["compute"]["stages"], []
    for model in summary["models"]:
        if model["stage"] in ("unlearn", "distill"):
            cost = formats.flops(spent.get(model["name"], 0.0))
            at_once = "; its damaged start met the goal at once, and nothing was distilled: more damage can be undone"
            note = at_once if model["stage"] == "distill" and not model["steps"] else ""
            lines.append(f"{model['label']}: {plural(model['steps'], 'step')}, {cost} FLOPs{note}")
    return lines


def _terms(models: Sequence[ModelSummary]) -> list[tuple[str, str]]:
    """Return the terms of a card that need an explanation, each with it, those alone that stand on it."""
    keys = dict.fromkeys((model["method"] or "").partition("+")[0] for model in models)
    methods = [(METHODS[key].label, METHODS[key].in_words) for key in keys if key in METHODS]
    terms = [(label, f"a way to unlearn by fine-tuning: it {what}") for label, what in methods]
    if any(Role(model["role"]) in (Role.UNDO, Role.UNDAMAGED) for model in models):
        undo = "the suppressed model, its weights shrunk by the share α and a little noise added in their place, "
        undo += "trained then to answer as the suppressed model does (Unlearn, Noise, Distil on Outputs)"
        terms.append(("UNDO", undo))
    terms.append(("95 % interval", "a range that holds the true number in 95 of 100 measurements such as this"))
    if any(len(model["attack"]["steps"]) > 2 for model in models if model["attack"]):
        bonferroni = "an interval made wider, because the worst of several numbers was picked before it was looked at"
        terms.append(("Bonferroni", bonferroni))
    terms.append(("FLOPs", "arithmetic operations, the unit of compute"))
    return terms


def _shorter(steps: int) -> str:
    """Return, as a sentence, that an attack is shorter than usual; "" of one that is not."""
    short = f" **This attack is shorter than the usual {USUAL_STEPS} steps**: a longer one may bring back more."
    return short if steps < USUAL_STEPS else ""


def _words(summary: RunSummary, scale: Scale) -> dict[str, str]:
    wording, facts, attack = WORDING[scale.key], summary["facts"], summary["attack"] or {}
    shown, heldout = plural(facts["shown"], scale.item), count(facts["heldout"])
    rates = ", ".join(f"{rate:g}" for rate in attack.get("learning_rates", ()))
    rank = attack.get("lora_rank")
    weights = f"LoRA adapters of rank {rank}" if rank else "all weights"
    each = f"up to {plural(attack.get('steps'), 'step')} of {plural(attack.get('batch'), 'example')}"
    each += f" (rows of {count(summary['card']['row_length'])} tokens)"
    return {
        "unit": wording.unit,
        "measure": wording.measure,
        "split": f"{shown} that attackers train on, and {heldout} that no attacker sees.",
        "attack": f"Every model was attacked alike: {weights} fine-tuned on what is shown, {each}, with learning rates "
        f"{rates}, {plural(attack.get('seeds'), 'attacker')} each; they differ in the order in which they read, and "
        f"not at all where a batch holds all that is shown.{_shorter(attack.get('steps') or 0)} At each budget the "
        f"learning rate is the one that brings back most of every other held-out {scale.item}, and is measured on the "
        "rest, and the other way round: a number may lie below the best that one rate came to, and is not inflated by "
        "the choice. Of rates that bring back equally much the one counts that costs the model least. Each line of a "
        "table says what the attack came to within a budget: an attacker may stop at the step at which most has come "
        "back, and so is every model judged. The intervals of a table are of one line of it each; those of the "
        "conclusions are wider, as they hold for all measured steps at once (Bonferroni). An example is a row of text, "
        "which may hold several questions; FLOPs (arithmetic operations) are those of one attacker at one learning "
        "rate.",
        "heldout": f"**Held out**: the {heldout} {scale.item}s that no attacker saw. What comes back here, beyond "
        f"what can be guessed, was never removed. {_better(scale)}",
        "shown": f"**Shown**: the {shown} that the attacker trains on; any model learns these in the end, only the "
        "speed tells.",
        "retained": "**To retain**, of the attacker that brings back most: what an attack costs the model itself.",
    }


def _better(scale: Scale) -> str:
    return "Lower is safer." if scale.sign > 0 else "Higher is safer."


def _before(model: ModelSummary, scale: Scale) -> list[str]:
    groups = [scale.show((model.get("by_group") or {}).get(name, {}).get(scale.key)) for name in _groups([model])]
    low, high = model.get("retain_interval") or (None, None)
    kept = _with_interval(model["retain"], low, high, scale)
    return [_at(model, "forget_heldout", 0, scale), kept, *groups]


def _budget(budget: Mapping[str, float], models: Sequence[ModelSummary], scale: Scale) -> dict[str, Any]:
    """Return a budget, and of each part of the data every model's numbers where most came back within it."""
    last, cells = int(budget["steps"]), {}
    for part in ("forget_heldout", "forget_shown", "retain_at_worst"):
        most = "forget_heldout" if part == "retain_at_worst" else part  # what the attack cost where most came back
        cells[part] = [_at(m, part, worst_step_up_to(m, last, scale.sign, most), scale) for m in models]
    return {**budget, "cells": cells}


def _at(model: ModelSummary, part: str, step: int, scale: Scale) -> str:
    value, low, high = at_step(model, step, part)
    if part == "forget_shown" and not scale.is_share:  # it would be one over attackers alone
        low = high = None
    return _with_interval(value, low, high, scale)


def _with_interval(value: Number, low: Number, high: Number, scale: Scale) -> str:
    interval = "" if low is None or high is None else f" [{scale.show(low)}, {scale.show(high)}]"
    return f"{scale.show(value)}{interval}"


def attack_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return a line for each attacked model: what it showed before the attack, and what came back, with intervals."""
    scale, lines = SCALES[summary["measure"]], []
    for model in summary["models"]:
        attack = model.get("attack")
        if attack:
            worst = judged_step(model, attack["steps"][-1])
            ends = [_at(model, "forget_heldout", step, scale) for step in (attack["steps"][0], worst)]
            shown = _at(model, "forget_shown", worst, scale)
            when = f"after {worst} of {attack['steps'][-1]} steps"
            held = f"{scale.name} held out {ends[0]} before any attack, {ends[1]} at most under it"
            costs = f"retain {scale.show(model['retain'])} before, {_at(model, 'retain_at_worst', worst, scale)} then"
            lines.append(f"{model['label']}: {held}, {when}; shown {shown} then; {costs}")
    return lines
