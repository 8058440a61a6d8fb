"""GradAscent: ascend the forget data's cross-entropy, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distill_jax.stages.methods.graddiff import GradDiff


@dataclasses.dataclass(frozen=True)
class GradAscent(GradDiff):
    """Ascend the cross-entropy on forget data, without a retain term (Jang et al., arXiv:2210.01504).

    It is unbounded: it is stopped by its steps alone, before it breaks the model.
    """

    name: ClassVar[str] = "gradascent"
    label: ClassVar[str] = "GradAscent"
    in_words: ClassVar[str] = "makes what is to be forgotten less likely, without bound"
    parts: ClassVar[tuple[str, ...]] = ("forget",)

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Return the names of the settings that it reads."""
        return ("loss_on",)
