"""The catalogue of attacks: what each line does to weights and data, who is told apart, and a run from end to end."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.config import ConfigError
from distill_jax.data.feed import Feed
from distill_jax.experiment import graph
from distill_jax.experiment.config_file import load_experiment, load_module
from distill_jax.experiment.experiment import Experiment
from distill_jax.models import transformer
from distill_jax.models.presets import preset
from distill_jax.reports.run_summary import write_report
from distill_jax.stages import Attack, EditWeights, LossBarrier, Pretrain, Relearn, Unlearn
from distill_jax.stages.attacks import catalogue
from distill_jax.stages.attacks.edit_weights import edit_of, prune
from tests.programs import with_data

ROOT = Path(__file__).parents[1]
BASE = {"steps": 4, "batch": 4, "warmup": 0, "evaluate_steps": (0, 4), "learning_rates": (1e-2, 1e-3), "seeds": 2}
BASE |= {"log_every": 1, "loss_on": "answer"}
TRAINED = ("adamw", "held-by-kl", "shrunk-and-perturbed", "prefix-4", "own-answers-random")
TRIED = (*TRAINED, "weights", "few-shot", "steering")


@pytest.mark.unit
def test_pruning_drops_the_smallest_of_every_matrix_and_nothing_else():
    params = jax.jit(transformer.init, static_argnums=0)(preset("cpu"), jax.random.key(0))
    pruned = prune(params, 0.3)
    w, kept = params["layers"]["mlp"]["down"], pruned["layers"]["mlp"]["down"]
    for before, after in zip(np.asarray(w), np.asarray(kept), strict=True):
        gone = after == 0
        assert gone.mean() == pytest.approx(0.3, abs=1e-3) and np.array_equal(after[~gone], before[~gone])
        assert np.abs(before[gone]).max() <= np.abs(before[~gone]).min()
    assert jnp.array_equal(params["embedding"], pruned["embedding"])


@pytest.mark.unit
@pytest.mark.parametrize("name", ["int9", "prune-1.5", "prune", "distil"])
def test_an_edit_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="choose int2 to int8, or prune-"):
        EditWeights(start="model", edits=(name,))
    with pytest.raises(ValueError, match=name):
        edit_of(name)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"optimizer": "adagrad"}, "optimizer = 'adagrad': choose one of adamw, sgd, lion, muon, sign"),
        ({"shrink": 1.0}, "shrink = 1.0"),
        ({"shrink": 0.1, "lora_rank": 2}, "shrink and noise change the weights"),
        ({"hold": "kl"}, "hold = 'kl': does nothing without retain_weight"),
        ({"retain_weight": 1.0, "hold": "l2"}, "hold = 'l2': choose"),
        ({"rows": -1}, "rows = -1"),
        ({"evaluate_steps": (1,)}, "must have 0, the model before the attack"),
    ],
)
def test_settings_that_do_nothing_or_cannot_be_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Attack(start="model", **{**BASE, **settings})


@pytest.mark.unit
def test_attacks_are_told_apart_by_what_they_do_and_not_by_name():
    """What is called alike and does otherwise is another attack; with other rates, seeds or models it is the same."""
    one = Attack(start="maxent", **BASE)
    same = dataclasses.replace(one, start="oracle", seeds=5, learning_rates=(1e-5,))
    other = dataclasses.replace(one, optimizer="lion")
    assert catalogue.attack_id(one) == catalogue.attack_id(same) != catalogue.attack_id(other)
    edit = EditWeights(start="maxent")
    assert catalogue.attack_id(edit, edits="int4") != catalogue.attack_id(edit, edits="int8")
    with pytest.raises(ConfigError, match=r"no attack 'moun' \(did you mean 'muon'\?\)"):
        catalogue.attacks("maxent", ["moun"], BASE)


@pytest.mark.unit
def test_all_lines_of_the_catalogue_do_different_things():
    stages = catalogue.attacks("maxent", catalogue.names(), BASE)
    ids = {catalogue.attack_id(stage) for stage in stages.values()}
    assert len(ids) == len(stages) == len(catalogue.names())


def experiment() -> Any:
    """Return the smoke graph of arithmetic with a suppressed model and the oracle, attacked."""
    arithmetic = load_module(ROOT / "configs" / "arithmetic.py")
    c = arithmetic.get_config("smoke")
    c.data.multiplication_max = 3
    few = {"evaluate_steps": (0, 4), "learning_rates": (1e-2, 1e-3), "seeds": 2, "steps": 4}
    c.relearn.update(**few)
    stages = {
        "reference": Pretrain(data="all", **c.reference),
        "oracle": Pretrain(data="retain", **c.oracle),
        "maxent": Unlearn(start="reference", method="maxent", **c.maxent),
    }
    for name in ("maxent", "oracle"):
        stages[f"relearn-{name}"] = Relearn(start=name, **c.relearn)
        stages |= catalogue.attacks(name, TRIED if name == "maxent" else ("adamw",), BASE)
    stages |= {
        f"barrier-{name}": LossBarrier(start=name, reference="reference", rows=8) for name in ("maxent", "oracle")
    }
    # Called as the catalogue's, and another attack: its rate is the same too.
    stages["adamw-on-maxent-"] = Attack(start="maxent", **BASE, optimizer="sign")
    arithmetic.get_experiment = lambda c: Experiment(stages=stages)
    return load_experiment(arithmetic, c)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Return the nodes, the summary and the page of a small run."""
    checked = experiment()
    workdir = with_data(tmp_path_factory, tmp_path_factory.mktemp("attacks"))
    nodes = graph.build(checked, workdir)
    graph.execute(nodes, checked.model, checked.run, io.StringIO())
    page = write_report(checked, nodes, "identity", workdir, 1.0)
    return nodes, json.loads((workdir / "report" / "summary.json").read_text()), page


