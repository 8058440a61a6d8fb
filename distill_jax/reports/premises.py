"""What must be true before a conclusion on robustness means anything, each shown by numbers or not shown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Self

from distill_jax.evals.scale import Scale
from distill_jax.experiment.roles import Role
from distill_jax.reports.summary_types import ModelSummary
from distill_jax.statistics.conclusions import Effect, Premise
from distill_jax.statistics.estimates import Scores, contrast, proportion
from distill_jax.statistics.robustness import Attack

RETAIN = 0.1  # as a scale's tolerance: how much less of what is to be retained a model may keep than the reference
# What compute may be a share of.
CONVENTIONS = {"schedule": "its whole schedule", "first_passage": "its own way to the students' goal"}


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What conclusions need of a model.

    Attributes:
      retain, forget: scores before any attack; asked: forget facts behind `forget`, 0 if they are not to be counted.
      recovered: whether a student reached its goal; None for what has none.
      role: what it is in a comparison; method: the unlearning method that it goes back to.
      teacher, alpha: of a distilled model.
      steps: that training took.
      compute: as a share of the oracle's, by convention: "schedule", its whole schedule; "first_passage", its own way
        to the student's goal. None where it is not known.
      before, after: held-out scores at the attack's first and last evaluation; None without an attack. After
        `at_worst` the latter are of the step at which most came back.
      by_step: held-out scores at each evaluation of the attack but the first, which is before it.
      kept: scores before the attack on what is to be retained, by fact or document; None where they are not recorded.
      shown: scores on what the attacker trains on, at the first and the last evaluation; `at_worst`, the most of any.
      shown_by_step: the same at each evaluation but the first.
      by_weights: `after` of the same attack by the weights it keeps; of `at_worst` each at its own worst step.
      steps_by_weights: the same at each evaluation but the first.
      unlocked: held-out scores before the attack, asked behind a password; None where that was not asked.
      attack_steps: how many steps the attack has; worst_step: after which of them most came back, 0 if that is not
        asked.
    """

    name: str
    label: str
    retain: float
    forget: float
    asked: int = 0
    recovered: bool | None = None
    diverged: bool = False
    unlearned: bool = False
    role: Role = Role.OTHER
    method: str | None = None
    teacher: str = ""
    alpha: float | None = None
    steps: int = 0
    compute: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    before: Scores | None = None
    after: Scores | None = None
    by_step: Mapping[int, Scores] = dataclasses.field(default_factory=dict)
    kept: Scores | None = None
    shown: tuple[float, float] = (math.nan, math.nan)
    shown_by_step: Mapping[int, float] = dataclasses.field(default_factory=dict)
    by_weights: Mapping[str, Scores] = dataclasses.field(default_factory=dict)
    steps_by_weights: Mapping[str, Mapping[int, Scores]] = dataclasses.field(default_factory=dict)
    unlocked: Scores | None = None
    attack_steps: int = 0
    worst_step: int = 0

    @classmethod
    def of(cls, summary: ModelSummary, attacks: Mapping[str, Attack], asked: int, kept: Scores | None = None) -> Self:
        """Return a summary's model with the scores of its attacks, which are keyed by the weights they keep."""
        first = next(iter(attacks.values()), None)
        model = cls(
            name=summary["name"],
            label=summary["label"],
            asked=asked,
            retain=math.nan if summary["retain"] is None else summary["retain"],
            forget=math.nan if summary["forget"] is None else summary["forget"],
            role=Role(summary["role"]),
            method=summary["method"],
            recovered=summary["recovered"],
            diverged=summary["diverged"],
            unlearned=summary["stage"] == "unlearn",
            teacher=summary["settings"].get("teacher", ""),
            alpha=summary["settings"].get("alpha"),
            steps=summary["steps"],
            compute={"schedule": summary["compute_vs_oracle"], "first_passage": summary["compute_vs_first_passage"]},
            kept=kept,
        )
        if first is None:
            return model
        return dataclasses.replace(
            model,
            before=first.scores(0),
            after=first.scores(-1),
            by_step=_after_each_step(first),
            shown=(float(first.shown[:, 0].mean()), float(first.shown[:, -1].mean())),
            shown_by_step={step: float(first.shown[:, i].mean()) for i, step in enumerate(first.steps) if i},
            by_weights={kind: attack.scores(-1) for kind, attack in attacks.items()},
            steps_by_weights={kind: _after_each_step(attack) for kind, attack in attacks.items()},
            attack_steps=first.steps[-1],
        )

    def at_worst(self, scale: Scale) -> Self:
        """Return the model with, for `after`, the scores of the step at which most came back: attackers stop there.

        That step is chosen by these scores, so their intervals hold for all steps at once (Bonferroni, in `effect`).
        """
        if self.after is None:
            return self
        step, after = _worst(self.by_step or {self.attack_steps: self.after}, scale)
        by_weights = {kind: _worst(by_step, scale)[1] for kind, by_step in self.steps_by_weights.items() if by_step}
        shown = [score for score in (self.shown[1], *self.shown_by_step.values()) if math.isfinite(score)]
        most = max(shown, key=scale.ability, default=math.nan)
        by_weights = {**self.by_weights, **by_weights}
        return dataclasses.replace(
            self, after=after, worst_step=step, by_weights=by_weights, shown=(self.shown[0], most)
        )

    @property
    def when(self) -> str:
        """Return after how many steps of the attack `after` was measured, in words."""
        return f"after {self.worst_step or self.attack_steps} of {self.attack_steps} steps"

    @property
    def failed(self) -> bool:
        """Return whether it diverged, or any score of it is not a number."""
        attacked = [score for score in (self.before, self.after, *self.by_step.values()) if score is not None]
        scores = [self.retain, self.forget, *(score.value for score in attacked)]
        return self.diverged or not all(map(math.isfinite, scores))


