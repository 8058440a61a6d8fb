"""How often a labeller errs on the data that its labels divide: as measured there, and before as it is set to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from distill_jax.data.data_config import DataConfig

RATES = ("false_positive_rate", "false_negative_rate")
OF_TOKENS = "masked"  # the set whose labels are of tokens; of all others they are of documents
Errors = dict[str, dict[str, float]]


def label_errors(manifest: Mapping[str, Any]) -> Errors:
    """Return {set: its labels' error rates, as preparation counted them} of the sets that a labeller made."""
    sets = manifest.get("sets", {}).items()
    return {name: {rate: about[rate] for rate in RATES} for name, about in sets if set(RATES) <= set(about)}


def described_errors(errors: Errors) -> list[str]:
    """Return a sentence for each rate of errors, on the sets that have it."""
    by_words: dict[str, list[str]] = {}
    for name, rates in errors.items():
        lost, passed = (f"{100 * rates[rate]:.3g} %" for rate in RATES)
        unit = "tokens" if name == OF_TOKENS else "documents"
        words = (
            f"{lost} of {unit} to retain are taken for ones to forget, {passed} of those to forget for ones to retain"
        )
        by_words.setdefault(words, []).append(name)
    return [f"{', '.join(names)}: {words}" for words, names in by_words.items()]


def expected_errors(data: DataConfig) -> list[str]:
    """Return what is known of a labeller's errors before the data are there; nothing where there is no labeller."""
    if not getattr(data, "has_labels", False):
        return []
    labeller, sets = getattr(data, "labeller", ""), getattr(data, "label_sets", ())
    if labeller != "noisy":
        return [f"{', '.join(sets)}: the errors of {labeller} are counted when the data are prepared"]
    return described_errors({name: {rate: getattr(data, rate) for rate in RATES} for name in sets})


def label_lines(states: Iterable[tuple[DataConfig, Mapping[str, Any] | None]]) -> list[str]:
    """Return lines on the labellers of (settings, manifest if prepared) of several data, each once."""
    lines: dict[str, None] = {}
    for data, manifest in states:
        if manifest:
            lines |= dict.fromkeys(f"labels (measured)  {one}" for one in described_errors(label_errors(manifest)))
        else:
            lines |= dict.fromkeys(f"labels (as set)  {one}" for one in expected_errors(data))
    return list(lines)
