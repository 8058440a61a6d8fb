"""What data to forget have in common, be they documents or questions: all of both sides is read, and once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

from distill_jax.config import check
from distill_jax.data.text.text_config import TextConfig

HALF_WIDTHS = (0.1, 0.2)  # of an interval, for which it is said how many facts are needed
DEVIATIONS = (0.3, 0.5)  # the same of documents, in standard deviations between them
Z = 1.96


@dataclasses.dataclass(frozen=True)
class ForgetConfig(TextConfig):
    """Settings of what a model is to forget and to retain.

    Attributes:
      validation_share: of what is to be retained, and of documents to forget, that is held out.
      overlap: "refuse" or "allow" what is both to be forgotten and to be retained.
      least_heldout: facts, or documents to forget, that must be held out at least.
    """

    validation_share: float = 0.2
    row_length: int = 128
    overlap: str = "refuse"
    least_heldout: int = 8

    RETAIN_BY_ITEM: ClassVar[bool] = True
    SCORES: ClassVar[str] = "bits per byte of text, where fewer are more knowledge"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.overlap in ("refuse", "allow"), f"data.overlap={self.overlap!r}: choose 'refuse' or 'allow'")
        check(self.least_heldout >= 1, f"data.least_heldout={self.least_heldout}: must be at least 1")

    def what_is_read(self) -> str:
        """Return how much there is to forget, to hold out and to retain, and what scores are of it, in lines."""
        return "\n".join([*self.counted(), f"scores (retain, forget, shown, heldout): {self.SCORES}"])

    def counted(self) -> list[str]:
        """Return how much there is on each side, a line each; none where that is not counted beforehand."""
        return []

    def side_shares(self, tokens: Mapping[str, int]) -> dict[str, float]:
        """Return each side's share of the set `all`: what it has, so that little to forget leaves all to retain."""
        total = max(sum(tokens.values()), 1)
        return {side: count / total for side, count in tokens.items()}

    def check_heldout(self, count: int, unit: str, share: float) -> None:
        """Refuse a forget set of so many facts, items or documents, a share of which is held out, as too small.

        Raises:
          ConfigError: saying how many are needed for which interval.
        """
        check(count > 0, f"data.forget={self.forget!r}: is empty; name files that hold what is to be forgotten")
        held = round(share * count)
        if unit == "documents":  # of bits there is no share: an interval goes with how far documents differ
            width = f"95 % intervals of ±{Z / math.sqrt(max(held, 1)):.1f} of what documents differ by"
            wanted = ", ".join(f"±{h:g} {math.ceil((Z / h) ** 2 / share):,}" for h in DEVIATIONS)
        else:
            width = f"95 % intervals of ±{half_width(max(held, 1)):.0%}"
            wanted = ", ".join(f"±{h:.0%} {math.ceil(needed(h) / share):,}" for h in HALF_WIDTHS)
        have = f"has {count:,} {unit}, of which {held:,} would be held out: {width}"
        mend = f"for {wanted} are needed; give more, or lower --config.data.least_heldout={self.least_heldout}"
        check(self.least_heldout <= held < count, f"data.forget={self.forget!r} {have}; {mend}")


def half_width(count: int) -> float:
    """Return how far Wilson's interval of half of so many reaches to either side."""
    return Z * math.sqrt(0.25 / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)


def needed(width: float) -> int:
    """Return how many items it takes until Wilson's interval of half of them reaches no further to either side."""
    return math.ceil(Z**2 * (0.25 / width**2 - 1))
