"""The top of a run's page: the answer in one line, the numbers behind it, a card for each model compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill_jax.evals.scale import ACCURACY, SCALES, Scale, percent
from distill_jax.reports.attack_curves import at_step, judged_step, landmarks
from distill_jax.reports.formats import count, plural
from distill_jax.reports.run_copy import COPY
from distill_jax.reports.summary_types import ConclusionSummary, ModelSummary, RunSummary
from distill_jax.reports.trace_style import trace_styles

ROLES = ("suppressed", "undo", "student", "oracle", "best")

# The stage that left the model which is to be mended -> how the run began.
BEGAN = {
    "pretrain": "A reference model was trained on everything and then made to suppress some of it.",
    "import": "A published model was made to suppress some of what it knows.",
    "finetune": "A published model was taught what it did not know, and then made to suppress that.",
}


@dataclass(frozen=True)
class Comparison:
    """The models at the top of the page, each None where the experiment has none."""

    suppressed: ModelSummary | None
    undo: ModelSummary | None
    student: ModelSummary | None
    oracle: ModelSummary | None
    best: ModelSummary | None  # the more robust of `undo` and `student`
    undo_choices: int


@dataclass(frozen=True)
class Card:
    """One model at the top: `rows` are (term, words, whether they warn)."""

    label: str
    note: str
    colour: str
    value: str
    band: str
    caption: str
    rows: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Retained:
    """What the best model keeps beside the oracle; `less` where it is the weaker model altogether."""

    less: bool
    words: str


@dataclass(frozen=True)
class Answer:
    """The answer: `scores` are (value, model) behind `story`."""

    verdict: str
    story: str
    scores: list[tuple[str, str]]
    gap: str
    retained: Retained | None
    evidence: list[str]
    cards: list[Card]
    done: str


def scale_of(summary: RunSummary) -> Scale:
    """Return how a summary's numbers read; those of a summary that does not say are accuracies."""
    return SCALES[summary.get("measure") or ACCURACY.key]


def compared_names(summary: RunSummary) -> list[str]:
    """Return the names of the models in the summary's headline, "" where it has none, in the order of `ROLES`."""
    headline: Mapping[str, object] = summary.get("headline") or {}
    return [str(headline.get(role) or "") for role in ROLES]


def comparison(summary: RunSummary, models: Sequence[ModelSummary]) -> Comparison:
    """Return the models that the summary's headline names."""
    by_name = {model["name"]: model for model in models}
    suppressed, undo, student, oracle, best = (by_name.get(name) for name in compared_names(summary))
    choices = (summary.get("headline") or {}).get("undo_choices") or 0
    return Comparison(suppressed, undo, student, oracle, best, choices)


def answer(summary: RunSummary, models: Sequence[ModelSummary]) -> Answer:
    """Return the answer of a summary, for the curves at the last attack step that all models share."""
    scale, compared, steps = scale_of(summary), comparison(summary, models), landmarks(models)
    copy = COPY[scale.key]
    cards = _cards(compared, steps, scale)
    done = _what_was_done(summary, compared)
    if steps is None:
        unknown = "No model was attacked, so robustness is not known."
        return Answer(unknown, copy.unknown, [], "", None, [], cards, done)
    last = steps[-1]
    listed = [model for model in (compared.suppressed, compared.undo, compared.student, compared.oracle) if model]
    values = [(at_step(model, judged_step(model, last))[0], model["label"]) for model in listed]
    chosen = any(judged_step(model, 0) for model in listed)
    when = f"At the step at which most came back, of {last:,}," if chosen else f"After {last:,} steps"
    scores = [(scale.show(value), label) for value, label in values if value is not None]
    conclusions = (summary.get("headline") or {}).get("conclusions") or []
    best = compared.best["label"] if compared.best else "Distillation"
    return Answer(
        verdict=_verdict(conclusions, best, compared.oracle is not None),
        story=copy.story.format(when=when) + ("" if scores else "none was measured."),
        scores=scores,
        gap=_gap(compared, last, scale),
        retained=_retained(compared, scale),
        evidence=[one["evidence"] for one in conclusions if one["state"] not in ("void", "not run")],
        cards=cards,
        done=done,
    )


