"""Search: the attacker looks for its strongest fine-tuning itself, round by round; see `refinement`.

Every population that it trains is a part of its node, continued and finished like any other, and all are in its ledger.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from distill_jax.config import SettingError
from distill_jax.perf.clock import Lap
from distill_jax.perf.ledger import ledger
from distill_jax.stages.attacks import catalogue
from distill_jax.stages.attacks.finetuning import Attack
from distill_jax.stages.attacks.refinement import Point, Values, search
from distill_jax.stages.context import Context, Node
from distill_jax.stages.relearn import read_attack_rows
from distill_jax.statistics.attack_choice import HALVES, half_mean
from distill_jax.statistics.robustness import attack_table, facts_table
from distill_jax.train.optimizers import OPTIMIZERS


@dataclasses.dataclass(frozen=True)
class Search(Attack):
    """Search for the strongest fine-tuning attack with a number of trials.

    Attributes:
      learning_rates: of the grid that the search begins with, times the rate of each optimiser in the catalogue.
      optimizers: keys of `OPTIMIZERS`.
      points: how many configurations are tried at most, each with every seed; one of twice the batch counts as two.
      batches: what the batch is multiplied with, both ways, around the first round's best; 1 leaves it as it is.
      ability: share of its retain score that an attacked model must keep to count.
    """

    optimizers: tuple[str, ...] = ("adamw", "lion", "muon", "sign")
    points: int = 16
    batches: float = 1.0
    ability: float = 0.8

    kind: ClassVar[str] = "search"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.optimizers or not set(self.optimizers) <= set(OPTIMIZERS):
            raise SettingError("optimizers", self.optimizers, f"choose of {', '.join(OPTIMIZERS)}")
        if self.points < 1:
            raise SettingError("points", self.points, "must be at least 1")
        if self.batches < 1:
            raise SettingError("batches", self.batches, "must be at least 1, which leaves the batch as it is")
        if not 0 <= self.ability <= 1:
            raise SettingError("ability", self.ability, "a share lies in [0, 1]")

    def grid(self) -> list[Point]:
        """Return the grid that the search begins with a part of."""
        factor = {name: catalogue.FINETUNING[name].rate for name in self.optimizers}
        return [
            Point(name, self.batch, rate).moved(rate=factor[name]) for name in factor for rate in self.learning_rates
        ]

    def population(self, points: Sequence[Point]) -> Attack:
        """Return the attack that tries points of one optimiser and one batch."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Attack)}
        own = {
            "optimizer": points[0].optimizer,
            "batch": points[0].batch,
            "learning_rates": tuple(p.rate for p in points),
        }
        return Attack(**fields | own)

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of all trials, at the first batch: what they may cost at most."""
        return super().estimate_flops(ctx) * self.points / len(self.learning_rates)

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Search for the strongest attack on one model."""
        (node,) = nodes
        floor = self.ability * (ctx.nodes[node.inputs["start"]].result()["retain"] or 0.0)
        populations: list[tuple[str, list[Point]]] = []

        def measure(points: Sequence[Point]) -> Values:
            values: dict[Point, tuple[float, ...]] = {}
            lines: dict[tuple[str, int], list[Point]] = collections.defaultdict(list)
            for point in points:
                lines[point.optimizer, point.batch].append(point)
            for (optimizer, batch), line in lines.items():
                name = f"{len(populations)}-{optimizer}-{batch}"
                populations.append((name, line))
                subnode = dataclasses.replace(node.subnode(name), settings=self.population(line))
                if not subnode.done:
                    subnode.settings.run(ctx, [subnode])
                values |= dict(zip(line, _values(subnode, floor), strict=True))
            return values

        origin = search(self.grid(), measure, self.points, self.batches)
        tried = [
            {"part": name, "points": list(map(dataclasses.asdict, line)), "proposed_by": [origin[p] for p in line]}
            for name, line in populations
        ]
        parts = [node.subnode(name) for name, _ in populations]
        results, costs = [part.result() for part in parts], [part.ledger() for part in parts]
        totals = {key: sum(result[key] for result in results) for key in ("members", "diverged")}
        result = {**totals, "prompts_by_fact": results[0]["prompts_by_fact"], "populations": tried}
        spent, tokens = (_total([cost[kind] for cost in costs]) for kind in ("flops", "tokens"))
        seconds = _total([ctx.clock.lap().seconds, *(cost["goodput"]["seconds"] for cost in costs)])
        node.finish(result, ledger(spent, tokens, Lap(seconds)))


def _total(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total = collections.Counter[str]()
    for part in parts:
        total.update(part)
    return dict(total)


def _values(node: Node, floor: float) -> list[tuple[float, ...]]:
    """Return what each rate of a finished population brings back of each half of the facts, over its seeds."""
    rows, prompts = read_attack_rows(node), np.asarray(node.result()["prompts_by_fact"], float)
    retain = attack_table(rows, "retain")[2].mean(axis=0)  # [R, K]
    heldout = facts_table(rows, prompts.astype(int).tolist())
    assert heldout is not None
    scores = np.stack([half_mean(np.nan_to_num(heldout), prompts, half).mean(axis=0) for half in HALVES])  # [2, R, K]
    return [tuple(each.tolist()) for each in np.where(retain >= floor, scores, 0.0).max(axis=2).T]
