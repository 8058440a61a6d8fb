"""Text corpora: what a plan must know of them. The package has no loader for them yet."""

from __future__ import annotations

import dataclasses
from typing import ClassVar


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Name the corpora of an experiment.

    Attributes:
      retain, forget: what they are, in words.
      row_length: tokens in a packed row.
    """

    retain: str
    forget: str
    row_length: int = 2048

    PLAN_ONLY: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.row_length < 2:
            raise ValueError(f"row_length = {self.row_length}: a row has at least 2 tokens")
