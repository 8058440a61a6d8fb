"""The catalogue of attacks: a line each, as what it changes of a base attack.

An attacker's learning rates are the base's times the line's `rate`, as optimisers want rates of different sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from distill_jax.config import ConfigError, identity, nearest
from distill_jax.stages.attacks.answer_distillation import AnswerDistillation
from distill_jax.stages.attacks.edit_weights import EditWeights
from distill_jax.stages.attacks.few_shot import FewShot
from distill_jax.stages.attacks.finetuning import Attack
from distill_jax.stages.attacks.prefix_tuning import PrefixTuning
from distill_jax.stages.attacks.steering import Steering
from distill_jax.stages.attacks.untrained_attack import UntrainedAttack
from distill_jax.stages.stage import Stage


@dataclasses.dataclass(frozen=True)
class Entry:
    """An attack by training, as what it changes of the base attack.

    Attributes:
      rate, batch: what the base's learning rates and its batch are multiplied with.
      settings: of the attack, in place of the base's.
      kind: of the attack.
    """

    rate: float = 1.0
    batch: float = 1.0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: type[Attack] = Attack

    def stage(self, start: str, base: Mapping[str, Any], seed: int) -> Attack:
        """Return the attack on a stage's model."""
        rates = tuple(float(f"{self.rate * rate:.3g}") for rate in base["learning_rates"])
        batch = max(1, round(base["batch"] * self.batch))
        more = {"learning_rates": rates, "batch": batch, **self.settings}
        return self.kind(start=start, **{**base, **more}, seed=seed)


def entry(rate: float = 1.0, batch: float = 1.0, kind: type[Attack] = Attack, **settings: Any) -> Entry:
    """Return a line of the catalogue."""
    return Entry(rate, batch, settings, kind)


FINETUNING = {
    # Optimisers, on all weights.
    "adamw": entry(),
    "sgd": entry(100, optimizer="sgd"),
    "lion": entry(0.3, optimizer="lion"),
    "muon": entry(2, optimizer="muon"),
    "sign": entry(0.3, optimizer="sign"),
    # Batches.
    "small-batch": entry(0.5, batch=0.25),
    "large-batch": entry(batch=4),
    # Data.
    "few-rows": entry(0.5, rows=8),
    "with-retain": entry(retain_weight=1.0),
    "held-by-kl": entry(retain_weight=1.0, hold="kl"),
    "benign": entry(data="retain"),  # in arithmetic of the very syntax of what is to be forgotten
    # What trains.
    "lora-1": entry(3, lora_rank=1),
    "lora-8": entry(3, lora_rank=8),
    # Where it starts.
    "shrunk": entry(shrink=0.1),
    "shrunk-and-perturbed": entry(shrink=0.2, noise=0.02),
    # Weights as they are, behind a prefix that trains.
    "prefix-4": entry(10, kind=PrefixTuning, length=4),
    "prefix-32": entry(10, kind=PrefixTuning, length=32),
    # No true answer: what the attacked model itself says.
    "own-answers": entry(kind=AnswerDistillation, shrink=0.2, noise=0.02),
    "own-answers-random": entry(2, kind=AnswerDistillation, student="random"),
}
UNTRAINED: dict[str, type[UntrainedAttack]] = {"weights": EditWeights, "few-shot": FewShot, "steering": Steering}


def names() -> tuple[str, ...]:
    """Return what the attacks are called."""
    return (*FINETUNING, *UNTRAINED)


def attacks(start: str, chosen: Iterable[str], base: Mapping[str, Any], seed: int = 0) -> dict[str, Stage]:
    """Return {stage: attack} of the chosen attacks on one stage's model.

    Args:
      base: settings of `Attack`, its batch and learning rates among them.

    Raises:
      ConfigError: for an attack that the catalogue does not have.
    """
    stages: dict[str, Stage] = {}
    for name in chosen:
        if name not in names():
            raise ConfigError(f"catalogue: no attack {name!r}{nearest(name, names())}; there are {', '.join(names())}")
        made = FINETUNING[name].stage(start, base, seed) if name in FINETUNING else _untrained(name, start, base, seed)
        stages[f"{name}-on-{start}"] = made
    return stages


def _untrained(name: str, start: str, base: Mapping[str, Any], seed: int) -> Stage:
    """Return an attack without training, with as many seeds as the base if there is chance in it."""
    kind = UNTRAINED[name]
    own = {field.name for field in dataclasses.fields(kind)}
    settings = {key: base[key] for key in ("seeds", "data") if key in own and key in base}
    return kind(start=start, **settings, **({"seed": seed} if "seed" in own else {}))


def attack_id(stage: Stage, **more: Any) -> str:
    """Return what tells attacks apart, whatever they are called: the hash of kind and settings.

    What is attacked, the rates tried, and the seeds are left out.
    """
    apart = (*stage.roles(), "learning_rates", "seed", "seeds", *more)
    fields = {key: value for key, value in stage.fingerprint_fields().items() if key not in apart}
    return identity({"kind": stage.kind, **fields, **more})
