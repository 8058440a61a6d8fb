"""Protecting a model of one's own: from its directory to the card; what is refused before long work."""

from __future__ import annotations

import ast
import collections
import io
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open

from distill_jax.commands import plan
from distill_jax.config import ConfigError
from distill_jax.data import packing
from distill_jax.evals.bits_per_byte import unigram_nats
from distill_jax.evals.scale import BITS_PER_BYTE
from distill_jax.experiment import sweep_graph
from distill_jax.experiment.config_file import load_module
from distill_jax.experiment.named_config import open_config
from distill_jax.experiment.sweep_file import open_sweep
from distill_jax.interop.model_source import open_model, trained_vocabulary
from distill_jax.interop.rows import Rows
from distill_jax.interop.scoring import score_rows
from distill_jax.io import metrics
from distill_jax.main import main
from distill_jax.reports.card import USUAL_STEPS
from distill_jax.shipped import TINY
from distill_jax.stages import knowledge
from tests import toy_model
from tests.programs import finished_once, node
from tests.spoil import shared

RANDOM = str(TINY / "choices" / "model")
FEW = (
    "--config.data.row_length=64", "--config.data.least_heldout=2", "--config.suppress.steps=4",
    "--config.distill.steps=4",
    "--config.distill.evaluate_every=2", "--config.attack.steps=4", "--config.attack.evaluate_steps=(0,4)",
    "--config.attack.learning_rates=(0.01,0.001)",
)  # fmt: skip
SIDES = ("forget", "retain")
CAPITALS, CURRENCIES = ([f"{q} {a}" for q, a in pairs] for pairs in (toy_model.CAPITALS, toy_model.CURRENCIES))


def documents(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return toy_model.shared_toy(tmp_path_factory)


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory) -> tuple[Path, str]:
    base = shared(tmp_path_factory, "protect-files")
    forget, retain = documents(base / "forget.jsonl", CAPITALS), documents(base / "retain.jsonl", CURRENCIES)
    given = (f"--model={toy}", f"--forget={forget}", f"--retain={retain}")
    return finished_once(tmp_path_factory, "protect", "protect", *given, *FEW)


@pytest.mark.end_to_end
def test_a_model_and_two_files_become_a_card(finished):
    workdir, printed = finished
    card = (workdir / "report" / "card.md").read_text()
    numbers = json.loads((workdir / "report" / "card.json").read_text())
    assert f"card: {workdir}/report/card.md" in printed
    assert "](" not in card and "<" not in card.replace("\\<", "")  # no link and no HTML: it is pasted elsewhere
    sections = [line for line in card.splitlines() if line.startswith("## ")]
    assert sections == [
        "## In short", "## What was to be forgotten", "## Before any attack", "## What attacks brought back",
        "## What it cost", "## Attacks that were not tried", "## What is concluded", "## Terms",
        "## How to check it",
    ]  # fmt: skip
    terms = re.findall(r"^- \*\*([^*]+)\*\*: ", card.split("## Terms")[1], re.MULTILINE)
    assert terms == ["MaxEnt", "UNDO", "95 % interval", "FLOPs"]  # of one step under attack none is picked
    assert f"shorter than the usual {USUAL_STEPS} steps" in card
    assert {open_config(f"{name}:questions").config.attack.steps for name in ("protect", "attack")} == {USUAL_STEPS}
    # What is counted is said first, and damage is looked at before anything is attacked.
    counted = f"to forget: {len(CAPITALS)} documents, about {round(0.2 * len(CAPITALS))} of them held out"
    order = [counted, "] damaged  done", "] relearn-reference  step 0/4"]
    assert sorted(order, key=printed.index) == order
    assert (
        "suppressed only; *UNDO α = 0.25*: protected." in card.split("## What was")[0]
    )  # before any sentence has its name
    # Its numbers are those of the nodes.
    reference = json.loads((node(workdir, "reference") / "result.json").read_text())
    assert [model["retain"] for model in numbers["models"] if model["name"] == "reference"] == [reference["retain"]]
    assert f"| untouched | {reference['by_group']['forget/heldout']['bits_per_byte']:.2f} " in card
    attacked = [model for model in numbers["models"] if model["attack"]]
    assert [model["name"] for model in attacked] == ["reference", "suppressed", "protected"]
    assert [budget["steps"] for budget in numbers["budgets"]] == [0, 4]
    assert all(len(model["attack"]["forget_heldout"]["worst"]) == 2 for model in attacked)
    # A table has as many cells in each line as in its head.
    for block in card.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in lines}) <= 1, block


@pytest.mark.end_to_end
def test_the_exported_model_is_the_protected_one(finished, toy):
    workdir, _ = finished
    exported = node(workdir, "export") / "model"
    assert (exported / "tokenizer.json").read_bytes() == (toy / "tokenizer.json").read_bytes()
    models = [open_model(path) for path in (exported, node(workdir, "protected"))]
    scores = [score_rows(model, Rows([("row", {"text": CAPITALS[0]})], model)) for model in models]
    assert scores[0][0]["log_likelihoods"] == pytest.approx(scores[1][0]["log_likelihoods"], abs=1e-5)
    with safe_open(exported / "model.safetensors", "np") as file, safe_open(toy / "model.safetensors", "np") as before:
        assert sorted(file.keys()) == sorted(before.keys())
        assert any(np.any(file.get_tensor(name) != before.get_tensor(name)) for name in file.keys())  # noqa: SIM118


