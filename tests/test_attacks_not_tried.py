"""A card names every attack that was not tried, and none that was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from distill_jax.reports.attacks_not_tried import ATTACKS, not_tried
from distill_jax.stages import Quantise, Relearn
from distill_jax.stages.attacks.catalogue import UNTRAINED
from distill_jax.stages.attacks.edit_weights import EditWeights
from distill_jax.stages.attacks.prefix_tuning import PrefixTuning

ALL = [words for _, words in ATTACKS]


def words(*stages) -> set[str]:
    """Return what is tried by stages alone."""
    return set(ALL) - set(not_tried([SimpleNamespace(verb=stage.kind, settings=stage) for stage in stages]))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("stage", "tried"),
    [
        (Relearn(start="m"), {"fine-tuning all weights on what is shown"}),
        (Relearn(start="m", lora_rank=2), {"fine-tuning LoRA adapters on what is shown"}),
        (Relearn(start="m", weights="bfloat16"), {"fine-tuning with weights kept in bfloat16"}),
        (Relearn(start="m", data="retain"), {ALL[4]}),
        (PrefixTuning(start="m"), {"training a prefix of the prompt in place of weights"}),
        (Quantise(start="m"), {"quantising the weights to INT8 or INT4"}),
        (EditWeights(start="m", edits=("int4", "prune-0.1")), {ALL[7], "pruning the smallest weights"}),
        (UNTRAINED["few-shot"](start="m"), {"prompts with facts in context"}),
        (UNTRAINED["steering"](start="m"), {"steering hidden states"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_was_tried_is_left_out(stage, tried):
    assert words(stage) == tried


@pytest.mark.unit
def test_more_and_other_prompts_are_never_all_tried():
    assert words() == set() and "more steps, other learning rates, or more data than the budgets above" in not_tried([])
    everything = [Relearn(start="m"), *(kind(start="m") for kind in UNTRAINED.values())]
    assert len(set(ALL) - words(*everything)) >= 3
