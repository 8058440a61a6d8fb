"""The run page's sentences that depend on what was measured: answers to prompts, or the likelihood of text.

Plain text; what stands in braces is filled in. Sentences on an oracle or on bands are fields of their own, as a run may
have neither.
"""

from __future__ import annotations

import dataclasses

from distill_jax.evals.scale import ACCURACY, BITS_PER_BYTE, CHOICE


@dataclasses.dataclass(frozen=True)
class PanelText:
    """What stands over a figure: `key` is its point, `key_alone` that of a run without an oracle."""

    place: str
    heading: str
    words: str
    key: str = ""
    key_alone: str = ""
    direction: str = ""


@dataclasses.dataclass(frozen=True)
class CopyText:
    """The sentences of one scale.

    Attributes:
      story: introduces the numbers of the answer.
      unknown: stands in its place without an attack.
      goal: why the oracle is the goal.
      caption: under a card's number.
      attacked: what was done to each model.
      question, oracle_line: over the curves.
      curves, compute: over the panels of curves and of compute.
      table: over the table of models.
      terms: what words mean.
      evaluated: what was evaluated, as (heading, words).
      worst, band: how the worst case and its band were taken.
      compared: how two models are.
      reads: what training reads of what is to be forgotten.
    """

    story: str
    unknown: str
    goal: str
    caption: str
    attacked: str
    question: str
    oracle_line: str
    curves: tuple[PanelText, ...]
    compute: tuple[PanelText, ...]
    table: str
    terms: dict[str, str]
    evaluated: tuple[str, str]
    worst: str
    band: str
    compared: str
    reads: str


_TERMS = {
    "Reference": "The model before anything was removed.",
    "Suppressed or unlearned model": "The reference after fine-tuning that makes it stop giving the forget answers. It "
    "may still hold them.",
    "Student": "A network with freshly drawn weights, trained only to copy the outputs of another model.",
    "UNDO, α": "Damage a fraction α of the suppressed model’s weights (shrink them, add noise), then train it to copy "
    "the undamaged one. α = 0 damages nothing; towards α = 1 little is left.",
    "Worst-case attack": "The model is fine-tuned at several learning rates. At each step the one that brings back "
    "most is counted, as if the attacker had known which to choose.",
}
TERMS_OF_ROLES = {"Oracle": "oracle", "Student": "student", "UNDO, α": "undo"}  # of interest only where there is one


def _terms(retain: str, oracle: str, shown: tuple[str, str]) -> dict[str, str]:
    specific = {"Retain, forget": retain, "Oracle": oracle, **dict([shown])}
    order = (
        "Retain, forget", "Reference", "Oracle", "Suppressed or unlearned model", "Student", "UNDO, α", shown[0],
        "Worst-case attack",
    )  # fmt: skip
    return {term: specific.get(term) or _TERMS[term] for term in order}


_AVERAGED = "For the mean over an attack the bands are averaged too, which makes that band wider than need be."