@pytest.mark.end_to_end
def test_every_attack_starts_from_the_model_and_goes_elsewhere(attacked):
    """At step 0 an attack measures the model itself; shrunk and perturbed, another one."""
    nodes, _, _ = attacked
    train = {}
    for name in (f"{n}-on-maxent" for n in TRAINED):
        rows = [row for row in nodes[name].rows() if row["kind"] == "evaluation"]
        assert {row["step"] for row in rows} == {0, 4} and len({row["member"] for row in rows}) == 4
        losses = [row for row in nodes[name].rows() if row["kind"] == "train" and row["member"].endswith("seed=0")]
        ordered = sorted(losses, key=lambda r: r["step"])
        train[name] = [row.get("cross_entropy", row.get("forget", row.get("kl"))) for row in ordered]
    first, last = ({name: losses[i] for name, losses in train.items()} for i in (0, -1))
    alike = {first[f"{name}-on-maxent"] for name in ("adamw", "held-by-kl")}
    assert max(alike) - min(alike) < 1e-5 and abs(first["shrunk-and-perturbed-on-maxent"] - max(alike)) > 1e-3
    assert len({round(loss, 6) for loss in last.values()}) == len(last), last
    held = [row["retain"] for row in nodes["held-by-kl-on-maxent"].rows() if row["kind"] == "train"]
    assert abs(held[0]) < 1e-4 < held[-1]  # KL to itself, and then to what it was


@pytest.mark.end_to_end
def test_an_attacker_with_few_rows_sees_no_others(attacked):
    nodes, _, _ = attacked
    path = nodes["data"].directory / "rows" / "forget_shown.array_record"
    feeds = [Feed(path, 4, seed, rows=6) for seed in (1, 2)]
    seen = [{int(i) for step in range(40) for i in feed.indices(step)} for feed in feeds]
    assert [len(s) for s in seen] == [6, 6] and seen[0] != seen[1]
    assert len({int(i) for step in range(40) for i in Feed(path, 4, 1).indices(step)}) > 6


@pytest.mark.end_to_end
def test_the_summary_counts_every_trial_and_the_page_shows_them(attacked):
    nodes, summary, page = attacked
    found = summary["attack_catalogue"]["models"]["maxent"]
    # Six that train, at two rates; six edits, shown to both seeds; prompts of three sizes; ten ways to steer.
    assert found["trials"] == 2 * (6 * 2 + 6 + 3 + 10) and found["attacks"] == 6 + 6 + 3 + 10
    spent = sum(sum(nodes[n].ledger()["flops"].values()) for n in nodes if n.rstrip("-").endswith("-on-maxent"))
    assert found["flops"] == spent
    assert {b["axis"] for b in summary["attack_catalogue"]["budgets"]} == {"steps", "rows", "flops"}
    words = page.read_text()
    assert "the strongest of many attacks" in words and "panel-trials" in words
    claims = {one["name"]: one["state"] for one in summary["conclusions"]}
    assert {"catalogue, as strong: maxent", "catalogue, suppression: maxent"} <= set(claims)
    far = summary["weights"]["models"]
    assert 0 < far["maxent"]["distance"]["all"] < far["oracle"]["distance"]["all"]
    assert "How far are the weights" in words and "open: 2 models are too few to tell an order from chance" in words
