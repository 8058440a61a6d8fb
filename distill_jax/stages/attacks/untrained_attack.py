"""What attacks without training have in common: each measures variants of a model once, together."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.data.records import Rows
from distill_jax.evals.measure import all_finite
from distill_jax.models import lora
from distill_jax.models.lora import Base
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.mesh import padded, shardings
from distill_jax.stages.context import PARTS, Context, Node
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.train.state import filling
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class UntrainedAttack(Stage):
    """Measure variants of a model that need no training.

    Attributes:
      start: the node under attack.
      removable: whether the attack acts on a forward pass alone, so that what it breaks is whole again without it.
    """

    start: str = stage_input()

    leaves_model: ClassVar[bool] = False
    removable: ClassVar[bool] = False

    @abc.abstractmethod
    def variants(self) -> dict[str, dict[str, Any]]:
        """Return {what a variant is called: the settings that tell it from the others}."""

    def draws(self) -> int:
        """Return how often each variant is drawn, from seeds of its own; 1 of what has no chance in it."""
        return 1

    def labels(self) -> list[str]:
        """Return the members' labels: every variant with every seed, or the variants alone if they have no chance."""
        if self.draws() == 1:
            return list(self.variants())
        return [self.label(variant, seed) for seed in range(self.draws()) for variant in self.variants()]

    def label(self, variant: str, seed: int) -> str:
        """Return the label of a variant's draw."""
        return variant if self.draws() == 1 else f"{variant},seed={seed}"

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of the evaluations."""
        return len(self.labels()) * ctx.evaluation_flops(*PARTS)


@dataclasses.dataclass(frozen=True)
class Spent:
    """What one attacker spends on a variant before it is measured: rows that it reads, and FLOPs."""

    rows: float = 0.0
    flops: float = 0.0


def scores_of_population(
    ctx: Context, mesh: Mesh, insertions: Sequence[PyTree], base: Base, cfg: TransformerConfig
) -> np.ndarray:
    """Return an evaluator's scores on all parts [members, n] of one base with what each member inserts."""
    count = len(insertions)
    index = filling(count, padded(count, mesh))

    def stacked(trees: Sequence[PyTree]) -> PyTree:
        return jax.tree.map(lambda *x: jnp.stack([x[i] for i in index]), *trees)

    shape = jax.eval_shape(stacked, list(insertions))
    at = shardings(mesh, lora.logical_axes(cfg, shape), shape, lead=("population",))
    members = jax.jit(stacked, out_shardings=at)(list(insertions))
    with ctx.clock.spent_on("evaluate"):
        return ctx.evaluator(mesh, *PARTS)(members, base)[:count]


def finish_measured(
    ctx: Context, node: Node, scores: np.ndarray, devices: int, spent: Mapping[str, Spent] | None = None
) -> None:
    """Write what an attack without training found, as the rows of step 0 of its members, and finish the node.

    Args:
      scores: an evaluator's on all parts, [members, n], in the order of the stage's labels.
      spent: {variant: what one attacker spent on it}; nothing where left out.
    """
    stage: UntrainedAttack = node.settings
    labels, measure, good = stage.labels(), ctx.measure, all_finite(scores)
    series, metrics = measure.series(scores, PARTS), node.continued_metrics(0)
    for i, label in enumerate(labels):
        metrics.write("evaluation", 0, label, {name: float(score[i]) for name, score in series.items()})
        if good[i] and measure.prompts_by_fact(PARTS):
            correct = measure.by_fact(scores[i : i + 1], PARTS)[0].tolist()
            metrics.write_counts("facts", 0, label, measure.counted, correct)
    metrics.close()
    diverged = {label: 0 for label, finite in zip(labels, good, strict=True) if not finite}
    result = {"members": len(labels), "diverged": len(diverged), "diverged_at": diverged}
    facts: dict[str, Any] = {"prompts_by_fact": measure.prompts_by_fact(PARTS)}
    flops = {"evaluation": len(labels) * ctx.evaluation_flops(*PARTS)}
    tokens: dict[str, float] = {"evaluation": len(labels) * measure.tokens(PARTS)}
    if spent:
        facts["spent"] = {variant: dataclasses.asdict(one) for variant, one in spent.items()}
        flops["attack"] = stage.draws() * sum(one.flops for one in spent.values())
        tokens["attack"] = stage.draws() * ctx.row_length * sum(one.rows for one in spent.values())
    node.finish(result | facts, ledger(flops, tokens, ctx.clock.lap(), devices=devices))


def documents_of(rows: Rows, order: Sequence[int], count: int) -> list[np.ndarray]:
    """Return the tokens of the first `count` different documents of packed rows that are read in an order."""
    out: dict[bytes, np.ndarray] = {}
    for index in order:
        tokens, segments, _ = rows[index]
        for segment in range(1, int(segments.max(initial=0)) + 1):
            document = tokens[segments == segment]
            out.setdefault(document.tobytes(), document)
            if len(out) == count:
                return list(out.values())
    return list(out.values())