def _after_each_step(attack: Attack) -> dict[int, Scores]:
    """Return the held-out scores of an attack at each evaluation but the first, which is before it."""
    return {step: attack.scores(i) for i, step in enumerate(attack.steps) if i}


def _worst(by_step: Mapping[int, Scores], scale: Scale) -> tuple[int, Scores]:
    """Return the step at which most came back and its scores, which know among how many it was chosen."""
    known = [step for step in by_step if math.isfinite(by_step[step].value)] or list(by_step)
    step = max(known, key=lambda step: scale.ability(by_step[step].value))
    return step, dataclasses.replace(by_step[step], steps=len(by_step))


def difference(
    first: Model, second: Model, scale: Scale, *, more_than: float | None = None, at_most: float | None = None,
    choices: int = 1, at: Literal["before", "after"] = "after",
) -> Effect:  # fmt: skip
    """Return how much more of the held-out facts the first gives back than the second, as an effect.

    Args:
      more_than: the claim is that it gives back more, by this; at_most: that it gives back no more than this.
      choices: among how many models the compared one was picked by this number (Bonferroni).
      at: "before" or "after" the attack.
    """
    scores = [model.before if at == "before" else model.after for model in (first, second)]
    terms = [(weight, score) for weight, score in zip((1.0, -1.0), scores, strict=True) if score is not None]
    sense = "above" if more_than is not None else "below"
    threshold = more_than if more_than is not None else at_most
    return effect(f"{first.label} − {second.label}", terms, scale, sense, threshold or 0.0, choices, scale.run_sd)


def effect(
    name: str, terms: Sequence[tuple[float, Scores]], scale: Scale, sense: str, threshold: float = 0.0,
    choices: int = 1, run_sd: float = 0.0,
) -> Effect:  # fmt: skip
    """Return a weighted sum of scores as an effect; "above" and "below" are of ability, whichever way scores count.

    Scores of the worst of several steps count at their level for all of these at once.
    """
    estimate = contrast(terms, run_sd=run_sd)
    least, most = _reach(terms, scale)
    ends = estimate.interval(1 - 0.05 / (choices * steps_of(terms)))
    low, high = (min(max(end, least), most) for end in ends)  # NaN, which no comparison is true of, stays
    claim = sense if scale.sign > 0 else {"above": "below", "below": "above"}[sense]
    return Effect(name, estimate.value, low, high, claim, scale.sign * threshold, estimate.n)  # type: ignore[arg-type]


def _reach(terms: Sequence[tuple[float, Scores]], scale: Scale) -> tuple[float, float]:
    """Return the least and the most that a weighted sum of scores can be; infinite where scores have no bound."""
    ends = [sorted(weight * bound for bound in scale.bounds) for weight, _ in terms if weight]
    return sum(low for low, _ in ends), sum(high for _, high in ends)


def steps_of(terms: Sequence[tuple[float, Scores]]) -> int:
    """Return among how many steps of an attack the worst was chosen by these scores; 1 if none was."""
    return max((scores.steps for _, scores in terms), default=1)


def at_once(steps: int) -> str:
    """Return, as a sentence, what an interval holds whose scores are the worst of so many steps; "" of one."""
    return f"The interval is for all {steps} measured steps at once (Bonferroni)." if steps > 1 else ""


def able(reference: Model, oracle: Model | None, scale: Scale) -> Premise:
    """The reference has the ability: clearly above one that knows nothing."""
    chance = _chance_level(oracle, scale)
    end = _end(reference, "least", scale)
    shown = scale.ability(end) > scale.ability(chance) + 2 * scale.margin
    evidence = f"forget {scale.name} {reference.forget:.2f}, at least {end:.2f}; nothing known: {chance:.2f}"
    remedy = f"give {scale.item}s that it knows, or more of them"
    return Premise("the reference has the ability", shown and not reference.failed, evidence, remedy)


