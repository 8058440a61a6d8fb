"""The run's summary: every model with its scores, its compute and its attack, as a function of finished nodes."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from distill_jax.config import check
from distill_jax.data.label_errors import label_errors
from distill_jax.data.records import load_manifest
from distill_jax.evals.measure import MEASURES, Measure
from distill_jax.evals.scale import Scale
from distill_jax.experiment.ancestry import ancestry
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.experiment.roles import Role, provenance, role_of
from distill_jax.io.node import ROWS, Node
from distill_jax.perf.ledger import training_flops
from distill_jax.reports import (
    attack_catalogue,
    double_bind_page,
    run_page,
    subliminal_page,
    sweep_page,
    weight_measures,
)
from distill_jax.reports.attacked import Run
from distill_jax.reports.card import provenance_of_this_process, robustness_card
from distill_jax.reports.claims import judge
from distill_jax.reports.claims_attacks import judge_attacks
from distill_jax.reports.claims_release import judge_release
from distill_jax.reports.headline import headline
from distill_jax.reports.model_labels import labels
from distill_jax.reports.premises import Model
from distill_jax.reports.rendering import write_page
from distill_jax.reports.report_file import read_report_file
from distill_jax.reports.report_metadata import report_metadata
from distill_jax.reports.summary_types import AttackSettings, AttackSummary, ModelSummary, RunSummary
from distill_jax.stages import Distill, Unlock
from distill_jax.stages.relearn import read_attack_rows
from distill_jax.statistics.conclusions import Conclusion, to_json
from distill_jax.statistics.estimates import Scores, band
from distill_jax.statistics.robustness import Attack, curves, kept_scores, of_seeds, read_attack
from distill_jax.types import JsonObject

# The kinds of stages that are models.
SHOWN = ("pretrain", "route", "finetune", "import", "unlearn", "distill", "quantise", "lock", "erase")
CAUSES = ("student", "teacher", "evaluation")


@dataclasses.dataclass(frozen=True)
class _FinishedRun:
    """What the finished nodes of a run say, read once.

    Attributes:
      scale: of the run's measure; where it was asked what the model knows, with the score of one that knows nothing.
      described: of the data's manifest, what is evaluated and how many facts there are.
      facts: {"shown", "heldout"}: counted, as answers of one fact hang together; 0 of text, which has no such items.
      knowledge: the node that asked what the model knows.
      attacks: {model: the nodes that attack it}; curves: {model: its attack by the weights that it keeps}.
    """

    nodes: Mapping[str, Node]
    scale: Scale
    described: Mapping[str, Any]
    facts: Mapping[str, int]
    knowledge: Node | None
    attacks: Mapping[str, Sequence[Node]]
    curves: Mapping[str, Mapping[str, Attack]]

    @classmethod
    def read(cls, nodes: Mapping[str, Node], measure: type[Measure], manifest: JsonObject) -> Self:
        knowledge = next((node for node in nodes.values() if node.verb == "knowledge"), None)
        scale = measure.scale
        if knowledge:
            scale = dataclasses.replace(scale, chance_level=knowledge.result()["nothing"])
        described = measure.described(manifest)
        facts = described["facts"] if scale.is_share else {"shown": 0, "heldout": 0}
        attacks: dict[str, list[Node]] = {}
        for node in (n for n in nodes.values() if n.verb == "relearn"):
            attacks.setdefault(node.inputs["start"], []).append(node)
        curves = {n.name: _attacks(attacks.get(n.name, []), scale, facts) for n in nodes.values() if n.verb in SHOWN}
        return cls(nodes, scale, described, facts, knowledge, attacks, curves)

    @property
    def first_attack(self) -> Sequence[Node]:
        """The nodes that attack the first model; all models are attacked alike."""
        return next(iter(self.attacks.values()), [])

    def attacks_on(self, model: str) -> Sequence[Node]:
        return self.attacks.get(model, [])


def summarise(experiment: CheckedExperiment, nodes: Mapping[str, Node], identity: str) -> RunSummary:
    """Return the summary that `report/summary.json` holds; the same nodes give the same summary."""
    manifest = load_manifest(nodes["data"].sealed(ROWS).parent)
    run = _FinishedRun.read(nodes, MEASURES[experiment.data.MEASURE], manifest)
    models = _models(run)
    subjects = _subjects(run, models)
    attacked = attack_catalogue.attacked_models(nodes)
    if run.knowledge:
        _note_release(models, subjects, run.scale)
    summary = {
        "experiment": experiment.name,
        "description": experiment.description,
        "identity": identity,
        "measure": run.scale.key,
        **run.described,
        **({"label_errors": errors} if (errors := label_errors(manifest)) else {}),
        "attack": _attack_settings(run.first_attack),
        "models": models,
        "headline": headline(subjects, run.scale),
        "conclusions": [to_json(conclusion) for conclusion in _conclusions(run, subjects, attacked)],
    }
    if attacked:
        oracle = _oracle(nodes)
        summary["attack_catalogue"] = attack_catalogue.summary(attacked, run.scale, oracle.name if oracle else None)
    if compared := weight_measures.summary(nodes, models, run.scale):
        summary["weights"] = compared
    if run.knowledge:
        summary["card"] = robustness_card(cast(RunSummary, summary), experiment, nodes)
    return cast(RunSummary, summary)


def _models(run: _FinishedRun) -> list[ModelSummary]:
    """Return the summary of each model that is shown."""
    shown = [run.nodes[name] for name in run.curves]
    models = [_model(n, run.nodes, run.attacks_on(n.name), run.curves[n.name], run.scale) for n in shown]
    named = labels({node.name: provenance(node, run.nodes) for node in shown})
    for model in models:
        model["label"] = named[model["name"]]
    return models


def _subjects(run: _FinishedRun, models: Sequence[ModelSummary]) -> list[Model]:
    """Return the models as conclusions need them; of one to be released an attacker may stop at any step."""
    asked = sum(run.described["evaluated"][f"forget_{half}"] for half in run.facts)
    count = min(sum(run.facts.values()), asked)
    subjects = [Model.of(m, run.curves[m["name"]], count, _kept(run.attacks_on(m["name"]))) for m in models]
    subjects = [dataclasses.replace(one, unlocked=_unlocked(one.name, run.nodes)) for one in subjects]
    return [subject.at_worst(run.scale) for subject in subjects] if run.knowledge else subjects


def _note_release(models: Sequence[ModelSummary], subjects: Sequence[Model], scale: Scale) -> None:
    """Note in the summaries what only a card has: how sure the retain score is, and the attack's worst step."""
    for model, subject in zip(models, subjects, strict=True):
        model["retain_interval"] = None if subject.kept is None else list(band(subject.kept, scale))
        if attack := model["attack"]:
            attack["worst_step"] = subject.worst_step


