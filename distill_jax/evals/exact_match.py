"""Exact match by greedy decoding with a key-value cache, for a whole population at once."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.data.records import Path, PromptItem, load_evaluation
from distill_jax.evals.scale import ACCURACY, Scale, finite, finite_mean
from distill_jax.models import lora
from distill_jax.models.decoding import NONE, PaddedPrompts, greedy
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.sharding.mesh import over_members, padded_rows, replicated, tracing
from distill_jax.types import JsonObject, PyTree


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts of one form, padded to one shape; n of them.

    Attributes:
      prompts: int32 [n, T], padded on the left with 0, so that every answer starts in slot T.
      lengths: int32 [n], tokens of each prompt.
      answers: int32 [n, A], the answer and its <eos>, padded on the right with -1, which matches anything.
      groups: for each prompt "operation/form/part", with part retain, shown or heldout.
      facts: for each prompt the fact it asks about.
    """

    prompts: np.ndarray
    lengths: np.ndarray
    answers: np.ndarray
    groups: tuple[str, ...]
    facts: tuple[str, ...] = ()


def prompts_by_form(items: Sequence[PromptItem]) -> list[Prompts]:
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
        out.append(Prompts(prompts, lengths, answers, groups, tuple(item["fact"] for item in chosen)))
    return out


