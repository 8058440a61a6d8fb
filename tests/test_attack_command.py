"""Attacking models that somebody unlearned: any number of them, alike, and beside their original if it is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from distill_jax.commands import attack, command_line
from distill_jax.experiment.config_file import load_experiment
from distill_jax.experiment.protection import Files, attack_config, open_subject, protect_config
from distill_jax.main import main
from distill_jax.reports.card import attack_lines
from distill_jax.shipped import TINY
from tests import toy_model
from tests.programs import finished_once
from tests.spoil import shared

RANDOM = str(TINY / "choices" / "model")
GIB = 2**30


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    paths = []
    for side in ("forget", "retain"):
        path = tmp_path / f"{side}.jsonl"
        rows = [{"question": f"Of {side}, what is number {i}?", "answer": str(i)} for i in range(40)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(str(path))
    return paths[0], paths[1]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("line", "models"),
    [
        (["--model=a", "--forget=f", "--model=b"], ("a", "b")),
        (["--model", "a", "--model=b", "--model=c"], ("a", "b", "c")),
        (["--model=a"], ("a",)),
    ],
)
def test_a_model_is_named_as_often_as_there_are(line, models):
    joined = attack._joined(line)
    given = command_line.read("attack", attack.Flags, [*joined, "--forget=f", "--retain=r", "--workdir=w"])
    assert given.flags.model == models and given.words == []


@pytest.mark.unit
def test_all_models_are_attacked_alike_beside_their_baseline(files, tmp_path):
    subject = open_subject(RANDOM)
    others = [open_subject(str(shutil.copytree(RANDOM, tmp_path / name / "model"))) for name in ("one", "two")]
    named, _ = attack_config(others, RANDOM, Files(*files), memory=64 * GIB)
    stages = load_experiment(named.module, named.config).stages
    attacks = {stage.start: stage for name, stage in stages.items() if name.startswith("relearn-")}
    assert set(attacks) == {"reference", "model-1", "model-2"}
    settings = [{k: v for k, v in stage.as_dict().items() if k != "start"} for stage in attacks.values()]
    assert settings[0] == settings[1] == settings[2] and settings[0]["data"] == "forget_shown"
    assert stages["knowledge"].start == "reference" and stages["knowledge"].required
    alone, _ = attack_config([subject], "", Files(*files), memory=64 * GIB)
    stages = load_experiment(alone.module, alone.config).stages
    assert not stages["knowledge"].required  # one that forgot need not know


@pytest.mark.unit
def test_adapters_attack_where_weights_do_not_fit(files):
    subject = open_subject(RANDOM)
    named, said = attack_config([subject], "", Files(*files), memory=0.0005 * GIB)
    assert named.config.attack.lora_rank == 16
    assert any("LoRA adapters of rank 16 train in their place" in line for line in said)
    stages = load_experiment(named.module, named.config).stages
    attacks = [stage for name, stage in stages.items() if name.startswith("relearn-")]
    assert attacks and all(stage.lora_rank == 16 for stage in attacks)


@pytest.mark.unit
def test_adapters_protect_where_weights_do_not_fit(files):
    subject = open_subject(RANDOM)
    named, said = protect_config(subject, Files(*files), "maxent", memory=0.0005 * GIB)
    experiment = load_experiment(named.module, named.config)
    adapted = {name for name, stage in experiment.stages.items() if stage.adapters()}
    assert adapted == {"suppressed", "protected"} | {name for name in experiment.stages if name.startswith("relearn-")}
    assert any("LoRA adapters of rank 16 train in their place" in line for line in said)
    whole, said = protect_config(subject, Files(*files), "maxent", memory=64 * GIB)
    assert not any(stage.adapters() for stage in load_experiment(whole.module, whole.config).stages.values())
    assert whole.config.distill.learning_rate < named.config.distill.learning_rate and len(said) == 1


@pytest.mark.unit
def test_what_came_back_is_printed_with_its_interval():
    heldout = {"worst": [0.0, 0.5], "low": [0.0, 0.4], "high": [0.1, 0.6]}
    attacked = {"steps": [0, 100], "forget_heldout": heldout, "forget_shown": {"worst": [0.0, 0.9]}}
    attacked |= {"retain_at_worst": [0.8, 0.7], "retain_band": {"low": [0.7, 0.6], "high": [0.9, 0.8]}}
    summary = {"measure": "accuracy", "models": [{"label": "mine", "retain": 0.8, "attack": attacked}, {"label": "x"}]}
    (line,) = attack_lines(summary)
    plain = line.replace("\u202f", " ")
    assert "held out 0 % [0 %, 10 %] before any attack, 50 % [40 %, 60 %] at most under it, after 100 of 100" in plain
    assert plain.endswith("retain 80 % before, 70 % [60 %, 80 %] then")


@pytest.mark.unit
def test_models_of_another_shape_are_refused(files, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for path in Path(RANDOM).iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "sliding_window": 16}))
    line = ["distill-jax", "attack", f"--model={RANDOM}", f"--model={other}", f"--workdir={tmp_path / 'run'}"]
    assert main([*line, f"--forget={files[0]}", f"--retain={files[1]}", "--dry_run"]) == 2
    assert "is another model: it has model.sliding_window = 16, not 32" in capsys.readouterr().err


@pytest.mark.unit
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([f"--model={RANDOM}", f"--model={RANDOM}/"], "is named twice; name each model once"),
        ([f"--model={RANDOM}", f"--baseline={RANDOM}"], "is what --model names; leave one out"),
        ([f"--model={RANDOM}", "--config.pretraining_tokens=-1"], "pretraining_tokens = -1"),
    ],
)
def test_what_would_be_compared_with_itself_is_refused(files, tmp_path, capsys, given, says):
    line = ["distill-jax", "attack", *given, f"--workdir={tmp_path / 'run'}", "--dry_run"]
    assert main([*line, f"--forget={files[0]}", f"--retain={files[1]}"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.end_to_end
def test_a_model_is_attacked_beside_its_original(tmp_path_factory):
    """The original knows the facts; the other one, of the same shape, was taught nothing."""
    known, random = (toy_model.shared_toy(tmp_path_factory, steps) for steps in (150, 0))
    base = shared(tmp_path_factory, "attack-files")
    for side, pairs in (("forget", toy_model.CAPITALS), ("retain", toy_model.CURRENCIES)):
        rows = [{"question": question, "answer": answer} for question, answer in pairs]
        (base / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = (f"--model={random}", f"--baseline={known}", *(f"--{s}={base}/{s}.jsonl" for s in ("forget", "retain")))
    settings = ("steps=4", "evaluate_steps=(0,4)", "learning_rates=(0.01,)", "batch=4")
    few = (*(f"--config.attack.{text}" for text in settings), "--config.data.row_length=64")
    workdir, printed = finished_once(tmp_path_factory, "attack", "attack", *given, *few)
    numbers = json.loads((workdir / "report" / "card.json").read_text())
    assert {model["name"]: model["role"] for model in numbers["models"]} == {"reference": "reference", "model": "given"}
    before = {model["name"]: model["attack"]["forget_heldout"]["worst"][0] for model in numbers["models"]}
    assert before["reference"] > 0.5 and before["model"] == 0.0 and numbers["knowledge"]["shown"]
    card = (workdir / "report" / "card.md").read_text()
    assert "| model | what it is | to forget, held out | to retain |\n" in card  # one part a side needs no more columns
    assert "\n\n## How to check it" in card and "for all 1" not in card
    assert {model["attack"]["worst_step"] for model in numbers["models"]} == {4}
    states = {
        one["name"].split(",")[0]: one["state"] for one in numbers["conclusions"] if one["name"].endswith("model")
    }
    assert states["forgets"] == "held" and states["keeps"] == "failed" and states["resists"] == "void"
    assert "model: accuracy held out 0" in printed and "at most under it, after 4 of 4 steps" in printed
