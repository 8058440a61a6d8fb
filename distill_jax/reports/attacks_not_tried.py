"""What attackers try that a run did not: for its card, in words that need no knowledge of the program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from distill_jax.io.node import Node

# A way to attack, as nodes have it (`_ways`), and in words. What no stage does has no way: it is never left out.
ATTACKS = (
    ("float32", "fine-tuning all weights on what is shown"),
    ("adapters", "fine-tuning LoRA adapters on what is shown"),
    ("bfloat16", "fine-tuning with weights kept in bfloat16"),
    ("", "more steps, other learning rates, or more data than the budgets above"),
    ("retain", "fine-tuning on harmless text, in which what was forgotten does not occur"),
    ("prefix", "training a prefix of the prompt in place of weights"),
    ("answers", "training another model on what this one answers"),
    ("rounding", "quantising the weights to INT8 or INT4"),
    ("pruning", "pruning the smallest weights"),
    ("few_shot", "prompts with facts in context"),
    ("", "prompts: role play, translation, jailbreaks, many samples"),
    ("steering", "steering hidden states"),
    ("", "probes of hidden states"),
)
TRAINED = {"relearn": "", "attack": "", "prefix_tuning": "prefix", "answer_distillation": "answers"}


def not_tried(nodes: Iterable[Node]) -> list[str]:
    """Return what is not among a run's attacks."""
    done = {way for node in nodes for way in _ways(node.verb, node.settings)}
    return [words for way, words in ATTACKS if not way or way not in done]


def _ways(verb: str, settings: Any) -> Iterator[str]:
    """Yield the ways in which a stage attacks, keys of `ATTACKS`."""
    if verb in TRAINED:
        on_other_text = settings.data == "retain"
        yield TRAINED[verb] or ("retain" if on_other_text else "adapters" if settings.lora_rank else settings.weights)
    elif verb == "quantise":
        yield "rounding"
    elif verb == "edit":
        yield from ("pruning" if name.startswith("prune") else "rounding" for name in settings.edits)
    else:
        yield verb  # one that is an attack has a way of its name
