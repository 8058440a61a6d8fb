"""The summary of a sweep: every attacked model with what it took, as a function of finished nodes."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from distill_jax.data.label_errors import described_errors, label_errors
from distill_jax.data.records import load_manifest
from distill_jax.evals.scale import ACCURACY
from distill_jax.experiment.ancestry import ancestry
from distill_jax.experiment.roles import Provenance, Role, provenance, role_of
from distill_jax.experiment.sweep_graph import Sweep as SweepGraph
from distill_jax.experiment.sweep_graph import SweepShard
from distill_jax.io.node import ROWS, Node
from distill_jax.models.transformer import parameter_count
from distill_jax.perf.ledger import CAUSES, training_flops
from distill_jax.reports import findings, goodput_summary, sweep_page, weight_measures
from distill_jax.reports.attack_catalogue import attack_name, is_record
from distill_jax.reports.ranking import rankings
from distill_jax.reports.recipes import SAID, Recipe, differences, recipe_of, varying
from distill_jax.reports.rendering import write_page
from distill_jax.reports.report_metadata import report_metadata
from distill_jax.reports.run_summary import first_passage
from distill_jax.reports.summary_types import AttackSettings, SweepRunSummary, SweepSummary
from distill_jax.reports.sweep_attacks import Attacked, attacks_on, read_attacks
from distill_jax.reports.sweep_evidence import Sweep
from distill_jax.stages import Distill, Quantise, Relearn
from distill_jax.stages.robust import method_label
from distill_jax.statistics import fits
from distill_jax.statistics.conclusions import to_json

Nodes = Mapping[str, Node]
Spent = dict[str, float]


def write_report(sweep: SweepGraph, workdir: Path) -> Path:
    """Write `report/sweep.json` and the page of what is finished of a sweep, and return the page's path."""
    nodes = {node.directory: node for shard in sweep.shards for node in shard.nodes.values()}
    goodput_summary.write(nodes.values(), workdir)
    return write_page(sweep_page.render, summarise(sweep) | report_metadata(), workdir / "report" / "sweep.json")


def summarise(sweep: SweepGraph) -> SweepSummary:
    """Return the summary that `report/sweep.json` holds; the same nodes give the same summary."""
    data = next((w.nodes["data"] for w in sweep.shards if w.nodes["data"].done), None)
    manifest = load_manifest(data.sealed(ROWS).parent) if data else {}
    facts = len(manifest.get("facts", {}).get("heldout", ()))
    runs, attacked, recipes = map(
        list, map(itertools.chain.from_iterable, zip(*(_runs(w, facts) for w in sweep.shards), strict=True))
    )
    _tell_apart(runs, recipes)
    results = Sweep(runs, {one.id: one.before for one in attacked}, {one.id: one.after for one in attacked})
    attacks = [n for shard in sweep.shards for n in shard.nodes.values() if isinstance(n.settings, Relearn)]
    finished = {name for shard in sweep.shards for name, node in shard.nodes.items() if node.done}
    summary = {
        "sweep": sweep.name,
        "description": sweep.description,
        "points": {"total": len(sweep.points), "finished": sum(set(names) <= finished for names in sweep.asked)},
        "attack": _attack_settings(attacks[0]) if attacks else None,
        "attacks": _attacks(sweep),
        "evaluated": manifest["evaluation"]["groups"] if manifest else {},
        **({"label_errors": errors} if (errors := _label_errors(sweep)) else {}),
        "sharing": _sharing(sweep),
        "runs": runs,
        "fits": fits.fit_all(runs),
        "ranking": rankings(results),
        "conclusions": [to_json(one) for one in findings.findings(results)],
    }
    return cast(SweepSummary, summary)


def _attacks(sweep: SweepGraph) -> list[str]:
    """Return what the attacks are called that models met."""
    tried = [node for shard in sweep.shards for same in attacks_on(shard.nodes).values() for node in same]
    return sorted({"relearn" if is_record(node) else attack_name(node) for node in tried})


def _label_errors(sweep: SweepGraph) -> list[str]:
    """Return a line for each labeller of the prepared data, on how often it errs there."""
    data = [shard.nodes["data"] for shard in sweep.shards]
    manifests = (load_manifest(node.sealed(ROWS).parent) for node in data if node.done)
    return list(dict.fromkeys(line for one in manifests for line in described_errors(label_errors(one))))


