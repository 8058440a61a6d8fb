"""What a catalogue of attacks brought back of each model of a run, at each budget, and how many trials it took."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from distill_jax.config import check
from distill_jax.evals.scale import Scale
from distill_jax.io.node import Node
from distill_jax.reports.catalogue_types import AttackedSummary, CatalogueSummary, ChoiceSummary, SlowdownSummary
from distill_jax.stages import Attack, Relearn, Search
from distill_jax.stages.attacks.catalogue import attack_id
from distill_jax.stages.attacks.refinement import Point
from distill_jax.stages.attacks.untrained_attack import Spent, UntrainedAttack
from distill_jax.stages.relearn import read_attack_rows
from distill_jax.statistics.attack_choice import (
    HALVES,
    Choice,
    Configuration,
    choose,
    expected_best,
    trials,
)
from distill_jax.statistics.attack_cost import Cost, Ratio, SpendingCurve, costs, ratios
from distill_jax.statistics.attack_rows import FACTS
from distill_jax.statistics.estimates import band
from distill_jax.statistics.robustness import attack_table, facts_table
from distill_jax.types import JsonObject

ABILITY = 0.8  # share of its retain score below which an attacked model does not count
TRIALS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
AXES = ("steps", "rows", "flops")
LEVELS = (0.1, 0.2, 0.5)  # of what lies between nothing and all, to which an attacker's compute is asked
Budget = tuple[str, float]


@dataclasses.dataclass(frozen=True)
class AttackedModel:
    """One model under a catalogue of attacks, and under the run's attack of record.

    Attributes:
      configurations: of the catalogue; record: of the attack of record, empty if it recorded no facts.
      prompts: how often each held-out fact was asked.
      floor: the retain score that an attacked model must keep to count.
      flops: spent on all trials of the catalogue.
    """

    configurations: list[Configuration]
    record: list[Configuration]
    prompts: np.ndarray
    floor: float
    flops: float

    def worst(self, budget: Budget, *, bounded: bool = True, record: bool = False) -> Choice | None:
        """Return the worst case within a budget, among models that keep their ability unless it is unbounded."""
        pool = self.record if record else self.configurations
        return choose(pool, self.prompts, budget, self.floor if bounded else -math.inf) if pool else None

    @property
    def seeds(self) -> int:
        """Return how many seeds each attack was tried with."""
        return min((len(c.retain) for c in self.configurations), default=0)

    @functools.cached_property
    def spending(self) -> SpendingCurve:
        """Return what comes back within each spending, among models that keep their ability."""
        return SpendingCurve(self.configurations, self.prompts, self.floor)

    @property
    def counted(self) -> tuple[int, int]:
        """Return how many attacks left the model its ability somewhere past its beginning, and of how many."""
        kept = [c.retain.mean(axis=0) >= self.floor for c in self.configurations]
        attacked = [
            k.any() if math.isnan(c.rate) else k[1:].any() for c, k in zip(self.configurations, kept, strict=True)
        ]
        return sum(map(bool, attacked)), len(attacked)

    @property
    def everything(self) -> Budget:
        """Return the budget that no measurement exceeds."""
        return "steps", math.inf


def attacked_models(nodes: Mapping[str, Node]) -> dict[str, AttackedModel]:
    """Return the models that attacks of the catalogue were tried on, by name; none of data without facts."""
    tried = collections.defaultdict(list)
    for node in nodes.values():
        if isinstance(node.settings, Relearn | UntrainedAttack):
            tried[node.inputs["start"]].append(node)
    models = {}
    for name, attacks in tried.items():
        known = [node for node in attacks if node.result().get("prompts_by_fact")]
        own = [node for node in known if not is_record(node)]
        if own:
            models[name] = _attacked(nodes[name], own, [node for node in known if is_record(node)])
    return models


def is_record(node: Node) -> bool:
    """Return whether a node is an attack of record, on which a run's claims rest, and none of the catalogue."""
    return node.verb == Relearn.kind


