"""Multiple choice: the share of items whose right answer's letter is the likeliest, for a whole population at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar, cast

import jax
import numpy as np
from jax.sharding import Mesh

from distill_jax.data.records import ChoiceReading, Path, load_evaluation
from distill_jax.evals.scale import CHOICE, Scale, finite, finite_mean
from distill_jax.models import lora
from distill_jax.models.likelihood import Continuations, continuations
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.sharding.mesh import constrain, over_members, padded_rows, replicated, tracing
from distill_jax.types import JsonObject, PyTree

Reading = ChoiceReading


class MultipleChoice:
    """Measure the accuracy on items to retain, and on those to forget that an attacker is shown and is not.

    An answer is chosen as lm-evaluation-harness does it: see `data.multiple_choice.questions`.
    """

    scale: ClassVar[Scale] = CHOICE
    counted: ClassVar[str] = "correct"

    def __init__(self, data: Path) -> None:
        self._readings = cast(list[ChoiceReading], load_evaluation(data))
        self._items = functools.cache(self._of_parts)

    @staticmethod
    def described(manifest: JsonObject) -> JsonObject:
        """Return how many items are evaluated in each part, and how many an attacker is shown."""
        counts = {name: entry["items"] for name, entry in manifest["evaluation"]["parts"].items()}
        names = {"retain": "retain", "forget_shown": "shown", "forget_heldout": "heldout"}
        facts = {"shown": manifest["sets"]["forget_shown"]["documents"], "heldout": counts["heldout"]}
        return {"evaluated": {name: counts[part] for name, part in names.items()}, "facts": facts}

    def _of_parts(self, *parts: str) -> dict[tuple[str, int], list[Reading]]:
        """Return the readings of each item, (part, number)."""
        by_item: dict[tuple[str, int], list[Reading]] = {}
        for reading in self._readings:
            if reading["part"] in parts:
                by_item.setdefault((reading["part"], reading["item"]), []).append(reading)
        return by_item

    def _batches(self, parts: Sequence[str], size: int) -> list[list[Reading]]:
        """Return the parts' readings in batches of one width each."""
        by_width: dict[int, list[Reading]] = {}
        for reading in (reading for readings in self._items(*parts).values() for reading in readings):
            by_width.setdefault(_width(reading), []).append(reading)
        step = size or len(self._readings)
        return [group[i : i + step] for group in by_width.values() for i in range(0, len(group), step)]

    def evaluator(
        self, cfg: TransformerConfig, mesh: Mesh, parts: Sequence[str], batch: int, chunk: int
    ) -> Callable[..., np.ndarray]:
        """Build evaluate(params [P, ...], base=None) -> fp64 [P, n], a column an item: 1 if answered right, else 0.

        NaN where the log-likelihood of an option is not finite: argmax would call the first NaN an answer, mostly A.
        """
        del chunk  # logits exist for the options' places alone
        items, batches = self._items(*parts), self._batches(parts, batch)
        column = {key: i for i, key in enumerate(items)}
        answers = np.array([readings[0]["answer"] for readings in items.values()])
        max_own, options = max(r["own"] for r in self._readings), max(max(r["choices"]) + 1 for r in self._readings)
        run = _program(cfg, mesh, max_own)
        packed = [
            _pack(group, padded_rows(batch or len(group), mesh), max(len(r["last"]) for r in self._readings))
            for group in batches
        ]

        def evaluate(params: PyTree, base: PyTree = None) -> np.ndarray:
            queued = [run(params, base, rows) for rows in packed]
            members = jax.tree.leaves(params)[0].shape[0]
            log_likelihoods = np.full((members, len(items), options), -np.inf)
            decided = np.ones((members, len(items)), bool)
            for group, values in zip(batches, map(np.asarray, queued), strict=True):
                for row, r in enumerate(group):
                    place = column[r["part"], r["item"]]
                    own = values[:, row, : len(r["last"])]
                    log_likelihoods[:, place, r["choices"]] = own
                    decided[:, place] &= np.isfinite(own).all(axis=1)
            return np.where(decided, log_likelihoods.argmax(axis=-1) == answers, np.nan)

        return evaluate

    def _names(self, parts: Sequence[str]) -> list[tuple[str, str]]:
        return [(part, readings[0]["group"]) for (part, _), readings in self._items(*parts).items()]

    def series(self, correct: np.ndarray, parts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the accuracy on each part, and on each of its groups, fp64 [P]."""
        names = self._names(parts)
        wanted: dict[str, list[int]] = {}
        for i, (part, group) in enumerate(names):
            wanted.setdefault(part, []).append(i)
            wanted.setdefault(f"{part}_{group}", []).append(i)
        return {name: correct[:, columns].mean(axis=1) for name, columns in sorted(wanted.items())}

    def result(self, correct: np.ndarray, parts: Sequence[str]) -> JsonObject:
        """Return one model's accuracies: retain, forget (shown or not), and each group with its size."""
        names = self._names(parts)
        kept = np.array([part == "retain" for part, _ in names])
        means = {name: finite_mean(correct[mask]) for name, mask in (("retain", kept), ("forget", ~kept))}
        groups = {}
        for group in dict.fromkeys(group for _, group in names):
            chosen = np.array([name == group for _, name in names])
            groups[group] = {self.scale.key: finite(correct[chosen].mean()), "prompts": int(chosen.sum())}
        return {**means, "by_group": groups}

    def chance_level(self, parts: Sequence[str]) -> float:
        """Return the accuracy of one that knows nothing and chooses by chance."""
        options = [sum(len(r["choices"]) for r in readings) for readings in self._items(*parts).values()]
        return float(np.mean([1 / count for count in options]))

    def prompts_by_fact(self, parts: Sequence[str], part: str = "heldout") -> list[int]:
        """Return a one for each item of a part."""
        return [1 for name, _ in self._names(parts) if name == part]

    def by_fact(self, correct: np.ndarray, parts: Sequence[str], part: str = "heldout") -> np.ndarray:
        """Return whether each item of a part was answered right, int [P, F]."""
        return correct[:, [name == part for name, _ in self._names(parts)]].astype(np.int64)

    def flops(self, cfg: TransformerConfig, parts: Sequence[str]) -> float:
        """Return the forward passes over the parts' readings, padding included, with the head at the options alone."""
        widths = [_width(reading) for readings in self._items(*parts).values() for reading in readings]
        return sum(flops.forward(cfg, 1, width, head=False) for width in widths) + len(widths) * self._head(cfg)

    def _head(self, cfg: TransformerConfig) -> float:
        return 2.0 * cfg.hidden * cfg.vocab * (1 + max(reading["own"] for reading in self._readings))

    def tokens(self, parts: Sequence[str]) -> int:
        """Return the tokens of the parts' readings, padding included."""
        return sum(_width(reading) for readings in self._items(*parts).values() for reading in readings)


def _width(reading: Reading) -> int:
    """Return the tokens that a reading is padded to, at most half as many more or 128: each width is a program."""
    length = len(reading["tokens"])
    step = max(128, 2 ** (length.bit_length() - 2))
    return -(-length // step) * step


def _pack(readings: Sequence[Reading], size: int, options: int) -> tuple[np.ndarray, ...]:
    """Return (tokens [B, T], lengths [B], own [B], last [B, C]) of readings of one width, filled up with nothing."""
    tokens, last = np.zeros((size, _width(readings[0])), np.int32), np.zeros((size, options), np.int32)
    lengths, own = np.ones(size, np.int32), np.zeros(size, np.int32)
    for row, reading in enumerate(readings):
        lengths[row], own[row] = len(reading["tokens"]), reading["own"]
        tokens[row, : lengths[row]] = reading["tokens"]
        last[row, : len(reading["last"])] = reading["last"]
    return tokens, lengths, own, last


@functools.cache
def _program(cfg: TransformerConfig, mesh: Mesh, max_own: int) -> Callable[..., jax.Array]:
    """Return run(params [P, ...], base, packed readings) -> log-likelihoods [P, B, C]."""

    def member(trained: PyTree, shared: PyTree) -> jax.Array:
        base, (tokens, lengths, own, last) = shared
        rows = Continuations(constrain(tokens, "batch", None), lengths, own, last)
        return continuations(cfg, lora.attach(trained, base), rows, max_own)

    def run(params: PyTree, base: PyTree, rows: PyTree) -> jax.Array:
        with tracing(mesh):
            out = over_members(member, mesh)(params, (base, rows))
        return jax.lax.with_sharding_constraint(out, replicated(mesh))  # every host reads all of it

    return jax.jit(run)