@pytest.mark.end_to_end
def test_damage_that_does_nothing_is_refused_before_it_is_distilled(finished, toy, tmp_path, capsys):
    """A copy from which the goal is reached at once is no student; a larger α that costs something is named."""
    workdir, inputs = tmp_path / "run", finished[0].parent.parent / "protect-files"
    shutil.copytree(finished[0], workdir)
    given = (f"--model={toy}", f"--forget={inputs}/forget.jsonl", f"--retain={inputs}/retain.jsonl")
    line = ["distill-jax", "protect", *given, f"--workdir={workdir}", *FEW]
    assert main([*line, "--config.damage.alpha=0.001"]) == 2
    said = capsys.readouterr().err
    assert "damaged: alpha = 0.001 leaves retain bits per byte" in said and "Traceback" not in said
    (named,) = re.findall(r"--config\.damage\.alpha=([0-9.]+), which leaves ([0-9.]+),", said)
    assert float(named[0]) >= 0.1 and float(named[1]) > float(re.findall(r"goal of distilling is ([0-9.]+)", said)[0])
    assert len(list(workdir.glob("nodes/damaged-*/DONE"))) == 1  # that of the run before


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_adapters_that_were_distilled_are_exported_merged(finished, toy, tmp_path):
    """Where all weights do not fit: the copied run goes on with adapters, to the card and a model that is whole."""
    workdir, inputs = tmp_path / "run", finished[0].parent.parent / "protect-files"
    shutil.copytree(finished[0], workdir)
    given = (f"--model={toy}", f"--forget={inputs}/forget.jsonl", f"--retain={inputs}/retain.jsonl")
    adapters = ("--config.distill.lora_rank=2", "--config.distill.stop=False")
    assert main(["distill-jax", "protect", *given, f"--workdir={workdir}", *FEW, *adapters]) == 0
    protected = json.loads((workdir / "report" / "card.json").read_text())["models"][-1]
    assert protected["name"] == "protected" and protected["attack"] is not None
    results = [json.loads(p.read_text()) for p in workdir.glob("nodes/protected-*/result.json")]
    assert [result["steps"] for result in results if not result["recovered"]] == [4] * len(results)
    sizes = {}
    for path in workdir.glob("nodes/export-*/model/model.safetensors"):
        with safe_open(path, "np") as file:
            sizes[path] = {name: file.get_tensor(name).shape for name in file.keys()}  # noqa: SIM118
    assert len(sizes) == 2 and len({json.dumps(one) for one in sizes.values()}) == 1


@pytest.mark.unit
def test_a_random_model_has_nothing_to_forget(tmp_path, capsys, monkeypatch):
    """Of a model whose every token is as likely as any other, and one that knows the text."""
    rows = np.stack(list(packing.pack([packing.Document(np.arange(3, 13), np.zeros(10, int))] * 6, 32)))
    tokens = np.tile(np.arange(4, 13), 6)
    measure = SimpleNamespace(rows=lambda parts: rows, bytes=lambda parts: 60, scale=BITS_PER_BYTE)
    for nats, knows in ((math.log(300), False), (0.2, True)):
        monkeypatch.setattr(knowledge, "_nats", lambda *_, n=nats: (np.full(6, 9 * n), list(tokens.reshape(6, 9))))
        known = knowledge.of_text(None, None, measure)
        assert known.score == pytest.approx(54 * nats / math.log(2) / 60)
        assert (known.high < known.chance_level) == knows


@pytest.mark.unit
def test_a_table_of_frequencies_is_the_entropy_of_its_tokens():
    tokens = np.array([5, 5, 5, 7, 9, 9])
    counts = collections.Counter(tokens.tolist())
    expected = -sum(n * math.log(n / 6) for n in counts.values())
    assert unigram_nats(tokens)[tokens].sum() == pytest.approx(expected)


@pytest.mark.unit
def test_the_printed_config_says_the_same(tmp_path, capsys):
    for side in SIDES:
        (tmp_path / side).write_text("some text")
    given = [f"--{side}={tmp_path / side}" for side in SIDES]
    line = ["distill-jax", "protect", f"--model={RANDOM}", *given, "--print_config"]
    assert main([*line, "--config.damage.alpha=0.5", "--method=graddiff"]) == 0
    path = tmp_path / "mine.py"
    path.write_text(capsys.readouterr().out)
    config = load_module(path).get_config()
    named = (config.reference.path, config.data.forget, config.data.vocabulary)
    assert named == (RANDOM, f"{tmp_path}/forget", RANDOM)
    assert (config.damage.alpha, config.method, config.data.row_length) == (0.5, "graddiff", 340)
    stages = load_module(path).get_experiment(config).stages
    assert stages["suppressed"].method == "graddiff" and stages["damaged"].alpha == 0.5
    assert set(config) == set(open_config("protect:documents,graddiff").config)
    imported = [name for node in ast.walk(ast.parse(path.read_text())) for name in getattr(node, "names", ())]
    assert {name.name for name in imported} == {"change", "open_config"}