def _conclusions(
    run: _FinishedRun, subjects: Sequence[Model], attacked: Mapping[str, attack_catalogue.AttackedModel]
) -> list[Conclusion]:
    """Return what can be concluded: of a release first, then of the methods, then of each attack."""
    conclusions = [*judge(subjects, run.scale), *judge_attacks(Run(subjects, run.scale), attacked)]
    if not run.knowledge:
        return conclusions
    retained = run.described["evaluated"]["retain"] if run.scale.is_share else 0
    chance = _chance(run.knowledge, run.first_attack)
    return [*judge_release(Run(subjects, run.scale, chance), retained), *conclusions]


def _attack_settings(nodes: Sequence[Node]) -> AttackSettings | None:
    """Return what every model was attacked with, from the nodes that attack one; None without an attack."""
    if not nodes:
        return None
    settings = nodes[0].settings
    return {
        "steps": settings.steps,
        "learning_rates": list(dict.fromkeys(rate for node in nodes for rate in node.settings.learning_rates)),
        "seeds": settings.seeds,
        "batch": settings.batch,
        "lora_rank": settings.lora_rank,
    }


def _model(
    node: Node, nodes: Mapping[str, Node], attacks: Sequence[Node], read: Mapping[str, Attack], scale: Scale
) -> ModelSummary:
    result, spent = node.result(), node.ledger()["flops"]
    made = provenance(node, nodes)
    settings = {k: v for k, v in node.settings.as_dict().items() if v != ""}
    settings |= {} if made.alpha is None else {"alpha": made.alpha, "beta": made.beta}
    oracle = _oracle(nodes)
    spent_on_oracle = lineage_flops(oracle, nodes) if oracle else 0.0  # nothing on a published one
    against = lineage_flops(node, nodes) / spent_on_oracle if spent_on_oracle else None
    passed = first_passage(node, oracle, nodes, scale) if oracle else None
    return {
        "name": node.name,
        "label": node.name,
        "stage": node.verb,
        "role": made.role,
        "method": made.method,
        "settings": settings,
        "seeds": attacks[0].settings.seeds if attacks else 1,
        "retain": result["retain"],
        "forget": result["forget"],
        "by_group": result["by_group"],
        "steps": result["steps"],
        # Only a student that stops when its retain ability is back has a goal to reach.
        "recovered": result["recovered"] if isinstance(node.settings, Distill) and node.settings.stop else None,
        "flops": {cause: spent.get(cause, 0.0) for cause in CAUSES},
        "diverged": bool(result.get("diverged", False)),
        "compute_vs_oracle": against,
        "compute_vs_first_passage": against / passed if against is not None and passed else None,
        "attack": _attack(attacks, read, scale) if attacks else None,
    }