_PROMPTS = CopyText(
    story="{when} the most successful attacker gets these shares of the forgotten facts back, measured on "
    "facts it was never shown: ",
    unknown="Only accuracies without an attack are given below.",
    goal="never saw the facts: the goal",
    caption="of held-out facts back",
    attacked="Then each was attacked: fine-tuned on {shown} for up to {steps}, with {rates} and {seeds}, and asked "
    "about {heldout} others.",
    question="Can the facts be taught back?",
    oracle_line="Compare each with the oracle, dashed, which never saw the facts.",
    curves=(
        PanelText(
            "panel-heldout",
            "Held-out facts",
            "The {heldout} forgotten facts that the attacker was never shown.",
            "What comes back, beyond what an oracle reaches, was never removed.",
            "What comes back was never removed, unless it can be worked out from what was shown.",
            "Lower is safer.",
        ),
        PanelText(
            "panel-shown",
            "Shown facts",
            "The {shown} facts the attacker trains on. Any network learns these in the end; only the speed tells.",
        ),
        PanelText(
            "panel-retain",
            "Retained ability",
            "What the model should still do, in that same worst case. Where a curve falls, the attack breaks the "
            "model.",
        ),
    ),
    compute=(
        PanelText(
            "panel-robustness",
            "Held-out facts the worst-case attack brings back",
            "Best is bottom left: little comes back, little was spent.",
        ),
        PanelText(
            "panel-cost-retain",
            "Retained ability before the attack",
            "Best is top left. A model that is low here may look robust only because it is weak. "
            "The axis need not start at zero.",
        ),
    ),
    table="Accuracies in per cent before the attack, then the share of held-out facts that the worst-case attack "
    "brings back.",
    terms=_terms(
        "The ability the model should keep, and the one it should lose, as shares of prompts answered right.",
        "A model trained from the start on data with nothing to forget in it. It cannot recall what it never saw, so "
        "it is the goal, and its training is the unit of compute.",
        (
            "Shown and held-out facts",
            "The forget facts are split: the attacker trains on {shown} and never sees the other {heldout}. Shown "
            "facts may simply be learned anew. Held-out facts that return, beyond what one who never knew them can "
            "work out, were still in the model.",
        ),
    ),
    evaluated=("Prompts", "{retain} retain, {forget_shown} forget (shown), {forget_heldout} forget (held out)."),
    worst="At each step and for each seed the learning rate that brings back most of one half of the held-out {item}s "
    "is measured on the other half, and the other way round, so that choosing does not flatter the attacker.",
    band="The band is the 95 % interval over the attacker’s seeds and the {item}s together. " + _AVERAGED,
    compared="Two models are compared {item} by {item} and seed by seed. The interval of their difference holds both, "
    "and the luck of training: where each was trained once, a standard deviation of .03 between models trained alike "
    "is assumed.",
    reads="Distillation reads all training rows, those to forget among them: what the teacher says there is what the "
    "student learns. Unlearning reads the whole forget set, held-out {item}s among it; only the attacker is kept "
    "from them.",
)

_TEXT = CopyText(
    story="{when} the most successful attacker brings the model down to so many bits per byte of the text "
    "to forget, measured on documents it was never shown (fewer bits are more ability): ",
    unknown="Only bits per byte without an attack are given below.",
    goal="never saw such text: the goal",
    caption="bits per byte of held-out text",
    attacked="Then each was attacked: fine-tuned on text to forget, {shown} in all, for up to {steps}, with {rates} "
    "and {seeds}, and measured on {heldout} others.",
    question="Can the text be taught back?",
    oracle_line="Compare each with the oracle, dashed, which never saw such text.",
    curves=(
        PanelText(
            "panel-heldout",
            "Held-out documents",
            "Bits per byte of {heldout} documents to forget that are in no training set and that the attacker was "
            "never shown.",
            "What is predicted better than an oracle learns to was never removed.",
            direction="Higher is safer.",
        ),
        PanelText(
            "panel-shown", "Shown documents", "Bits per byte of some of the {shown} documents the attacker trains on."
        ),
        PanelText(
            "panel-retain",
            "Retained ability",
            "Bits per byte of text to retain, in that same worst case. Where a curve rises, the attack breaks the "
            "model.",
        ),
    ),
    compute=(
        PanelText(
            "panel-robustness",
            "Held-out text under the worst-case attack",
            "Best is top left: the text stays improbable, little was spent.",
        ),
        PanelText(
            "panel-cost-retain",
            "Retained ability before the attack",
            "Best is bottom left. A model that is high here may look robust only because it is weak.",
        ),
    ),
    table="Bits per byte before the attack, then of held-out documents under the worst-case attack.",
    terms=_terms(
        "The text the model should stay able to predict, and the text it should lose, both held out from training: "
        "−log₂ of its probability, divided by its bytes. Fewer bits are more ability.",
        "A model trained from the start on text with nothing to forget in it. It cannot recall what it never saw, so "
        "it is the goal, and its training is the unit of compute.",
        (
            "Shown and held-out documents",
            "The attacker trains on the {shown} documents to forget that the reference was trained on, as many as its "
            "steps reach. The {heldout} held-out ones are new to every model.",
        ),
    ),
    evaluated=(
        "Documents",
        "{retain} retain, {forget_shown} forget (shown to the attacker), {forget_heldout} forget (held out).",
    ),
    worst="At each step the fewest bits per byte over the learning rates are taken, and averaged over seeds. Being a "
    "minimum, it errs towards alarm.",
    band="The band is the 95 % interval over seeds and leaves out the choice of documents. " + _AVERAGED,
    compared="Two models are compared seed by seed. The interval of their difference holds the attacker’s seeds and "
    "the luck of training: where each was trained once, a standard deviation of .03 bits between models trained alike "
    "is assumed. The choice of documents is in no interval.",
    reads="Distillation reads all training rows, those to forget among them: what the teacher says there is what the "
    "student learns. Unlearning reads the training text to forget. The held-out documents are in no training set.",
)

