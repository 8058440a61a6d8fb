"""What attackers did to the models of a sweep: one result for each model, however many attacks were tried on it.

A model with the one attack of record has its worst rate. A model with attacks of the catalogue has the worst of all,
bounded by ability: models of one recipe are training seeds of one thing, so for each the attack is chosen by what it
does to the *others*, on every other held-out fact, and reported on the rest of the facts (`statistics.attack_choice`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from distill_jax.io.node import Node
from distill_jax.reports.attack_catalogue import ABILITY, AttackedModel, attacked_models, is_record
from distill_jax.reports.catalogue_types import SweepAttackSummary, WorstCurves
from distill_jax.stages import LossBarrier, Relearn
from distill_jax.stages.relearn import read_attack_rows
from distill_jax.statistics.attack_choice import Choice, Configuration, choose
from distill_jax.statistics.estimates import Scores
from distill_jax.statistics.robustness import attack_table, curves, read_attack


@dataclasses.dataclass(frozen=True)
class Attacked:
    """One model's attacks.

    Attributes:
      id: by which a sweep's page and findings know it.
      summary: the curves that the page draws.
      before, after: held-out scores before the attack and at its end.
      flops: of all that was tried.
    """

    id: str
    summary: SweepAttackSummary
    before: Scores
    after: Scores
    flops: float


def attacks_on(nodes: Mapping[str, Node]) -> dict[str, list[Node]]:
    """Return the attacks on each model by its node's name, finished or not."""
    tried: dict[str, list[Node]] = collections.defaultdict(list)
    for node in nodes.values():
        if not (node.settings.leaves_model or isinstance(node.settings, LossBarrier)) and "start" in node.inputs:
            tried[node.inputs["start"]].append(node)
    return tried


def read_attacks(nodes: Mapping[str, Node], recipes: Mapping[str, str], facts: int) -> dict[str, Attacked]:
    """Return what became of each model whose attacks are all finished, by its node's name.

    Args:
      recipes: node name -> recipe; models of one recipe are training seeds of one thing.
      facts: how many held-out facts there are.
    """
    tried = {name: same for name, same in attacks_on(nodes).items() if all(node.done for node in same)}
    out = {name: _of_record(same[0], facts) for name, same in tried.items() if len(same) == 1 and is_record(same[0])}
    rest = {node.name: node for name, same in tried.items() if name not in out for node in (nodes[name], *same)}
    groups: dict[tuple[str, ...], dict[str, AttackedModel]] = collections.defaultdict(dict)
    for name, model in attacked_models(rest).items():
        # Seeds that met other attackers than the rest have a choice among others.
        groups[(recipes[name], *map(str, sorted(_by_attack(model))))][name] = model
    for seeds in groups.values():
        out |= _worst(seeds, nodes, tried)
    return out


def _of_record(attack: Node, facts: int) -> Attacked:
    """Return what the attack of record did, by itself."""
    outcome = attack.result()
    read = read_attack(read_attack_rows(attack), prompts=outcome.get("prompts_by_fact"), facts=facts)
    drawn = curves(read, outcome.get("diverged_at"))
    summary: SweepAttackSummary = {
        "steps": drawn["steps"],
        "forget_heldout": drawn["forget_heldout"]["worst"],
        "forget_shown": drawn["forget_shown"]["worst"],
        "retain_at_worst": drawn["retain_at_worst"],
        "members": outcome["members"],
        "counted": drawn["counted"],
        "diverged": outcome["diverged"],
    }
    return Attacked(attack.directory.name, summary, read.scores(0), read.scores(-1), _flops([attack]))


def _flops(attacks: Sequence[Node]) -> float:
    return sum(sum(node.ledger()["flops"].values()) for node in attacks)


def _by_attack(model: AttackedModel) -> dict[tuple[str, float], Configuration]:
    """Return all that was tried on a model, by the identity of the attack and its rate."""
    return {(c.attack, c.rate if math.isfinite(c.rate) else 0.0): c for c in (*model.configurations, *model.record)}