def _oracle(nodes: Mapping[str, Node]) -> Node | None:
    return next((node for node in nodes.values() if role_of(node, nodes) is Role.ORACLE), None)


def lineage_flops(node: Node, nodes: Mapping[str, Node]) -> float:
    """Return the student and teacher FLOPs of a node and of all it was made from.

    The reference is left out of what others were made from: it is the model that exists already and is to be mended.
    """
    past = [nodes[name] for name in ancestry([node.name], nodes)]
    billed = [n for n in past if n.name == node.name or role_of(n, nodes) is not Role.REFERENCE]
    return sum(training_flops(n.ledger()["flops"]) for n in billed)


def first_passage(node: Node, oracle: Node, nodes: Mapping[str, Node], scale: Scale) -> float | None:
    """Return the share of its schedule after which the oracle first had the retain score that a student stops at.

    None of what has no such goal, where the oracle never had it, and where it was not trained here. The oracle is
    evaluated now and then, so the share is too large by at most the steps between two evaluations.
    """
    if not isinstance(node.settings, Distill) or not node.settings.stop or not training_flops(oracle.ledger()["flops"]):
        return None
    goal = scale.goal(nodes[node.inputs["teacher"]].result()["retain"], node.settings.tolerance)
    evaluations = [
        row for row in oracle.rows() if row["kind"] == "evaluation" and row["retain"] is not None and row["step"]
    ]
    reached = (row["step"] for row in evaluations if scale.reaches(np.array(row["retain"]), np.array(goal)))
    step = next(reached, None)
    return step / oracle.settings.steps if step else None


def _kept(nodes: Sequence[Node]) -> Scores | None:
    """Return a model's scores on each item of what is to be retained, as its attack recorded them beforehand."""
    asked = [(node, node.result().get("prompts_by_kept_fact")) for node in nodes]
    return next((kept_scores(read_attack_rows(node), prompts) for node, prompts in asked if prompts), None)


def _unlocked(model: str, nodes: Mapping[str, Node]) -> Scores | None:
    """Return a model's scores on each held-out fact behind a password; None where it was not asked so."""
    asked = (node for node in nodes.values() if node.verb == Unlock.kind and node.inputs["start"] == model)
    result = next((node.result() for node in asked), {})
    if "by_fact" not in result:
        return None
    prompts = np.array(result["prompts_by_fact"], float)
    return Scores.of_facts(np.array(result["by_fact"]) / prompts, prompts)


