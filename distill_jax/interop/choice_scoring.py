"""Score choices: which answers a model gives to multiple-choice items, by the likelihood of their letters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.config import check
from distill_jax.data.multiple_choice import items as reading
from distill_jax.data.multiple_choice.items import LETTERS, Item
from distill_jax.data.multiple_choice.questions import Question, questions
from distill_jax.evals.scale import wilson
from distill_jax.interop import tokenizers
from distill_jax.interop.chat import Chat
from distill_jax.interop.model_source import open_model
from distill_jax.interop.rows import (
    DEFAULT,
    Inference,
    SingleBegin,
    batches,
    check_finite,
    longest,
    padded_length,
    write,
)
from distill_jax.models.likelihood import Continuations, continuations
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.sharding.mesh import make_mesh, tracing
from distill_jax.types import JsonObject


@dataclasses.dataclass(frozen=True)
class FewShot:
    """What is shown before each item.

    Attributes:
      shots: solved examples, of the file (or pattern) `examples`, the first of the item's subject.
      subject: of items that have none.
    """

    shots: int = 0
    examples: str = ""
    subject: str = ""


ZERO_SHOT = FewShot()


def score_choices(
    source: Path,
    given: str,
    to: Path,
    how: Inference = DEFAULT,
    few_shot: FewShot = ZERO_SHOT,
) -> str:
    """Write the items as JSON lines with `log_likelihoods`, one an option, what was `chosen`, and whether `correct`.

    The same model has the same log-likelihoods here and in lm-evaluation-harness's tasks `mmlu` and `wmdp`; with the
    model's chat template all that stands before an answer is one question of the user.

    Args:
      source: a model, as `open_model` opens it.
      given: the items' file, or a pattern; to: what is written.

    Returns:
      The accuracy with its 95 % interval, in words.

    Raises:
      ConfigError: naming an item that is none, or whose logits are not finite: none of its options is an answer.
    """
    model = open_model(source)
    items = reading.read(given, "--items", few_shot.subject)
    shown = reading.read(few_shot.examples, "--examples", few_shot.subject) if few_shot.shots else []
    # transformers stops where the model's config does; what is cut there is cut here.
    limit = longest(model)
    contexts = reading.contexts(items, shown, few_shot.shots)
    prompts = _prompts(items, contexts, how.tokenizer or model.tokenizer, limit, how.chat)
    highest = max(max(*question.tokens, *question.last) for question in prompts)
    mend = f"its tokens go to {highest}, the model's to {model.cfg.vocab - 1}; give the model's own"
    check(highest < model.cfg.vocab, f"--tokenizer={how.tokenizer or model.tokenizer}: {mend}")
    cfg, mesh = dataclasses.replace(model.cfg, dtype=how.dtype), make_mesh(1, fsdp=-1)
    scores = _log_likelihoods(cfg, mesh, model.load(mesh, how.dtype), items, prompts, how.batch)
    rows = [_answered(*pair) for pair in zip(items, scores, strict=True)]
    write(to, rows)
    cut = {question.item for question in prompts if question.cut}
    return _accuracy(rows) + (f"; the beginning of {len(cut)} of them was cut off at {limit} tokens" if cut else "")


def _prompts(
    items: Sequence[Item], contexts: Sequence[str], tokenizer: str, limit: int, with_template: bool
) -> list[Question]:
    """Return the items' readings; with the model's template a context is a question, and its answer a turn's start."""
    if not with_template:
        return questions(items, contexts, SingleBegin(tokenizers.load(tokenizer)), limit)
    chat = Chat(tokenizer)
    return questions(items, [chat.question(context) for context in contexts], chat, limit, lead="")


def _answered(item: Item, scores: np.ndarray) -> JsonObject:
    chosen = int(np.argmax(scores))
    answers = {"log_likelihoods": scores.tolist(), "chosen": LETTERS[chosen], "correct": chosen == item.answer}
    return dataclasses.asdict(item) | answers


def _accuracy(rows: Sequence[JsonObject]) -> str:
    right = sum(row["correct"] for row in rows)
    low, high = wilson(right, len(rows))
    return f"accuracy {right / len(rows):.4f} [{low:.4f}, {high:.4f}], {right} of {len(rows)} items"


def _log_likelihoods(
    cfg: TransformerConfig, mesh: Mesh, params: Params, items: Sequence[Item], prompts: Sequence[Question], batch: int
) -> list[np.ndarray]:
    """Return each item's log-likelihoods, fp32 [choices]; ConfigError names the first that has none."""
    out = [np.zeros(len(item.choices), np.float32) for item in items]
    max_own, width = max(question.own for question in prompts), max(len(question.last) for question in prompts)
    for chosen in batches([question.tokens for question in prompts], batch):
        group = [prompts[i] for i in chosen]
        tokens = np.zeros((batch, padded_length(max(len(question.tokens) for question in group))), np.int32)
        lengths, own, last = np.ones(batch, np.int32), np.zeros(batch, np.int32), np.zeros((batch, width), np.int32)
        for place, question in enumerate(group):
            lengths[place], own[place] = len(question.tokens), question.own
            tokens[place, : lengths[place]] = question.tokens
            last[place, : len(question.last)] = question.last
        rows = Continuations(*map(jnp.asarray, (tokens, lengths, own, last)))
        scores = np.asarray(_run(cfg, mesh, max_own, params, rows))
        for place, question in enumerate(group):
            answers, item = scores[place, : len(question.last)], items[question.item]
            check_finite(np.isfinite(answers), f"item {question.item + 1} ({item.question.strip()[:40]!r})", cfg.dtype)
            out[question.item][list(question.choices)] = answers
    return out


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(cfg: TransformerConfig, mesh: Mesh, max_own: int, params: Params, rows: Continuations) -> jax.Array:
    with tracing(mesh):
        return continuations(cfg, params, rows, max_own)