def _worst(
    seeds: Mapping[str, AttackedModel], nodes: Mapping[str, Node], tried: Mapping[str, list[Node]]
) -> dict[str, Attacked]:
    """Return the worst case of each training seed of one recipe."""
    models = list(seeds.values())
    each = [_by_attack(model) for model in models]
    pool = [_stacked([attacks[key] for attacks in each]) for key in each[0]]
    prompts, floor = models[0].prompts, float(np.mean([model.floor for model in models]))
    trained = [c for c in pool if len(c.steps) > 1]
    steps = sorted({float(step) for c in trained for step in c.steps}) or [0.0]
    worst = functools.partial(choose, pool, prompts)
    bounded, unbounded = ([worst(("steps", step), end) for step in steps] for end in (floor, -math.inf))
    out = {}
    for s, name in enumerate(seeds):
        before = (trained or pool)[0].heldout[s, 0]
        end = bounded[-1]
        after = before if end is None else end.by_fact[s]  # no attacker keeps ability that was not measured
        ends: SweepAttackSummary = {
            "steps": steps,
            **_curve(bounded, s),
            "unbounded": _curve(unbounded, s),
            "forget_shown": _shown(tried[name], steps),
            "floor": round(floor, 6),
            "ability": ABILITY,
            "won_by": _winners(end, s),
            "won_by_unbounded": _winners(unbounded[-1], s),
            **_members(tried[name], steps),
        }
        first, last = _scores(before, prompts), _scores(after, prompts)
        out[name] = Attacked(nodes[name].directory.name, ends, first, last, _flops(tried[name]))
    return out


def _scores(by_fact: np.ndarray, prompts: np.ndarray) -> Scores:
    each = by_fact[None]
    return Scores(np.average(each, axis=1, weights=prompts), each, prompts, len(prompts))


def _stacked(same: Sequence[Configuration]) -> Configuration:
    """Return an attack on several training seeds as one configuration: each seed the mean over its attackers."""
    heldout, retain = (np.stack([getattr(c, part).mean(axis=0) for c in same]) for part in ("heldout", "retain"))
    return dataclasses.replace(same[0], heldout=heldout, retain=retain)


def _curve(choices: Sequence[Choice | None], s: int) -> WorstCurves:
    """Return the worst case of a seed at each step."""
    chosen = [None if one is None else (float(one.scores.by_seed[s]), float(one.retain[s])) for one in choices]
    heldout, retain = ([None if ends is None else round(ends[i], 6) for ends in chosen] for i in (0, 1))
    return {"forget_heldout": heldout, "retain_at_worst": retain}


def _shown(attacks: Sequence[Node], steps: Sequence[float]) -> list[float | None]:
    """Return the most that any attacker has learned of what it is shown, by each step."""
    tables = [
        attack_table(read_attack_rows(node), "shown")[::2] for node in attacks if isinstance(node.settings, Relearn)
    ]
    ends = [
        [np.nanmean(table[:, :, k], axis=0).max() for at, table in tables for k, when in enumerate(at) if when <= step]
        for step in steps
    ]
    return [round(float(max(values)), 6) if values else None for values in ends]


def _winners(choice: Choice | None, s: int) -> list[str]:
    """Return which attacks were chosen for a seed, one by each half of the facts."""
    chosen = [half[s] for half in choice.chosen] if choice else []
    return list(dict.fromkeys(called(configuration, k) for configuration, k in chosen))


def called(attack: Configuration, k: int) -> str:
    """Return what a reader calls an attack at one of its measurements."""
    if math.isnan(attack.rate):
        return attack.name
    return f"{attack.name} at {attack.rate:g}, step {attack.steps[k]:g}" if attack.steps[k] else "no attack"


class _Members(TypedDict):
    members: int
    counted: list[int]
    diverged: int
    attacks: int


def _members(attacks: Sequence[Node], steps: Sequence[float]) -> _Members:
    results = [node.result() for node in attacks]
    stops = [step for result in results for step in result["diverged_at"].values()]
    members = sum(result["members"] for result in results)
    counted = [members - sum(stop < step for stop in stops) for step in steps]
    return {"members": members, "counted": counted, "diverged": len(stops), "attacks": len(attacks)}