def _attack_settings(attack: Node) -> AttackSettings:
    settings = dataclasses.asdict(attack.settings)
    return cast(AttackSettings, {key: settings[key] for key in settings if key in AttackSettings.__annotations__})


def _runs(shard: SweepShard, facts: int) -> tuple[list[SweepRunSummary], list[Attacked], list[Recipe]]:
    """Return the runs of one model size whose attacks are finished, what became of them, and their recipes."""
    nodes: Nodes = shard.nodes
    models = attacks_on(nodes)
    recipes = {name: recipe_of(nodes[name], nodes, shard.experiment) for name in models}
    # What a node's cost is divided by: the attacked models that it had to be computed for, finished or not.
    users = collections.Counter(past.name for name in models for past in _billed(nodes[name], nodes))
    oracles = {n.settings.seed: n for n in nodes.values() if role_of(n, nodes) is Role.ORACLE and n.done}
    attacked = read_attacks(nodes, {name: recipe.id for name, recipe in recipes.items()}, facts)
    made = _Made(shard, users, oracles, parameter_count(shard.experiment.model))
    runs = [_run(nodes[name], recipes[name], one, made) for name, one in attacked.items()]
    return runs, list(attacked.values()), [recipes[name] for name in attacked]


def _tell_apart(runs: Sequence[SweepRunSummary], recipes: Sequence[Recipe]) -> None:
    """Give runs the settings in which their recipes differ, and those of one label a text that says in what."""
    names = varying((recipe.settings for recipe in recipes), SAID)
    by_label: dict[str, dict[str, Recipe]] = collections.defaultdict(dict)
    for run, recipe in zip(runs, recipes, strict=True):
        run["settings"] = {name: recipe.settings[name] for name in names if name in recipe.settings}
        by_label[run["label"]][recipe.id] = recipe
    texts = {label: differences(list(same.values())) for label, same in by_label.items() if len(same) > 1}
    for run, recipe in zip(runs, recipes, strict=True):
        if text := texts.get(run["label"], {}).get(recipe.id):
            run["label"] += f" ({text})"


@dataclasses.dataclass(frozen=True)
class _Made:
    """What runs of one model size are described by.

    Attributes:
      users: by node, how many attacked models it was computed for.
      oracles: by training seed.
      size: parameters.
    """

    shard: SweepShard
    users: Mapping[str, int]
    oracles: Mapping[int, Node]
    size: int


def _run(node: Node, recipe: Recipe, attacked: Attacked, among: _Made) -> SweepRunSummary:
    nodes, users = among.shard.nodes, among.users
    result, settings = node.result(), node.settings
    made, seed = provenance(node, nodes), _training_seed(node, nodes)
    compute = cost(node, nodes, users)
    for way in compute.values():
        way["attack"] = attacked.flops
    oracle = among.oracles.get(seed)
    retraining = training_flops(cost(oracle, nodes, users)["whole"]) if oracle else None
    passed = first_passage(node, oracle, nodes, ACCURACY) if oracle else None
    against = {way: training_flops(spent) / retraining for way, spent in compute.items()} if retraining else None
    source = _unrounded(node, nodes)
    return {
        "id": attacked.id,
        "label": label(made, getattr(settings, "steps", 0), recipe.damages),
        "recipe": recipe.id,
        "rounded_recipe": recipe_of(source, nodes, among.shard.experiment).id if source is not node else None,
        "world": recipe.world,
        "labeller": recipe.labeller,
        "kind": made.role,
        "method": made.method,
        "alpha": made.alpha,
        "beta": made.beta,
        "bits": made.bits,
        "rounded": made.rounded,
        "seed": seed,
        "parameters": among.size,
        "retain": result["retain"],
        "forget": result["forget"],
        "steps": result["steps"],
        "max_steps": getattr(settings, "steps", 0),
        "recovered": result["recovered"] if getattr(settings, "stop", False) else None,
        "diverged": result["diverged"],
        "attack": attacked.summary,
        "weights": weight_measures.measured_on(node.name, nodes),
        "compute": compute,
        "vs_retraining": against,
        "vs_first_passage": {way: share / passed for way, share in against.items()} if against and passed else None,
    }


