"""What is measured of a model. It belongs to the data: prompts have an answer, items choices, text a likelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import numpy as np
from jax.sharding import Mesh

from distill_jax.data.records import Path
from distill_jax.evals.bits_per_byte import BitsPerByte
from distill_jax.evals.exact_match import ExactMatch
from distill_jax.evals.multiple_choice import MultipleChoice
from distill_jax.evals.scale import Scale
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.types import JsonObject

PARTS = ("retain", "shown", "heldout")  # of what is evaluated


class Measure(Protocol):
    """A measurement on the parts retain, shown and heldout of prepared data. It is made of their directory.

    Attributes:
      scale: how its numbers read.
      counted: what `by_fact` counts, as rows of metrics name it.
    """

    scale: ClassVar[Scale]
    counted: ClassVar[str]

    def __init__(self, data: Path) -> None: ...

    @staticmethod
    def described(manifest: JsonObject) -> JsonObject:
        """Return {"evaluated": items by part, "facts": {"shown", "heldout"} there are} from the data's manifest."""

    def evaluator(
        self, cfg: TransformerConfig, mesh: Mesh, parts: Sequence[str], batch: int, chunk: int
    ) -> Callable[..., np.ndarray]:
        """Build evaluate(params [P, ...], base=None) -> the scores of each member, fp64 [P, n]; n is the measure's.

        It is NaN where a number that decides it is not finite, never an answer that such numbers happen to give.

        Args:
          batch: items at a time, 0 for all; chunk: tokens whose logits exist at a time, 0 for all.
        """

    def series(self, scores: np.ndarray, parts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return {name: fp64 [P]} from an evaluator's [P, n]: a score for each part by its name, and details."""

    def result(self, scores: np.ndarray, parts: Sequence[str]) -> JsonObject:
        """Return {"retain", "forget", "by_group"} of one model from its row [n]; None where a number is not finite."""

    def chance_level(self, parts: Sequence[str]) -> float:
        """Return the score, on the parts, of one that knows nothing of them."""

    def prompts_by_fact(self, parts: Sequence[str], part: str = "heldout") -> list[int]:
        """Return how many prompts ask about each fact of a part, [F], or the bytes of each document; [] if unrecorded.

        Prompts of one fact stand or fall together: errors are reckoned, and learning rates chosen, by fact.
        """

    def by_fact(self, scores: np.ndarray, parts: Sequence[str], part: str = "heldout") -> np.ndarray:
        """Return how many prompts of each fact of a part were answered right, or the bits of each document, [P, F]."""

    def flops(self, cfg: TransformerConfig, parts: Sequence[str]) -> float:
        """Return what evaluating one member costs."""

    def tokens(self, parts: Sequence[str]) -> int:
        """Return how many tokens evaluating one member reads and writes, padding included."""


def all_finite(scores: np.ndarray) -> np.ndarray:
    """Return of an evaluator's [P, n] which members have numbers throughout, bool [P]; the others diverged."""
    return np.isfinite(scores).all(axis=1)


MEASURES: dict[str, type[Measure]] = {
    "exact_match": ExactMatch,
    "bits_per_byte": BitsPerByte,
    "multiple_choice": MultipleChoice,
}
