"""The summary of a sweep: every attacked model with what it took, as a function of finished nodes."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
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
from distill_jax.reports import findings, goodput_summary, sweep_page
from distill_jax.reports.rendering import write_page
from distill_jax.reports.report_metadata import report_metadata
from distill_jax.reports.run_summary import first_passage
from distill_jax.reports.summary_types import AttackSettings, SweepRunSummary, SweepSummary
from distill_jax.reports.sweep_evidence import Sweep
from distill_jax.stages import Quantise
from distill_jax.stages.robust import method_label
from distill_jax.statistics import fits
from distill_jax.statistics.conclusions import to_json
from distill_jax.statistics.robustness import Attack, curves, read_attack

Nodes = Mapping[str, Node]
Spent = dict[str, float]


def write_report(sweep: SweepGraph, workdir: Path) -> Path:
    """Write `report/sweep.json` and the page of what is finished of a sweep, and return the page's path."""
    nodes = {node.directory: node for shard in sweep.shards for node in shard.nodes.values()}
    goodput_summary.write(nodes.values(), workdir)
    return write_page(sweep_page.render, summarise(sweep) | report_metadata(), workdir / "report" / "sweep.json")


def summarise(sweep: SweepGraph) -> SweepSummary:
    """Return the summary that `report/sweep.json` holds; the same nodes give the same summary."""
    variants = _variants(sweep)
    data = next((w.nodes["data"] for w in sweep.shards if w.nodes["data"].done), None)
    manifest = load_manifest(data.sealed(ROWS).parent) if data else {}
    facts = len(manifest.get("facts", {}).get("heldout", ()))
    read: dict[str, Attack] = {}
    runs = [run for shard in sweep.shards for run in _runs(shard, variants, facts, read)]
    results = Sweep(runs, *({name: attack.scores(k) for name, attack in read.items()} for k in (0, -1)))
    attacks = [n for shard in sweep.shards for n in shard.nodes.values() if n.verb == "relearn"]
    finished = {name for shard in sweep.shards for name, node in shard.nodes.items() if node.done}
    summary = {
        "sweep": sweep.name,
        "description": sweep.description,
        "points": {"total": len(sweep.points), "finished": sum(set(names) <= finished for names in sweep.asked)},
        "attack": _attack_settings(attacks[0]) if attacks else None,
        "evaluated": manifest["evaluation"]["groups"] if manifest else {},
        **({"label_errors": errors} if (errors := _label_errors(sweep)) else {}),
        "sharing": _sharing(sweep),
        "runs": runs,
        "fits": fits.fit_all(runs),
        "conclusions": [to_json(one) for one in findings.findings(results)],
    }
    return cast(SweepSummary, summary)


def _label_errors(sweep: SweepGraph) -> list[str]:
    """Return a line for each labeller of the prepared data, on how often it errs there."""
    data = [shard.nodes["data"] for shard in sweep.shards]
    manifests = (load_manifest(node.sealed(ROWS).parent) for node in data if node.done)
    return list(dict.fromkeys(line for one in manifests for line in described_errors(label_errors(one))))


def _attack_settings(attack: Node) -> AttackSettings:
    settings = dataclasses.asdict(attack.settings)
    return cast(AttackSettings, {key: settings[key] for key in settings if key in AttackSettings.__annotations__})


# Settings that a run has fields for, or that only name what is asked.
KNOWN_SETTINGS = {
    "seed",
    "undo.alphas",
    "undo.beta",
    "undo.method",
    "undo.shrink",
    "budget.steps",
    "model.hidden",
    "model.mlp",
}


def _variants(sweep: SweepGraph) -> dict[str, str]:
    """Return for each node that is asked for in which other settings its points differ from the rest, as a text."""
    values: dict[str, set[str]] = {}
    for point in sweep.points:
        for key in {key for other in sweep.points for key in other} - KNOWN_SETTINGS:
            values.setdefault(key, set()).add(repr(point.get(key)))
    varied = sorted(key for key, different in values.items() if len(different) > 1)
    out: dict[str, str] = {}
    for point, names in zip(sweep.points, sweep.asked, strict=True):
        text = ", ".join(f"{key} = {point[key]}" for key in varied if key in point)
        for name in names:
            out.setdefault(name, text)
    return out