def make_evaluator(
    cfg: TransformerConfig, sets: Sequence[Prompts], mesh: Mesh, batch: int = 0
) -> Callable[..., np.ndarray]:
    """Build evaluate(params [P, ...], base=None) -> fp64 [P, n]: 1 where a prompt's answer came out exactly, else 0.

    NaN where a logit that decides it is not finite: argmax would take the first NaN, which is no token that was chosen.
    With a base the params are adapters to it. The n columns follow the sets' prompts in order; `batch` prompts are
    decoded at a time (0: all of a form).
    """

    def correct(params: PyTree, item: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        prompts, lengths, answers = item
        out = greedy(cfg, params, PaddedPrompts(prompts, lengths), answers.shape[1])
        right = jnp.all((out == answers) | (answers < 0), axis=1)
        undecided = jnp.any((out == NONE) & (answers >= 0), axis=1)
        return jnp.where(undecided, jnp.nan, right.astype(jnp.float32))

    def member(trained: PyTree, shared: PyTree) -> jax.Array:
        base, item = shared
        params, n = lora.attach(trained, base), item[0].shape[0]
        size = padded_rows(min(batch or n, n), mesh)

        def cut(x: jax.Array) -> jax.Array:
            # The last chunk is filled up with copies of the first prompt, and cut off again.
            filled = jnp.concatenate([x, jnp.repeat(x[:1], -n % size, axis=0)])
            return filled.reshape(-1, size, *x.shape[1:])

        chunks = jax.tree.map(cut, item)
        return jax.lax.map(lambda chunk: correct(params, chunk), chunks).reshape(-1)[:n]

    def run(params: PyTree, base: PyTree, item: PyTree) -> jax.Array:
        with tracing(mesh):
            out = over_members(member, mesh)(params, (base, item))
        return jax.lax.with_sharding_constraint(out, replicated(mesh))  # every host reads all of it

    run = jax.jit(run)
    items = [tuple(np.asarray(x) for x in (s.prompts, s.lengths, s.answers)) for s in sets]

    def evaluate(params: PyTree, base: PyTree = None) -> np.ndarray:
        return np.concatenate([np.asarray(run(params, base, item), np.float64) for item in items], axis=1)

    return evaluate


def accuracies(
    correct: np.ndarray, groups: Sequence[str], wanted: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """Average fp64 [P, n] over the columns of each wanted set of groups: {name: fp64 [P]}."""
    out = {}
    for name, members in wanted.items():
        columns = [i for i, group in enumerate(groups) if group in members]
        out[name] = correct[:, columns].mean(axis=1) if columns else np.full(len(correct), np.nan)
    return out


class ExactMatch:
    """Measure the share of prompts whose answer comes out exactly."""

    scale: ClassVar[Scale] = ACCURACY
    counted: ClassVar[str] = "correct"

    def __init__(self, data: Path) -> None:
        self._prompts = prompts_by_form(cast(list[PromptItem], load_evaluation(data)))
        self._select = functools.cache(self._of_parts)

    @staticmethod
    def described(manifest: JsonObject) -> JsonObject:
        """Return how many prompts are evaluated in each part, and how many facts each half has."""
        prompts: dict[str, int] = {}
        for group, count in manifest["evaluation"]["groups"].items():
            part = group.split("/")[-1]
            key = part if part == "retain" else f"forget_{part}"
            prompts[key] = prompts.get(key, 0) + count
        return {"evaluated": prompts, "facts": {half: len(names) for half, names in manifest["facts"].items()}}

    def _of_parts(self, *parts: str) -> list[Prompts]:
        out = []
        for prompts in self._prompts:
            keep = np.array([group.split("/")[2] in parts for group in prompts.groups])
            arrays = (prompts.prompts[keep], prompts.lengths[keep], prompts.answers[keep])
            if keep.any():
                names = (tuple(np.array(each)[keep].tolist()) for each in (prompts.groups, prompts.facts))
                out.append(Prompts(*arrays, *names))
        return out

    def _groups(self, parts: Sequence[str]) -> list[str]:
        return [group for prompts in self._select(*parts) for group in prompts.groups]

    def evaluator(
        self, cfg: TransformerConfig, mesh: Mesh, parts: Sequence[str], batch: int, chunk: int
    ) -> Callable[..., np.ndarray]:
        """Build evaluate(params [P, ...], base=None) -> 1, 0 or NaN, fp64 [P, n], a column a prompt."""
        del chunk  # one position's logits at a time
        return make_evaluator(cfg, self._select(*parts), mesh, batch)

    def series(self, correct: np.ndarray, parts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the accuracy on each part, and on each of its forms."""
        groups = self._groups(parts)
        wanted: dict[str, list[str]] = {}
        for group in sorted(set(groups)):
            _, form, part = group.split("/")
            wanted.setdefault(part, []).append(group)
            wanted.setdefault(f"{part}_{form}", []).append(group)
        return accuracies(correct, groups, wanted)

    def result(self, correct: np.ndarray, parts: Sequence[str]) -> JsonObject:
        """Return one model's accuracies: retain, forget, and each operation × form with its size."""
        groups = [group.split("/") for group in self._groups(parts)]
        by_group = {}
        for kind in sorted({(operation, form) for operation, form, _ in groups}):
            chosen = np.array([(operation, form) == kind for operation, form, _ in groups])
            by_group["/".join(kind)] = {self.scale.key: finite(correct[chosen].mean()), "prompts": int(chosen.sum())}
        kept = np.array([part == "retain" for _, _, part in groups])
        means = {name: finite_mean(correct[mask]) for name, mask in (("retain", kept), ("forget", ~kept))}
        return {**means, "by_group": by_group}

    def chance_level(self, parts: Sequence[str]) -> float:
        """Return the accuracy of one that always gives the commonest answer; 0 where no two facts share one."""
        asked = [
            (tuple(answer[answer >= 0]), fact)
            for prompts in self._select(*parts)
            for answer, fact in zip(np.asarray(prompts.answers), prompts.facts, strict=True)
        ]
        prompts = Counter(answer for answer, _ in asked)
        facts = Counter(answer for answer, _ in set(asked))
        return max((prompts[answer] / len(asked) for answer in facts if facts[answer] > 1), default=0.0)

    def prompts_by_fact(self, parts: Sequence[str], part: str = "heldout") -> list[int]:
        """Return how many prompts ask about each fact of a part, [F]."""
        return np.bincount(self._places(parts, part)[1]).tolist()

    def by_fact(self, correct: np.ndarray, parts: Sequence[str], part: str = "heldout") -> np.ndarray:
        """Return how many prompts of each fact of a part were answered right, int [P, F]."""
        of_part, places = self._places(parts, part)
        return np.array([np.bincount(places, weights=row[of_part]) for row in correct], np.int64)  # none of none

    def _places(self, parts: Sequence[str], part: str) -> tuple[np.ndarray, np.ndarray]:
        """Return which prompts ask about facts of a part, bool [n], and the number of each one's fact."""
        of_part = np.array([group.endswith(f"/{part}") for group in self._groups(parts)])
        names = np.array([fact for prompts in self._select(*parts) for fact in prompts.facts])
        return of_part, np.unique(names[of_part], return_inverse=True)[1]

    def flops(self, cfg: TransformerConfig, parts: Sequence[str]) -> float:
        """Return the greedy decoding of the parts' prompts."""
        shapes = [(*s.prompts.shape, s.answers.shape[1]) for s in self._select(*parts)]
        return sum(flops.decode(cfg, *shape) for shape in shapes)

    def tokens(self, parts: Sequence[str]) -> int:
        """Return the tokens of prompts and answers, padding included."""
        return sum(len(s.prompts) * (s.prompts.shape[1] + s.answers.shape[1]) for s in self._select(*parts))