def _attacked(model: Node, own: Sequence[Node], record: Sequence[Node]) -> AttackedModel:
    prompts = np.asarray(own[0].result()["prompts_by_fact"], float)
    seeds = min((count for node in own if (count := _seeds(node)) > 1), default=1)
    retain = model.result()["retain"]
    ability = math.inf if retain is None else retain
    full = [node for node in record if node.settings.weights == "float32"]
    least = min((node.settings.seeds for node in full), default=1)
    spent = sum(sum(node.ledger()["flops"].values()) for node in own)
    return AttackedModel(
        [c.of_seeds(seeds) for node in own for c in _whole(node, _configurations(node, prompts, seeds), ability)],
        [c.of_seeds(least) for node in full for c in _configurations(node, prompts, least)],
        prompts,
        ABILITY * ability,
        spent,
    )


def _seeds(node: Node) -> int:
    """Return how many seeds an attack was tried with; 1 of what has no chance in it."""
    stage: Attack | UntrainedAttack = node.settings
    return stage.draws() if isinstance(stage, UntrainedAttack) else stage.seeds


def _whole(node: Node, tried: Sequence[Configuration], ability: float) -> list[Configuration]:
    """Return what was tried with the retain score that an attacker is left with.

    A prompt, a prefix or steering acts where the attacker wants it: asked without it the model is as it was.
    """
    if not node.settings.removable or not math.isfinite(ability):
        return list(tried)
    return [dataclasses.replace(c, retain=np.full_like(c.retain, ability)) for c in tried]


def _configurations(node: Node, prompts: np.ndarray, seeds: int) -> list[Configuration]:
    if isinstance(node.settings, UntrainedAttack):
        return [c for variant in node.settings.variants() for c in _variant(node, variant, prompts, seeds)]
    if isinstance(node.settings, Search):
        return [c for one in node.result()["populations"] for c in _searched(node, one, prompts, seeds)]
    stage, rows = node.settings, read_attack_rows(node)
    steps, rates, retain = attack_table(rows, "retain")
    heldout = facts_table(rows, prompts.astype(int).tolist())
    if heldout is None or heldout.shape[:3] != retain.shape:
        return []
    spent = np.asarray(steps, float)
    name, identity = attack_name(node), attack_id(stage)
    return [
        Configuration(
            identity, name, rate, spent, spent * _rows_per_step(stage), spent * _step_flops(node),
            np.nan_to_num(heldout[:, i]), np.nan_to_num(retain[:, i]),
        )
        for i, rate in enumerate(rates)
    ]  # fmt: skip


def _searched(node: Node, tried: JsonObject, prompts: np.ndarray, seeds: int) -> list[Configuration]:
    """Return one population of a search, each rate with the half of the facts that proposed it."""
    mend = f"remove {node.directory} and run again to compute it anew"
    check("points" in tried, f"{node.directory}: an earlier version's search, which says not what it tried; {mend}")
    points, part = [Point(**point) for point in tried["points"]], node.subnode(tried["part"])
    found = _configurations(dataclasses.replace(part, settings=node.settings.population(points)), prompts, seeds)
    label = f"{attack_name(node)}: {points[0].optimizer}, batch {points[0].batch}"
    return [
        dataclasses.replace(c, name=label, proposed_by=by) for c, by in zip(found, tried["proposed_by"], strict=True)
    ]


def attack_name(node: Node) -> str:
    """Return what an attack is called in tables, whatever it attacks."""
    name, on, _ = node.stage.rpartition("-on-")
    return name if on else node.stage


def _variant(node: Node, variant: str, prompts: np.ndarray, seeds: int) -> list[Configuration]:
    """Return what a variant of an attack without training did; one without chance does the same to every seed."""
    stage: UntrainedAttack = node.settings
    labels = [stage.label(variant, seed) for seed in range(stage.draws())]
    rows = {(row["kind"], row["member"]): row for row in node.rows()}
    if not all((FACTS, label) in rows for label in labels):  # its numbers are not finite
        return []
    heldout = np.stack([np.asarray(rows[FACTS, label]["correct"], float) / prompts for label in labels])[:, None]
    retain = np.array([[rows["evaluation", label]["retain"]] for label in labels], float)
    if stage.draws() == 1:
        heldout, retain = (np.repeat(x, seeds, axis=0) for x in (heldout, retain))
    spent = Spent(**node.result().get("spent", {}).get(variant, {}))
    steps, read, flops = (np.array([float(amount)]) for amount in (0, spent.rows, spent.flops))
    identity = attack_id(stage, **stage.variants()[variant])
    return [Configuration(identity, variant, math.nan, steps, read, flops, heldout, retain)]