def _verdict(conclusions: Sequence[ConclusionSummary], name: str, has_oracle: bool) -> str:
    """Return the headline's two conclusions, beyond suppression and as the oracle, as one sentence."""
    if not conclusions or conclusions[0]["state"] == "not run":
        return "No distilled model was attacked beside a suppressed one and a reference: nothing to compare."
    first, second = (one["state"] for one in conclusions)
    if first == "void":
        missing = next(premise for premise in conclusions[0]["premises"] if not premise["shown"])
        lacking = f"{missing['statement']} ({missing['evidence']})"
        return f"Nothing can be concluded of robustness. Not shown: {lacking}."
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


def _gap(compared: Comparison, last: int, scale: Scale) -> str:
    """Return how much of the way from suppression to the oracle was covered, and for what compute."""
    models = (compared.suppressed, compared.best, compared.oracle)
    start, here, goal = (at_step(model, judged_step(model, last))[0] if model else None for model in models)
    best = compared.best
    if best is None or start is None or here is None or goal is None or scale.ability(start) <= scale.ability(goal):
        return ""
    cost, passage = best.get("compute_vs_oracle"), best.get("compute_vs_first_passage")
    price = f" for {percent(cost)} of the oracle’s compute" if cost is not None else ""
    if price and passage is not None:
        price += f" ({percent(passage)} of what the oracle itself took to reach the same goal)"
    covered = percent((start - here) / (start - goal))
    return f"{best['label']} covers {covered} of the way from suppression to the oracle{price}."


def _retained(compared: Comparison, scale: Scale) -> Retained | None:
    """Return what the best model keeps: one may look robust because it is a weaker model altogether."""
    kept, goal = ((model or {}).get("retain") for model in (compared.best, compared.oracle))
    if kept is None or goal is None:
        return None
    words = f"retain {scale.name} {scale.show(kept)}, the oracle’s {scale.show(goal)}."
    return Retained(scale.sign * (goal - kept) > 0.02, words)


def _cards(compared: Comparison, steps: tuple[int, int, int] | None, scale: Scale) -> list[Card]:
    picked = f"best of {compared.undo_choices} settings by this very number" if compared.undo_choices > 1 else ""
    shown = (
        (compared.suppressed, "unlearned, not distilled"),
        (compared.undo, picked),
        (compared.student, "distilled into a fresh network"),
        (compared.oracle, COPY[scale.key].goal),
    )
    return [_card(model, note, steps, scale) for model, note in shown if model]


def _card(model: ModelSummary, note: str, steps: tuple[int, int, int] | None, scale: Scale) -> Card:
    first, last = (steps[0], judged_step(model, steps[-1])) if steps else (None, 0)
    value, low, high = at_step(model, last)
    when = f"after {last:,} attack steps{', its worst' if judged_step(model, 0) else ''}" if steps else "(not attacked)"
    cost = model.get("compute_vs_oracle")
    missed = "goal not met" if model.get("recovered") is False else ""
    rows = [
        ("before the attack", scale.show(at_step(model, first)[0]), ""),
        ("retain", scale.show(model.get("retain")), missed),
        *([("compute", f"{percent(cost)} of oracle", "")] if cost is not None else []),
    ]
    return Card(
        label=model["label"],
        note=note,
        colour=trace_styles([model])[0].colour,
        value=scale.show(value),
        band="" if low is None or high is None else f"band {scale.show(low)} to {scale.show(high)}",
        caption=f"{COPY[scale.key].caption} {when}",
        rows=rows,
    )


def _what_was_done(summary: RunSummary, compared: Comparison) -> str:
    if not compared.suppressed:
        return ""
    stages = [model.get("stage") for model in summary["models"] if model.get("role") == "reference"]
    sentences = [BEGAN.get(stages[0] or "", BEGAN["pretrain"]) if stages else BEGAN["pretrain"]]
    if compared.best:
        sentences.append("Its outputs were distilled into models whose weights had been damaged or drawn afresh.")
    attack, facts, scale = summary.get("attack") or {}, summary.get("facts") or {}, scale_of(summary)
    if attack:
        counts = {
            "shown": plural(facts.get("shown"), f"forgotten {scale.item}"),
            "steps": plural(attack.get("steps"), "step"),
            "rates": plural(len(attack.get("learning_rates") or []), "learning rate"),
            "seeds": plural(attack.get("seeds"), "seed"),
            "heldout": count(facts.get("heldout")),
        }
        sentences.append(COPY[scale.key].attacked.format(**counts))
    return " ".join(sentences)
