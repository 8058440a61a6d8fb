"""Exact match by greedy decoding with a key-value cache, for a whole population at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.models import lora
from distill_jax.models.decoding import greedy
from distill_jax.models.transformer import TransformerConfig
from distill_jax.sharding.mesh import over_members, replicated, tracing


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts of one form, padded to one shape; n of them.

    Attributes:
      prompts: int32 [n, T], padded on the left with 0, so that every answer starts in slot T.
      lengths: int32 [n], tokens of each prompt.
      answers: int32 [n, A], the answer and its <eos>, padded on the right with -1, which matches anything.
      groups: for each prompt "operation/form/part", with part retain, shown or heldout.
    """

    prompts: np.ndarray
    lengths: np.ndarray
    answers: np.ndarray
    groups: tuple[str, ...]


def prompts_by_form(items: Sequence[dict[str, Any]]) -> list[Prompts]:
    """Gather evaluation items into one `Prompts` a form: short equations are not padded to word problems."""
    out = []
    for form in sorted({item["form"] for item in items}):
        chosen = [item for item in items if item["form"] == form]
        width = max(len(item["prompt_ids"]) for item in chosen)
        depth = max(len(item["answer_ids"]) for item in chosen)
        prompts = np.zeros((len(chosen), width), np.int32)
        answers = np.full((len(chosen), depth), -1, np.int32)
        for row, item in enumerate(chosen):
            prompts[row, width - len(item["prompt_ids"]) :] = item["prompt_ids"]
            answers[row, : len(item["answer_ids"])] = item["answer_ids"]
        lengths = np.array([len(item["prompt_ids"]) for item in chosen], np.int32)
        groups = tuple(f"{item['operation']}/{form}/{item['part']}" for item in chosen)
        out.append(Prompts(prompts, lengths, answers, groups))
    return out


def make_evaluator(
    cfg: TransformerConfig, sets: Sequence[Prompts], mesh: Mesh, batch: int = 0
) -> Callable[..., np.ndarray]:
    """Build evaluate(params [P, ...], base=None) -> bool [P, n], whether each prompt's answer came out exactly.

    With a base the params are adapters to it. The n columns follow the sets' prompts in order; `batch` prompts are
    decoded at a time (0: all of a form).
    """

    def correct(params: Any, item: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        prompts, lengths, answers = item
        out = greedy(cfg, params, prompts, lengths, answers.shape[1])
        return jnp.all((out == answers) | (answers < 0), axis=1)

    def member(trained: Any, shared: Any) -> jax.Array:
        base, item = shared
        params, n = lora.attach(trained, base), item[0].shape[0]
        size = min(batch or n, n)
        # The last chunk is filled up with copies of the first prompt, and cut off again.
        fill = lambda x: jnp.concatenate([x, jnp.repeat(x[:1], -n % size, axis=0)])  # noqa: E731
        chunks = jax.tree.map(lambda x: fill(x).reshape(-1, size, *x.shape[1:]), item)
        return jax.lax.map(lambda chunk: correct(params, chunk), chunks).reshape(-1)[:n]

    def run(params: Any, base: Any, item: Any) -> jax.Array:
        with tracing(mesh):
            out = over_members(member, mesh)(params, (base, item))
        return jax.lax.with_sharding_constraint(out, replicated(mesh))  # every host reads all of it

    run = jax.jit(run)
    items = [tuple(np.asarray(x) for x in (s.prompts, s.lengths, s.answers)) for s in sets]

    def evaluate(params: Any, base: Any = None) -> np.ndarray:
        return np.concatenate([np.asarray(run(params, base, item)) for item in items], axis=1)

    return evaluate


def accuracies(
    correct: np.ndarray, groups: Sequence[str], wanted: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """Average bool [P, n] over the columns of each wanted set of groups: {name: fp64 [P]}."""
    out = {}
    for name, members in wanted.items():
        columns = [i for i, group in enumerate(groups) if group in members]
        out[name] = correct[:, columns].mean(axis=1) if columns else np.full(len(correct), np.nan)
    return out