def suppressed(model: Model, reference: Model, oracle: Model | None, scale: Scale) -> Premise:
    """The model hides it before the attack: it shows clearly less than half of what the reference has."""
    chance = _chance_level(oracle, scale)
    if math.isnan(chance):  # no number for chance: only a distance from the reference can be asked for
        bar = reference.forget - scale.sign * 2 * scale.margin
    else:
        bar = chance + 0.5 * (reference.forget - chance)
    end = _end(model, "most", scale)
    evidence = f"{model.label}: forget {scale.name} {model.forget:.2f}, perhaps {end:.2f}; wanted worse than {bar:.2f}"
    hides = scale.ability(end) < scale.ability(bar)
    remedy = f"suppress for more steps or at a higher rate, or measure by more {scale.item}s"
    return Premise(f"{model.label} hides it before the attack", hides, evidence, remedy)


def kept(model: Model, reference: Model, scale: Scale) -> Premise:
    """The model has what is to be retained: nearly as much as the reference, and more than nothing."""
    goal = retain_goal(reference, scale)
    shown = model.recovered is not False and scale.sign * (model.retain - goal) >= 0
    evidence = f"retain {scale.name} {model.retain:.2f}, wanted {goal:.2f}"
    evidence += ", stopped short of its goal" if model.recovered is False else ""
    if model.role in (Role.SUPPRESSED, Role.GIVEN):
        remedy = "suppress more gently: fewer steps, a lower rate, or more that is to be retained"
    else:
        remedy = "distil for more steps or on more text, or damage less"
    return Premise(f"{model.label} has the retain ability", shown, evidence, remedy)


def retain_goal(reference: Model, scale: Scale) -> float:
    """Return the retain score from which on a model has what is to be retained."""
    goal = scale.goal(reference.retain, RETAIN)
    if scale.chance_level is not None and not scale.relative:  # of likelihoods it is that of the text to forget alone
        goal = max(goal, scale.chance_level + 2 * scale.margin)
    return goal


def works(models: Iterable[Model], scale: Scale) -> Premise:
    """The attack works: it brings back what some model hides (a suppressed one, or one made from the reference)."""
    hiding = [m for m in models if m.before is not None and (m.unlearned or m.role in POSITIVE_CONTROLS)]
    rises = [
        effect(m.label, [(1.0, m.after), (-1.0, m.before)], scale, "above", scale.margin, len(hiding))  # type: ignore[list-item]
        for m in hiding
    ]
    able = {rise: scale.ability(rise.estimate) for rise in rises if math.isfinite(rise.estimate)}
    best = max(able, key=lambda rise: able[rise], default=None)
    evidence = "no suppressed model was attacked" if best is None else f"rise of held-out {scale.name}: {best}"
    evidence += next((f", {m.when}" for m in hiding if m.worst_step and best and m.label == best.name), "")
    brings = any(rise.state == "held" for rise in rises)
    return Premise("the attack brings back what a model hides", brings, evidence, STRONGER_ATTACK)


STRONGER_ATTACK = "attack for more steps or at other rates, or measure by more that is held out"
POSITIVE_CONTROLS = (Role.MATCHED_REFERENCE, Role.UNDAMAGED, Role.LOCKED)


def teaches(model: Model, scale: Scale) -> Premise:
    """The attack teaches what it shows."""
    before, after = model.shown
    shown = scale.ability(after) > scale.ability(before) + 2 * scale.margin
    evidence = f"shown {scale.item}s {before:.2f} before, {after:.2f} {'at most' if model.worst_step else 'after'}"
    return Premise("the attack teaches what it shows", shown, evidence, STRONGER_ATTACK)


def finite(models: Iterable[Model]) -> Premise:
    """Nobody compared diverged."""
    failed = [model.label for model in models if model.failed]
    remedy = "train what diverged at a lower rate"
    return Premise("nobody diverged", not failed, ", ".join(failed) or "all scores are finite", remedy)


def _chance_level(oracle: Model | None, scale: Scale) -> float:
    """Return the score of one that knows nothing: the scale's, else the oracle's."""
    return scale.chance_level if scale.chance_level is not None else oracle.forget if oracle else math.nan


def _end(model: Model, which: str, scale: Scale) -> float:
    """Return the least or most ability that a model's forget score may mean; the score where it is no share."""
    if not model.asked:
        return model.forget
    low, high = proportion(model.forget, model.asked).share_interval()
    return low if (which == "least") == (scale.sign > 0) else high
