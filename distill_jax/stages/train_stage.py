"""What the stages that train the experiment's own model on its packed rows have in common."""

from __future__ import annotations

import dataclasses
from typing import Any

from distill_jax.data.data_config import DataConfig
from distill_jax.stages.context import PARTS, Context
from distill_jax.stages.stage import Stage
from distill_jax.train.settings import Training


@dataclasses.dataclass(frozen=True)
class TrainStage(Stage, Training):
    """A stage that trains a decoder on packed rows."""

    def validate(self, model: Any, data: DataConfig) -> None:
        """Raise ValueError if the data have no answers to train on, or not the set that it reads."""
        del model
        for key, name in self.data_sets().items():
            data.check_set(key, name)
        if self.loss_on == "answer" and data.MEASURE != "exact_match":
            raise ValueError("loss_on = 'answer': text has no answers; choose 'all'")

    def data_sets(self) -> dict[str, str]:
        """Return {setting: name} of the data sets that the settings choose."""
        return {}

    def shared_fields(self) -> dict[str, Any]:
        """Return what the members of one population have in common: of their learning rates the schedule's shape."""
        free = self.per_member_fields() or ()
        shape = {"final_learning_rate": self.final_fraction} if "learning_rate" in free else {}
        return super().shared_fields() | shape

    def periodic_evaluations(self) -> int:
        """Return how often a node is evaluated at most, the end among it."""
        return self.steps // self.evaluate_every + 1

    def estimate_evaluation_flops(self, ctx: Context) -> float:
        """Return the FLOPs of a node's evaluations on all parts."""
        return self.periodic_evaluations() * ctx.evaluation_flops(*PARTS)