@pytest.mark.unit
def test_the_printed_config_is_edited_and_swept(tmp_path, capsys):
    """By hand a setting is changed, and a sweep beside it varies another: each point suppresses and damages by both."""
    files = [documents(tmp_path / f"{side}.jsonl", [f"{side} text {i}" for i in range(60)]) for side in SIDES]
    given = (f"--model={RANDOM}", f"--forget={files[0]}", f"--retain={files[1]}")
    assert main(["distill-jax", "protect", *given, "--print_config"]) == 0
    printed = capsys.readouterr().out
    path = tmp_path / "mine.py"
    path.write_text(printed.replace("    return config\n", "    config.suppress.steps = 7\n    return config\n", 1))
    sweep = tmp_path / "swept.py"
    sweep.write_text("from distill_jax import axis\n\n\ndef get_sweep(arg=''):\n")
    with sweep.open("a") as file:
        file.write("    return 'mine.py', axis('damage.alpha', 0.3, 0.5)\n")
    found = open_sweep(str(sweep))
    named = open_config(found.base)
    swept = sweep_graph.load("swept", found.points, named.module, named.config, tmp_path / "run")
    nodes = [one for shard in swept.shards for one in shard.nodes.values()]
    assert sorted(one.settings.alpha for one in nodes if one.verb == "perturb") == [0.3, 0.5]
    assert [one.settings.steps for one in nodes if one.verb == "unlearn"] == [7]  # which both share


@pytest.mark.unit
def test_a_model_without_a_tokenizer_is_refused(tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((Path(RANDOM) / name).read_bytes())
    line = ["distill-jax", "protect", f"--model={tmp_path}", "--forget=a.txt", "--retain=b.txt", "--workdir=x"]
    assert main(line) == 2
    assert "has no tokenizer, neither tokenizer.json nor tokenizer.model" in capsys.readouterr().err


@pytest.mark.unit
def test_a_dry_run_runs_nothing(tmp_path, capsys):
    texts = [f"some text {i}" for i in range(60)]
    files = [documents(tmp_path / f"{name}.jsonl", [f"{name} {text}" for text in texts]) for name in SIDES]
    line = ["distill-jax", "protect", f"--model={RANDOM}", f"--forget={files[0]}", f"--retain={files[1]}"]
    assert main([*line, f"--workdir={tmp_path / 'run'}", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "10 stages" in out and "1,000 steps of 8 rows" in out and not (tmp_path / "run" / "nodes").exists()


@pytest.mark.unit
def test_a_shape_that_nothing_says_is_refused():
    named = open_config("protect")
    from distill_jax.experiment.config_file import load_experiment

    with pytest.raises(ConfigError, match=r"config\.model has no shape"):
        load_experiment(named.module, named.config)


@pytest.mark.unit
def test_time_left_is_reckoned_from_stages_that_take_steps(monkeypatch):
    """Reading a model took ten seconds; ten steps take ten seconds each, and two of them are done."""
    now = iter([0.0, 10.0, 10.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(now))
    out = io.StringIO()
    progress = metrics.Progress(2, 100.0, 0.0, out)
    progress.begin("import")
    progress.finish(0.0, "done")
    progress.begin("train")
    for step in range(3):
        progress.step(step, metrics.TrainingSize(10, 1.0, 100.0), "")
    assert out.getvalue().splitlines()[-1].endswith("stage 1:20 left, run 1:20 left")


@pytest.mark.unit
def test_a_model_that_trained_its_vocabulary_has_it(tmp_path):
    """Otherwise what is exported of it reads no text."""
    (tmp_path / "data-1" / "rows").mkdir(parents=True)
    assert trained_vocabulary(tmp_path, {"data": "data-1"}) == ""
    path = tmp_path / "data-1" / "rows" / "vocabulary.model"
    path.write_bytes(b"pieces")
    assert trained_vocabulary(tmp_path, {"data": "data-1"}) == str(path)
    assert trained_vocabulary(tmp_path, {}) == ""  # a node of before kept no such name


@pytest.mark.unit
def test_a_slice_is_planned_as_plan_does(tmp_path, monkeypatch, capsys):
    planned = []
    monkeypatch.setattr(plan, "PLANNING", {})
    monkeypatch.setattr(plan, "print_plan", lambda *given: planned.append(given))
    files = [documents(tmp_path / f"{side}.jsonl", ["some text"]) for side in SIDES]
    line = ["distill-jax", "protect", f"--model={RANDOM}", f"--forget={files[0]}", f"--retain={files[1]}"]
    assert main([*line, "--slice=v5e-16"]) == 0
    ((flags, experiment, prices),) = planned
    assert flags.slice == "v5e-16" and experiment.run.fsdp == -1 and prices.chip_hour["v5e"] > 0
    assert {"suppressed", "protected", "relearn-protected"} <= set(experiment.stages)
    assert main([*line, "--slice=v5e-17"]) == 2 and "v5e-17" in capsys.readouterr().err
