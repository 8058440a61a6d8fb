"""From multiple-choice items to what a model reads: for each, the tokens before its options' last ones.

The log-likelihood of an option is that of its tokens after the item's context, as lm-evaluation-harness has it: context
and option are tokenised together, and what is longer than the context's own tokens is the option's. Options that differ
in their last token alone, which letters mostly do, are read at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from distill_jax.config import check
from distill_jax.data.multiple_choice.items import LETTERS, Item


class Encoder(Protocol):
    """Text to ids."""

    def encode(self, text: str) -> list[int]:
        """Turn text into ids, behind whatever its model begins every text with."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One reading of an item.

    Attributes:
      item: its number; choices: the numbers of the options that this reading is of.
      tokens: the context, and all of the options but their last token.
      own: how many of `tokens` are the options'.
      last: the options' last tokens.
      cut: tokens left out where the context begins, for the model may not read as many.
    """

    item: int
    choices: tuple[int, ...]
    tokens: tuple[int, ...]
    own: int
    last: tuple[int, ...]
    cut: int


def pair(encoder: Encoder, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a context and those that continue it; spaces that end the context begin what follows."""
    bare = context.rstrip()
    both, before = encoder.encode(context + continuation), encoder.encode(bare)
    return before, both[len(before) :]


def questions(
    items: Sequence[Item], contexts: Sequence[str], encoder: Encoder, longest: int = 0, lead: str = " "
) -> list[Question]:
    """Return the readings of all items, one or a few each.

    Args:
      contexts: of each item.
      longest: tokens that the model may read; of a longer context the beginning is left out. 0: any number.
      lead: what stands between a context and the answer's letter.

    Raises:
      ConfigError: if an option has no token of its own.
    """
    out = []
    for number, (item, context) in enumerate(zip(items, contexts, strict=True)):
        by_prefix: dict[tuple[tuple[int, ...], int], list[tuple[int, int]]] = {}
        for choice, letter in enumerate(LETTERS[: len(item.choices)]):
            before, after = pair(encoder, context, f"{lead}{letter}")
            fix_hint = "the tokenizer joins it with what stands before; score with another"
            check(len(after) > 0, f"item {number}: the answer {letter!r} has no token of its own: {fix_hint}")
            by_prefix.setdefault((tuple(before + after)[:-1], len(after) - 1), []).append((choice, after[-1]))
        for (tokens, own), options in by_prefix.items():
            choices, last = zip(*options, strict=True)
            cut = max(0, len(tokens) - longest) if longest else 0
            out.append(Question(number, choices, tokens[cut:], own, last, cut))
    return out