def _chance(known: Node, attacks: Sequence[Node]) -> Scores | None:
    """Return the scores on each held-out document of one that knows nothing; None where they are not recorded."""
    by_fact = np.array(known.result().get("nothing_by_fact") or [])
    prompts = np.array(attacks[0].result().get("prompts_by_fact") or [] if attacks else [], float)
    if not by_fact.size or len(by_fact) != len(prompts):
        return None
    return Scores.of_facts(by_fact, prompts)


def _attacks(nodes: Sequence[Node], scale: Scale, facts: Mapping[str, int]) -> dict[str, Attack]:
    """Read the attack on one model, whose learning rates may be nodes of their own, by the weights that it keeps."""
    by_weights: dict[str, list[Node]] = {}
    for node in nodes:
        by_weights.setdefault(node.settings.weights, []).append(node)
    read = {}
    for kind, same in by_weights.items():
        asked = [node.result().get("prompts_by_fact") for node in same]
        prompts = asked[0] if all(asked) else None
        # A seed that not all rates were tried with would have a worst case of fewer rates.
        seeds = min(node.settings.seeds for node in same)
        rows = [row for node in same for row in of_seeds(read_attack_rows(node), seeds)]
        kept = same[0].result().get("prompts_by_kept_fact")
        read[kind] = read_attack(rows, scale, prompts, facts["heldout"], facts["shown"], kept)
    return read


def _attack(nodes: Sequence[Node], read: Mapping[str, Attack], scale: Scale) -> AttackSummary:
    """Sum up the attack on one model, whose kinds of weights stand beside each other."""
    by_weights = {kind: _curves([n for n in nodes if n.settings.weights == kind], read[kind], scale) for kind in read}
    first, *others = by_weights
    apart = {"other_weights": {kind: by_weights[kind] for kind in others}} if others else {}
    return cast(AttackSummary, by_weights[first] | {"weights": first} | apart)


def _curves(nodes: Sequence[Node], attack: Attack, scale: Scale) -> dict[str, Any]:
    results, spent = [node.result() for node in nodes], collections.Counter[str]()
    for node in nodes:
        spent.update(node.ledger()["flops"])
    stops = {member: step for result in results for member, step in result.get("diverged_at", {}).items()}
    drawn = curves(attack, stops, scale)
    return drawn | {key: sum(r[key] for r in results) for key in ("members", "diverged")} | {"flops": dict(spent)}


def write_report(
    experiment: CheckedExperiment, nodes: dict[str, Node], identity: str, workdir: Path, seconds: float
) -> Path:
    """Write `report/summary.json` and `report/index.html`, and return the page's path."""
    summary = summarise(experiment, nodes, identity) | report_metadata(seconds)
    if "card" in summary:
        summary["provenance"] = provenance_of_this_process()
    return run_page.write(summary, workdir / "report")


def read(workdir: Path) -> dict[str, Any]:
    """Return the summary of a finished run, or of a sweep.

    Raises:
      ConfigError: if the directory holds neither, or it was changed since.
    """
    swept = workdir / "report" / "sweep.json"
    source = swept if swept.is_file() else workdir / "report" / "summary.json"
    check(source.is_file(), f"--workdir={workdir} has no report/summary.json: `distill-jax run` finishes a run first")
    return read_report_file(source)


def redraw(workdir: Path) -> Path:
    """Draw the page again from the summary of a finished run, or of a sweep; ConfigError if there is none."""
    summary, swept = read(workdir), (workdir / "report" / "sweep.json").is_file()
    pages = {"subliminal": subliminal_page, "double bind": double_bind_page}
    if swept:
        return write_page(sweep_page.render, summary, workdir / "report" / "sweep.json")
    if page := pages.get(summary.get("page", "")):
        return write_page(page.render, summary, workdir / "report" / "summary.json")
    return run_page.write(summary, workdir / "report")
