"""Checks of the settings of arithmetic data, each failing with the key, its value and the fix."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from distill_jax.config import check
from distill_jax.io.storage import is_file, location

if TYPE_CHECKING:
    from distill_jax.data.arithmetic.equations import ArithmeticConfig

# Inclusive bounds. The upper ones of operands keep every distinct example enumerable within a second or two; those of
# counts stop a typing error before it fills a disk.
INTEGERS: dict[str, tuple[int, int]] = {
    "addition_max": (1, 1000),
    "multiplication_max": (2, 300),
    "equations": (0, 10**8),
    "word_problems": (0, 10**8),
    "row_length": (1, 10**6),
    "filter_labels": (0, 10**8),
    "evaluation_prompts": (1, 10**6),
    "seed": (0, 2**32 - 1),
}


def require(condition: bool, key: str, value: object, fix_hint: str) -> None:
    """Raise ConfigError in the form `data.<key>=<value>: <fix_hint>` unless the condition holds."""
    check(condition, f"data.{key}={value!r}: {fix_hint}")


LABELLERS = ("naive_bayes", "noisy")
LABEL_SETS = ("filtered", "dropped", "masked")


def check_fields(config: ArithmeticConfig) -> None:
    """Check every field of an ArithmeticConfig on its own."""
    fields = dataclasses.asdict(config)
    for key, (low, high) in INTEGERS.items():
        value = fields[key]
        require(isinstance(value, int) and not isinstance(value, bool), key, value, "must be an integer")
        require(low <= value <= high, key, value, f"must be from {low} to {high}")
    for key in ("equations", "word_problems"):
        value = fields[key]
        require(value == 0 or value >= 4, key, value, "must be 0 or at least 4, one for each operation")
    fix_hint = "with data.word_problems=0 nothing is left to train on; raise one of them"
    require(config.equations + config.word_problems > 0, "equations", 0, fix_hint)
    for key in ("heldout_facts", "english_share"):
        value = fields[key]
        share = isinstance(value, (int, float)) and 0 <= value < 1
        require(share, key, value, "must be a share, at least 0 and below 1")
    _check_labels(config)
    fix_hint = "must be a list of paths, in brackets even if it is only one"
    require(isinstance(config.english, tuple), "english", config.english, fix_hint)


def _check_labels(config: ArithmeticConfig) -> None:
    for key in ("false_positive_rate", "false_negative_rate"):
        value = getattr(config, key)
        require(isinstance(value, (int, float)) and 0 <= value <= 1, key, value, "must be a share, from 0 to 1")
        fix_hint = 'only the labeller "noisy" errs at a rate; choose it, or leave 0'
        require(not value or config.labeller == "noisy", key, value, fix_hint)
    fix_hint = f"choose one of {', '.join(LABELLERS)}"
    require(config.labeller in LABELLERS, "labeller", config.labeller, fix_hint)
    fix_hint = 'the labeller "noisy" learns from none; leave it at 0'
    require(config.labeller != "noisy" or not config.filter_labels, "filter_labels", config.filter_labels, fix_hint)
    sets = config.label_sets
    known = isinstance(sets, tuple) and bool(sets) and set(sets) <= set(LABEL_SETS) and len(set(sets)) == len(sets)
    require(known, "label_sets", sets, f"must be a list of {', '.join(LABEL_SETS)}, each once")
    fix_hint = "there is no labeller to make them; set data.filter_labels, or data.labeller = 'noisy'"
    require(sets == ("filtered",) or config.has_labels, "label_sets", sets, fix_hint)


def check_files(config: ArithmeticConfig) -> None:
    """Check that the files which an ArithmeticConfig needs are named and exist; without them it can be planned."""
    fix_hint = "needs English text; set data.english to UTF-8 files with one paragraph a line"
    require(not config.english_share or bool(config.english), "english_share", config.english_share, fix_hint)
    fix_hint = "no such file; give the path of a UTF-8 text file, one paragraph a line"
    for path in config.english:
        require(is_file(location(path)), "english", path, fix_hint)
    fix_hint = 'no such file; give "words" for the shipped vocabulary or the path of a SentencePiece model'
    require(
        config.vocabulary == "words" or is_file(location(config.vocabulary)), "vocabulary", config.vocabulary, fix_hint
    )