_CHOICE = dataclasses.replace(
    _PROMPTS,
    story="{when} under the most successful attacker the model answers these shares of the questions to "
    "forget, measured on questions it was never shown (a quarter is chance): ",
    caption="of held-out questions right (chance: a quarter)",
    question="Can the knowledge be taught back?",
    curves=(
        PanelText(
            "panel-heldout",
            "Held-out questions",
            "The {heldout} questions to forget that the attacker was never shown.",
            "What comes back above a quarter was never removed.",
            "What comes back above a quarter was never removed.",
            "Lower is safer.",
        ),
        PanelText(
            "panel-shown",
            "Shown questions",
            "Of the {shown} questions that an attacker may be given with their answers. A network learns those in the "
            "end; only the speed tells.",
        ),
        _PROMPTS.curves[2],
    ),
    compute=(
        dataclasses.replace(_PROMPTS.compute[0], heading="Held-out questions under the worst-case attack"),
        _PROMPTS.compute[1],
    ),
    table="Accuracies in per cent before the attack, then on held-out questions under the worst-case attack.",
    terms=_terms(
        "Questions on what the model should keep, and on what it should lose, as shares answered right: of the letters "
        "of the options the likeliest is the answer. A quarter is chance.",
        _PROMPTS.terms["Oracle"],
        (
            "Shown and held-out questions",
            "The questions to forget are split: an attacker may be given {shown} of them with their answers, and never "
            "the others, of which {heldout} are measured.",
        ),
    ),
    evaluated=("Questions", _PROMPTS.evaluated[1]),
)

COPY = {ACCURACY.key: _PROMPTS, CHOICE.key: _CHOICE, BITS_PER_BYTE.key: _TEXT}

CURVES_INTRO = (
    "Each line is one model under the worst-case attack: at every step, the learning rate that brings most back."
)
BAND_LINE = "The shaded band is its 95 % interval."
BARS_LINE = "The bars are 95 % bands."
COMPUTE_INTRO = "Each marker is one model; point at it for its name."
UNDO_LINE = (
    "A thin line joins UNDO models in order of α, the share of the weights that was damaged; another shape of marker "
    "means other settings besides α."
)
HOLLOW_LINE = "A hollow marker is a model that had not regained its retain ability when training stopped."
METHOD = {
    "Retain under attack": "Measured in the same worst-case attacker at the same step, so that forgetting cannot be "
    "mistaken for breaking.",
    "Compute": "FLOPs by cause, as each model’s ledger counts them. What the attacker spends is not part of it.",
}
ORACLE_COMPUTE = (
    "100 % is what training the oracle took, by its whole schedule. A student stops at a goal and an oracle does not, "
    "so the other column divides by what the oracle took until it first had the student’s goal, to within the steps "
    "between two evaluations of it. That is no schedule to train an oracle by: one made as short may end with less."
)
CHOICE_NOTE = (
    "The UNDO model at the top is picked by the number it is judged on; its intervals are widened for the number of "
    "settings it was picked from (Bonferroni)."
)
