"""The sweep over methods, robust training, re-initialisations and filters; and one of its chains from end to end."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

import distill_jax
from distill_jax.experiment import sweep_graph
from distill_jax.experiment.config_file import load_module
from distill_jax.experiment.roles import Role, provenance
from distill_jax.experiment.sweep_file import open_sweep
from tests.forked_preparation import quick_preparation

ROOT = Path(__file__).parents[1]
SWEEP = ROOT / "configs/sweeps/robustness_arithmetic.py"
CHAIN = f'''
"""A robust method as the teacher of a student, a student that learns nothing at marked tokens, and gradient routing."""

import dataclasses

from distill_jax.experiment.config_file import load_module
from distill_jax.experiment.experiment import Experiment

arithmetic = load_module("{ROOT}/configs/arithmetic.py")
WANTED = ("reference", "npo", "student-npo", "masked", "routing", "ablated", "routed")


def get_config(arg=""):
    c = arithmetic.get_config("smoke,full")
    c.methods, c.npo.robust = ("npo",), "sam"
    c.data.update(labeller="noisy", false_negative_rate=0.1, label_sets=("filtered", "dropped", "masked"))
    return c


def get_experiment(c):
    stages = {{name: arithmetic.get_experiment(c).stages[name] for name in WANTED}}
    students = {{name: dataclasses.replace(stages[name], stop=False) for name in ("student-npo", "masked")}}
    return Experiment(stages=stages | students)
'''


def models_of(sweep: str, tmp_path: Path) -> set[str]:
    """Return the directories of the models of a sweep's first training seed."""
    file = open_sweep(f"{ROOT}/configs/sweeps/{sweep}")
    points = [point for point in file.points if point["seed"] == 0]
    base, _, arg = file.base.partition(":")
    module = load_module(Path(base))
    swept = sweep_graph.load(file.name, points, module, module.get_config(arg), tmp_path)
    nodes = [node for shard in swept.shards for node in shard.nodes.values()]
    return {node.directory.name for node in nodes if node.settings.leaves_model and node.verb != "quantise"}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("sweep", "models"), [("certificate_arithmetic.py:labelled", 6), ("catalogue_arithmetic.py", 6)]
)
def test_others_ask_models_that_this_sweep_has_made(sweep, models, tmp_path):
    asked, made = models_of(sweep, tmp_path), models_of(SWEEP.name, tmp_path)
    assert len(asked) == models and asked <= made


@pytest.mark.unit
def test_the_parts_of_the_sweep_are_the_whole():
    parts = ("basic", "methods", "robust", "damaged", "filters")
    whole, *each = (open_sweep(f"{SWEEP}{arg}").points for arg in ("", *(f":{part}" for part in parts)))
    assert all(each) and sorted(map(repr, whole)) == sorted(repr(point) for of_part in each for point in of_part)
    with pytest.raises(ValueError, match="no preset or part 'robsut'"):
        open_sweep(f"{SWEEP}:basic,robsut")


@pytest.mark.unit
def test_the_sweep_asks_for_what_it_says(tmp_path):
    """Every model is one of its own, and all share a reference and an oracle; every attack is tried on each."""
    file = open_sweep(f"{SWEEP}:smoke")
    module = load_module(ROOT / "configs/attack_catalogue.py")
    swept = sweep_graph.load(file.name, file.points, module, module.get_config("smoke,full"), tmp_path)
    (shard,) = swept.shards
    set_to = (
        "labels (as set)  filtered: 2 % of documents to retain are taken for ones to forget, 10 % of those to forget"
    )
    assert set_to in sweep_graph.preview(swept)
    attacks = collections.defaultdict(set)
    for node in shard.nodes.values():
        if not node.settings.leaves_model and "start" in node.inputs:
            attacks[node.inputs["start"]].add(node.stage.partition("-on-")[0])
    each = {"adamw", "with-retain", "held-by-kl", "weights"}
    for name, tried in attacks.items():  # beside which each model's distance to the reference is measured
        assert tried == (
            each if shard.nodes[name].stage == "reference" else each | {f"barrier-{shard.nodes[name].stage}"}
        )
    attacked = [shard.nodes[name] for name in attacks]
    assert len({node.identity for node in attacked}) == len(attacked)
    made = [provenance(node, shard.nodes) for node in attacked]
    roles = [one.role for one in made]
    for role in (Role.REFERENCE, Role.ORACLE, Role.PRETRAINED_FILTERED, Role.PRETRAINED_MASKED, Role.FINETUNED):
        assert roles.count(role) == 1, role
    assert roles.count(Role.UNDO) == 6
    assert roles.count(Role.REINITIALISED) == 6
    assert roles.count(Role.FILTERED) == roles.count(Role.TOKEN_FILTERED) == 2  # into a random and a damaged model
    suppressed = [node.settings for node, role in zip(attacked, roles, strict=True) if role is Role.SUPPRESSED]
    assert {(s.method, s.robust) for s in suppressed} >= {("maxent", "sam"), ("npo", "tar"), ("npo", "latent")}
    assert {s.method for s in suppressed} >= set(module.arithmetic.MORE_METHODS)
    assert roles.count(Role.RANDOM_STUDENT) == len(suppressed) - 1  # each but GradAscent is a teacher too
    assert len(open_sweep(str(SWEEP)).points) == 5 * len(file.points)


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_a_robust_method_teaches_a_student_and_marked_tokens_teach_nothing(tmp_path):
    config = tmp_path / "chain.py"
    config.write_text(CHAIN)
    run = distill_jax.open_run(str(config), str(tmp_path / "run"))
    with quick_preparation():
        run.compute()
    models = {model["name"]: model for model in run.summary()["models"]}
    assert set(models) == {"reference", "npo", "student-npo", "masked", "routing", "routed"}
    assert not any(model["diverged"] for model in models.values())
    assert models["student-npo"]["steps"] == models["masked"]["steps"] == 8
    assert models["npo"]["flops"]["student"] == pytest.approx(
        1.5 * models["student-npo"]["flops"]["student"] * 2, rel=0.01
    )  # two sets a step, and a second gradient of one of them
    assert 0 < run.summary()["label_errors"]["filtered"]["false_negative_rate"] < 0.3  # set to 0.1
    assert (models["routed"]["role"], models["routed"]["label"]) == (Role.ROUTED, "Gradient routing")
    lineage = models["routing"]["flops"]["student"] + models["routed"]["flops"]["student"]
    one = models["reference"]["flops"]["student"]
    assert 2.5 * one < lineage < 3 * one  # two sets a step, then one; of what is not the part's one gradient alone