def _rows_per_step(stage: Relearn) -> int:
    return stage.rows_per_step() if isinstance(stage, Attack) else stage.batch


def _step_flops(node: Node) -> float:
    """Return the FLOPs of one attacker's step, from the ledger of all."""
    result, stage = node.result(), node.settings
    stopped = result["diverged_at"].values()
    steps = (result["members"] - len(stopped)) * stage.steps + sum(stopped)
    spent = node.ledger()["flops"]
    return (spent["attack"] + spent.get("teacher", 0.0)) / max(steps, 1)


def budgets(models: Mapping[str, AttackedModel]) -> list[Budget]:
    """Return the budgets of the tables: what the first attack that trains had spent when it was measured."""
    trained = (c for model in models.values() for c in (*model.configurations, *model.record) if len(c.steps) > 1)
    first = next(trained, None)
    if first is None:
        return [("steps", 0.0)]
    return [(axis, float(amount)) for axis in AXES for amount in first.spent(axis) if amount > 0]


def summary(models: Mapping[str, AttackedModel], scale: Scale, oracle: str | None = None) -> CatalogueSummary:
    """Return the catalogue's part of a run's summary.

    Args:
      oracle: the model to whose attacker's compute others' is compared.
    """
    limits, other = budgets(models), models.get(oracle or "")
    return {
        "ability": ABILITY,
        "budgets": [{"axis": axis, "amount": amount} for axis, amount in limits],
        "levels": LEVELS,
        "models": {
            name: _model(model, limits, scale, _slowdown(model, other, scale)) for name, model in models.items()
        },
    }


def _slowdown(model: AttackedModel, oracle: AttackedModel | None, scale: Scale) -> list[SlowdownSummary]:
    """Return for each level the attacker's compute, and its ratio to what the oracle's attacker needs."""
    own = costs(model.spending, LEVELS, scale)
    shares = ratios(model.spending, oracle.spending if oracle else None, LEVELS, scale)
    return [_level(cost, share) for cost, share in zip(own, shares, strict=True)]


def _level(cost: Cost, share: Ratio) -> SlowdownSummary:
    high = share.high if math.isfinite(share.high) else None
    return {
        "flops": cost.flops,
        "reached": cost.reached,
        "share": share.value,
        "bound": share.bound,
        "low": share.low,
        "high": high,
    }


def _model(
    model: AttackedModel, limits: Sequence[Budget], scale: Scale, slowdown: list[SlowdownSummary]
) -> AttackedSummary:
    counts = [n for n in TRIALS if n < _trials(model)] + [_trials(model)]
    curves = [expected_best(*trials(model.configurations, model.prompts, half, model.floor), counts) for half in HALVES]
    return {
        "attacks": len({c.attack for c in model.configurations}),
        "trials": _trials(model),
        "seeds": model.seeds,
        "flops": model.flops,
        "floor": model.floor,
        "by_budget": [
            {
                "bounded": _choice(model.worst(limit), scale),
                "unbounded": _choice(model.worst(limit, bounded=False), scale),
                "record": _choice(model.worst(limit, record=True), scale),
                "record_unbounded": _choice(model.worst(limit, bounded=False, record=True), scale),
            }
            for limit in limits
        ],
        "best_so_far": {"trials": counts, "expected": np.mean(curves, axis=0).round(6).tolist()},
        "slowdown": slowdown,
    }


def _trials(model: AttackedModel) -> int:
    return sum(len(c.retain) for c in model.configurations)


def _choice(choice: Choice | None, scale: Scale) -> ChoiceSummary | None:
    if choice is None:
        return None
    low, high = band(choice.scores, scale)
    best, k = choice.winner()
    return {
        "worst": round(choice.scores.value, 6),
        "low": round(low, 6),
        "high": round(high, 6),
        "retain": round(float(choice.retain.mean()), 6),
        "attack": best.name,
        "attack_id": best.attack,
        "learning_rate": None if math.isnan(best.rate) else best.rate,
        "steps": float(best.steps[k]),
    }
