"""The settings that every training stage shares."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any, Self

import optax

from distill_jax.config import added


@dataclasses.dataclass(frozen=True)
class Training:
    """Settings of a training loop: steps, batch size, learning-rate schedule.

    Attributes:
      steps: optimiser steps at most.
      batch: packed rows in one global batch.
      microbatches: pieces the batch is accumulated over; the result is the same whatever their number.
      learning_rate: peak.
      final_learning_rate: end of the cosine; equal to the peak for a constant rate.
      warmup: steps of linear warm-up from 0.
      weight_decay, clip_norm, beta1, beta2, epsilon: AdamW's; clip_norm 0 does not clip.
      lora_rank: r of the adapters that train in place of the weights, beside every matrix of the layers; 0 trains the
        weights themselves. The stage's model is then its `start` with the adapters merged in.
      lora_alpha: the adapters' product is multiplied with lora_alpha / lora_rank.
      weights: what trains, its moments and its updates are kept in "float32"; or in "bfloat16", where a step below half
        of a weight's last bit is lost. That is how the paper relearned and how it ran WMDP; for nothing else.
      loss_on: "all" tokens of a document, or only the "answer".
      evaluate_every, checkpoint_every, log_every: in steps.
      seed: of the data order and of fresh weights.
    """

    steps: int = 1000
    batch: int = 32
    microbatches: int = 1
    learning_rate: float = 4e-4
    final_learning_rate: float = 4e-4
    warmup: int = 50
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    lora_rank: int = 0
    lora_alpha: float = 16.0
    weights: str = added("float32")
    loss_on: str = "all"
    evaluate_every: int = 100
    checkpoint_every: int = 100
    log_every: int = 10
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch", "microbatches", "evaluate_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("learning_rate", "final_learning_rate", "warmup", "weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must not be negative")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank = {self.lora_rank}: must not be negative; 0 trains the weights themselves")
        if not 0 < self.lora_alpha < math.inf:
            raise ValueError(f"lora_alpha = {self.lora_alpha}: must be positive and finite, or adapters do nothing")
        if not self.lora_rank and self.lora_alpha != Training.lora_alpha:
            raise ValueError(
                f"lora_alpha = {self.lora_alpha}: does nothing without lora_rank; leave it at {Training.lora_alpha}"
            )
        if self.batch % self.microbatches:
            raise ValueError(
                f"batch = {self.batch} does not divide into microbatches = {self.microbatches}; "
                f"choose a batch that is a multiple, such as {-(-self.batch // self.microbatches) * self.microbatches}"
            )
        if self.weights not in ("float32", "bfloat16"):
            raise ValueError(f"weights = {self.weights!r}: choose 'float32' or 'bfloat16'")
        if self.loss_on not in ("all", "answer"):
            raise ValueError(f"loss_on = {self.loss_on!r}: choose 'all' or 'answer'")

    @property
    def final_fraction(self) -> float:
        """The learning rate at the end of the schedule, as a fraction of its peak."""
        return self.final_learning_rate / self.learning_rate if self.learning_rate else 1.0

    def alike(self, free: Collection[str]) -> Self:
        """Return the settings with all that members may differ in set to one value: equal ones train together.

        Members have their own peak learning rate, and the schedule's shape in common.
        """
        common: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(self) if f.name in free}
        if "learning_rate" in free:
            common |= {"learning_rate": 1.0, "final_learning_rate": self.final_fraction}
        return dataclasses.replace(self, **common)

    def schedule(self) -> optax.Schedule:
        """Return the learning rate as a fraction of its peak: linear warm-up, then a cosine that stays at its end."""
        decay = optax.cosine_decay_schedule(1.0, max(self.steps - self.warmup, 1), alpha=self.final_fraction)
        if not self.warmup:
            return decay
        # The first step already moves: (step + 1) / warmup, not step / warmup.
        ramp = optax.linear_schedule(1.0 / self.warmup, 1.0, max(self.warmup - 1, 1))
        return optax.join_schedules([ramp, decay], [self.warmup])

    def optimizer(self) -> optax.GradientTransformation:
        """Return AdamW without its learning rate, which belongs to the member."""
        clip = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        adam = optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)
        return optax.chain(*clip, adam, optax.add_decayed_weights(self.weight_decay))


def of_training(settings: Training) -> Training:
    """Return what of a stage's settings its step depends on, so that all that only train share one compilation."""
    return Training(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Training)})