def _training_seed(node: Node, nodes: Nodes) -> int:
    """Return the seed that a model was trained with; rounding has none of its own."""
    return _unrounded(node, nodes).settings.seed


def _unrounded(node: Node, nodes: Nodes) -> Node:
    while isinstance(node.settings, Quantise):
        node = nodes[node.inputs["start"]]
    return node


def label(made: Provenance, steps: int, damages: int = 1) -> str:
    """Return what a reader calls a model.

    Args:
      damages: how often it was damaged on its way.
    """
    if made.rounded:
        return f"INT{made.bits} of {label(dataclasses.replace(made, role=made.rounded, rounded=None), steps, damages)}"
    damage = f"α = {made.alpha or 0:g}, β = {made.beta or 0:g}"
    of = f" of {method_label(made.method)}" if made.method else ""
    match made.role:
        case Role.UNDO:
            return f"UNDO {damage}{of}"
        case Role.REINITIALISED:
            return f"UNDO in part, {damage}{of}" if damages == 1 else f"UNDO in {damages} rounds of {damage}{of}"
        case Role.FINETUNED if made.alpha:
            return f"damaged, {damage}, then trained on retain data{of}"
        case Role.FILTERED | Role.TOKEN_FILTERED if made.alpha:
            return f"{LABELS[made.role]}, into a damaged reference, {damage}"
        case Role.NOISE_ONLY:
            return f"noise without shrinkage, αβ = {(made.alpha or 0) * (made.beta or 0):g}{of}"
        case Role.SUPPRESSED:
            return f"{method_label(made.method)}, suppressed"
        case Role.EQUAL_COMPUTE:
            return f"random student, {steps} steps{of}"
    return f"{LABELS.get(made.role, made.role)}{of}"


LABELS = {
    Role.REFERENCE: "reference (all data)",
    Role.ORACLE: "oracle (retain data only)",
    Role.UNDAMAGED: "α = 0, no damage",
    Role.FILTERED: "filtered, then distilled",
    Role.ROUTED: "gradient routing",
    Role.TOKEN_FILTERED: "distilled, but at marked tokens",
}


def cost(node: Node, nodes: Nodes, users: Mapping[str, int]) -> dict[str, Spent]:
    """Return the FLOPs by cause of a model and all that it was made from, counted in three ways.

    `whole` as if it were made alone, with all of its teacher's passes, although a population runs them once for all of
    its members; `own` without the nodes that others use too; `amortised` with each node divided by the number of its
    users, and a teacher's passes by the students that may share them. The reference is left out of what others were
    made from: it exists already and is to be mended.
    """
    past = _billed(node, nodes)
    return {
        "whole": _sum((n.ledger()["flops"], 1.0) for n in past),
        "own": _sum((n.ledger()["flops"], 1.0) for n in past if users[n.name] <= 1),
        "amortised": _sum((_shared(n), 1 / max(users[n.name], 1)) for n in past),
    }


def _shared(node: Node) -> Spent:
    """Return a node's FLOPs with its part of the passes of a teacher that its population has in common."""
    spent: Spent = node.ledger()["flops"]
    if not isinstance(node.settings, Distill):  # of other stages each member has a frozen model of its own
        return spent
    return spent | {"teacher": spent.get("teacher", 0.0) / node.peers}


def _billed(node: Node, nodes: Nodes) -> list[Node]:
    past = [nodes[name] for name in ancestry([node.name], nodes)]
    return [n for n in past if n.name == node.name or role_of(n, nodes) is not Role.REFERENCE]


def _sum(spent: Iterable[tuple[Spent, float]]) -> Spent:
    total = dict.fromkeys(CAUSES, 0.0)
    for flops, share in spent:
        for cause, count in flops.items():
            total[cause] += share * count
    return total


def _sharing(sweep: SweepGraph) -> dict[str, float]:
    shared = unshared = 0.0
    for shard in sweep.shards:
        spent = {name: sum(n.ledger()["flops"].values()) for name, n in shard.nodes.items() if n.done}
        shared += sum(spent.values())
        for names in sweep.asked_of(shard):
            unshared += sum(spent.get(name, 0.0) for name in ancestry(names, shard.nodes))
    return {"flops_shared": shared, "flops_unshared": unshared}