def _runs(shard: SweepShard, variants: Mapping[str, str], facts: int, read: dict[str, Attack]) -> list[SweepRunSummary]:
    """Return the finished runs of one model size; their attacks go into `read`, by the runs' ids."""
    nodes: Nodes = shard.nodes
    attacked = [n for n in nodes.values() if n.verb == "relearn" and n.done]
    # What a node's cost is divided by: the attacked models that it had to be computed for, finished or not.
    models = {n.inputs["start"] for n in nodes.values() if n.verb == "relearn"}
    users = collections.Counter(past.name for name in models for past in _billed(nodes[name], nodes))
    oracles = {n.settings.seed: n for n in nodes.values() if role_of(n, nodes) is Role.ORACLE and n.done}
    size = parameter_count(shard.experiment.model)
    runs = []
    for attack in attacked:
        scores = read_attack(attack.rows(), prompts=attack.result().get("prompts_by_fact"), facts=facts)
        read[attack.directory.name] = scores
        runs.append(_run(attack, scores, nodes, users, oracles, size))
    for run in runs:
        if variants.get(run["id"]):
            run["label"] += f" ({variants[run['id']]})"
    return runs


def _run(
    attack: Node, scores: Attack, nodes: Nodes, users: Mapping[str, int], oracles: Mapping[int, Node], size: int
) -> SweepRunSummary:
    node = nodes[attack.inputs["start"]]
    result, settings = node.result(), node.settings
    made, seed = provenance(node, nodes), _training_seed(node, nodes)
    compute = cost(node, nodes, users)
    for way in compute.values():
        way["attack"] = sum(attack.ledger()["flops"].values())
    oracle = oracles.get(seed)
    retraining = training_flops(cost(oracle, nodes, users)["whole"]) if oracle else None
    outcome = attack.result()
    drawn = curves(scores, outcome.get("diverged_at"))
    passed = first_passage(node, oracle, nodes, ACCURACY) if oracle else None
    against = {way: training_flops(spent) / retraining for way, spent in compute.items()} if retraining else None
    return {
        "id": attack.directory.name,
        "label": label(made, getattr(settings, "steps", 0)),
        "kind": made.role,
        "method": made.method,
        "alpha": made.alpha,
        "beta": made.beta,
        "bits": made.bits,
        "rounded": made.rounded,
        "seed": seed,
        "parameters": size,
        "retain": result["retain"],
        "forget": result["forget"],
        "steps": result["steps"],
        "max_steps": getattr(settings, "steps", 0),
        "recovered": result["recovered"] if getattr(settings, "stop", False) else None,
        "diverged": result["diverged"],
        "attack": {
            "steps": drawn["steps"],
            "forget_heldout": drawn["forget_heldout"]["worst"],
            "forget_shown": drawn["forget_shown"]["worst"],
            "retain_at_worst": drawn["retain_at_worst"],
            "members": outcome["members"],
            "counted": drawn["counted"],
            "diverged": outcome["diverged"],
        },
        "compute": compute,
        "vs_retraining": against,
        "vs_first_passage": {way: share / passed for way, share in against.items()} if against and passed else None,
    }


def _training_seed(node: Node, nodes: Nodes) -> int:
    """Return the seed that a model was trained with; rounding has none of its own."""
    while isinstance(node.settings, Quantise):
        node = nodes[node.inputs["start"]]
    return node.settings.seed


def label(made: Provenance, steps: int) -> str:
    """Return what a reader calls a model."""
    if made.rounded:
        return f"INT{made.bits} of {label(dataclasses.replace(made, role=made.rounded, rounded=None), steps)}"
    of = f" of {method_label(made.method)}" if made.method else ""
    match made.role:
        case Role.UNDO:
            return f"UNDO α = {made.alpha:g}, β = {made.beta:g}{of}"
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

    `whole` as if it were made alone; `own` without the nodes that others use too; `amortised` with each node divided by
    the number of its users. The reference is left out of what others were made from: it exists already and is to be
    mended.
    """
    past = _billed(node, nodes)
    return {
        "whole": _sum((n.ledger()["flops"], 1.0) for n in past),
        "own": _sum((n.ledger()["flops"], 1.0) for n in past if users[n.name] <= 1),
        "amortised": _sum((n.ledger()["flops"], 1 / max(users[n.name], 1)) for n in past),
    }


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
