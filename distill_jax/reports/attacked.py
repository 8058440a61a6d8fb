"""The attacked models of one run, and the premises that comparisons among them share."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from distill_jax.evals.scale import Scale
from distill_jax.experiment.roles import Role
from distill_jax.reports import premises
from distill_jax.reports.premises import Model, finite, kept, suppressed
from distill_jax.statistics.conclusions import Premise
from distill_jax.statistics.estimates import Scores


class Run:
    """The attacked models of one run, by name, and the scale they are measured on.

    Attributes:
      reference: the model that everything began with; it need not be attacked.
      oracle: the model that never saw what is to be forgotten; None without one.
      chance: of one that knows nothing, the scores of each held-out document; None where they are not recorded.
    """

    def __init__(self, models: Sequence[Model], scale: Scale, chance: Scores | None = None):
        self.models, self.scale, self.chance = [m for m in models if m.after is not None], scale, chance
        self.named: Mapping[str, Model] = {m.name: m for m in self.models}
        undo = (m for m in self.models if m.role in (Role.UNDO, Role.UNDAMAGED))
        self.undo = sorted(undo, key=lambda m: m.alpha or 0.0)
        self.reference = next((m for m in models if m.role is Role.REFERENCE), None)
        self.oracle = self.first(Role.ORACLE)

    def get(self, name: str) -> Model | None:
        """Return an attacked model, None if the run has none of this name."""
        return self.named.get(name)

    def first(self, role: Role, method: str | None = None) -> Model | None:
        """Return the first attacked model of a role, and if one is named of an unlearning method."""
        of_role = (m for m in self.models if m.role is role and method in (None, m.method))
        return next(of_role, None)

    @functools.cached_property
    def attack_works(self) -> Premise:
        """Return whether the run's attack brings anything back."""
        return premises.works(self.models, self.scale)

    def shared(self, teacher: Model, reference: Model, students: Sequence[Model]) -> list[Premise]:
        """Return the premises of every comparison of a suppressed teacher's students."""
        oracle, scale = self.oracle, self.scale
        return [
            finite([reference, teacher, *students]),
            premises.able(reference, oracle, scale),
            suppressed(teacher, reference, oracle, scale),
            *(kept(model, reference, scale) for model in dict.fromkeys((teacher, *students))),
            self.attack_works,
        ]

    def ignorant(self, oracle: Model, reference: Model) -> list[Premise]:
        """Return the premises of every comparison with the oracle."""
        known = [] if self.scale.chance_level is None else [suppressed(oracle, reference, oracle, self.scale)]
        return [finite([oracle]), kept(oracle, reference, self.scale), *known]


def ends(run: Run, *models: Model) -> str:
    """Return what came back of some models, and after how many steps, as sentences."""
    attacked = [(m, m.after) for m in models if m.after]
    if not any(m.worst_step for m in models):
        scores = ", ".join(f"{m.label} {after.value:.2f}" for m, after in attacked)
        return f"Held-out {run.scale.item}s after {models[0].attack_steps} attack steps: {scores}."
    scores = ", ".join(f"{m.label} {after.value:.2f} {m.when}" for m, after in attacked)
    steps = premises.at_once(premises.steps_of([(1.0, after) for _, after in attacked]))
    return f"Held-out {run.scale.item}s at the step at which most came back: {scores}. {steps}".rstrip()
