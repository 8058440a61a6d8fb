"""The settings of training, in parts: how long and on how much, how weights are updated, what trains.

Each part is a frozen dataclass that checks its own fields. A stage derives from the parts that it has, so that its
settings lie flat, as the command line, config.json and identities know them; a part that it lacks it cannot be given.
"""

from __future__ import annotations

import dataclasses
import math

import optax

from distill_jax.config import SettingError, Settings, added, check_setting
from distill_jax.train.optimizers import OPTIMIZERS


@dataclasses.dataclass(frozen=True)
class LoopSettings(Settings):
    """Settings of a training loop.

    Attributes:
      steps: optimiser steps at most.
      batch: rows in one global batch.
      evaluate_every, checkpoint_every, log_every: in steps.
    """

    steps: int = 1000
    batch: int = 32
    evaluate_every: int = 100
    checkpoint_every: int = 100
    log_every: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch", "evaluate_every", "checkpoint_every", "log_every"):
            check_setting(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")


@dataclasses.dataclass(frozen=True)
class Optimizer(Settings):
    """Settings of the optimiser and of its learning rate.

    Attributes:
      learning_rate: peak.
      final_learning_rate: end of the cosine; equal to the peak for a constant rate.
      warmup: steps of linear warm-up from 0.
      weight_decay, beta1, beta2, epsilon: AdamW's; of others the decay and the momenta.
      clip_norm: of all gradients together; 0 does not clip.
      optimizer: a key of `OPTIMIZERS`: "adamw", "sgd" (with momentum), "lion", "muon" or "sign".
    """

    learning_rate: float = 4e-4
    final_learning_rate: float = 4e-4
    warmup: int = 50
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    optimizer: str = added("adamw")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rate", "final_learning_rate", "warmup", "weight_decay", "clip_norm", "epsilon"):
            check_setting(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        for name in ("beta1", "beta2"):
            check_setting(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be at least 0 and below 1")
        known = f"choose one of {', '.join(OPTIMIZERS)}"
        check_setting(self.optimizer in OPTIMIZERS, "optimizer", self.optimizer, known)

    @property
    def final_fraction(self) -> float:
        """The learning rate at the end of the schedule, as a fraction of its peak."""
        return self.final_learning_rate / self.learning_rate if self.learning_rate else 1.0

    def per_unit_rate(self) -> Optimizer:
        """Return these settings alone at a peak of 1: the peak itself belongs to the member."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(Optimizer)}
        return Optimizer(**own | {"learning_rate": 1.0, "final_learning_rate": self.final_fraction})

    def transform(self) -> optax.GradientTransformation:
        """Return the optimiser without its learning rate."""
        clip = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        return optax.chain(*clip, OPTIMIZERS[self.optimizer](self), optax.add_decayed_weights(self.weight_decay))

    def schedule(self, steps: int) -> optax.Schedule:
        """Return the learning rate as a fraction of its peak: linear warm-up, then a cosine that stays at its end."""
        decay = optax.cosine_decay_schedule(1.0, max(steps - self.warmup, 1), alpha=self.final_fraction)
        if not self.warmup:
            return decay
        # The first step already moves: (step + 1) / warmup, not step / warmup.
        ramp = optax.linear_schedule(1.0 / self.warmup, 1.0, max(self.warmup - 1, 1))
        return optax.join_schedules([ramp, decay], [self.warmup])


@dataclasses.dataclass(frozen=True)
class Training(Optimizer, LoopSettings):
    """Settings of whatever trains.

    Attributes:
      seed: of the data order and of fresh weights.
    """

    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Lora(Settings):
    """Settings of LoRA adapters.

    Attributes:
      lora_rank: r of the adapters that train in place of the weights, beside every matrix of the layers; 0 trains the
        weights themselves. The stage's model is then its `start` with the adapters merged in.
      lora_alpha: the adapters' product is multiplied with lora_alpha / lora_rank.
    """

    lora_rank: int = 0
    lora_alpha: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_rank < 0:
            raise SettingError("lora_rank", self.lora_rank, "must not be negative; 0 trains the weights themselves")
        if not 0 < self.lora_alpha < math.inf:
            raise SettingError("lora_alpha", self.lora_alpha, "must be positive and finite, or adapters do nothing")
        if not self.lora_rank and self.lora_alpha != Lora.lora_alpha:
            raise SettingError(
                "lora_alpha", self.lora_alpha, f"does nothing without lora_rank; leave it at {Lora.lora_alpha}"
            )

    @property
    def scale(self) -> float:
        """What the product of the adapters is multiplied with."""
        return self.lora_alpha / self.lora_rank
