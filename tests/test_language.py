"""The language experiment from the command line: the package's own sample, run to its report, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_cli import assert_refused, call

from distill_jax.config import ConfigError
from distill_jax.data.text.text_config import SAMPLES, TextConfig
from distill_jax.experiment import graph
from distill_jax.experiment.config_file import load_experiment, load_module
from distill_jax.experiment.experiment import Experiment
from distill_jax.main import main
from distill_jax.stages import Distill, Pretrain, Relearn
from tests.programs import environment, finished_once

ROOT = Path(__file__).parents[1]
SMOKE = "--config=configs/language.py:smoke"
FEW = ("--config.methods=('maxent',)", "--config.undo.alphas=(0.6,)", "--config.relearn.seeds=1")


def program(command: str, workdir: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "distill_jax", command, SMOKE, *FEW, f"--workdir={workdir}", *more]
    # Its programs run for milliseconds: leave LLVM's optimiser out.
    env = environment(workdir.parent / "compiled")
    return subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    return finished_once(tmp_path_factory, "language", "run", SMOKE, *FEW)


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the finished run, which other commands may use."""
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.mark.end_to_end
def test_the_sample_runs_to_its_report(finished):
    workdir, said = finished
    assert "report:" in said
    summary = json.loads((workdir / "report/summary.json").read_text())
    assert summary["measure"] == "bits_per_byte"
    names = ["reference", "oracle", "maxent", "student", "undo-0.6"]
    assert [model["name"] for model in summary["models"]] == names
    for model in summary["models"]:
        # 1,024 entries for some two bytes each: an untrained model is near 10 bits a token.
        assert 1 < model["retain"] < 10 and 1 < model["forget"] < 10
        attack = model["attack"]
        assert attack["steps"] == [0, 4, 8]
        assert attack["forget_heldout"]["worst"][0] == pytest.approx(model["forget"], abs=1e-5)
        assert attack["forget_heldout"]["worst"][2] < attack["forget_heldout"]["worst"][0]  # an attack lowers bits
    page = (workdir / "report/index.html").read_text()
    assert "bits per byte" in page and "Can the text be taught back?" in page


@pytest.mark.end_to_end
def test_the_worst_case_is_the_fewest_bits_of_any_rate(finished):
    workdir, _ = finished
    (node,) = (workdir / "nodes").glob("relearn-maxent-*")
    rows = [json.loads(line) for line in (node / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((workdir / "report/summary.json").read_text())
    worst = next(m for m in summary["models"] if m["name"] == "maxent")["attack"]["forget_heldout"]["worst"]
    for step, value in zip((0, 4, 8), worst, strict=True):
        found = [row["heldout"] for row in rows if row["kind"] == "evaluation" and row["step"] == step]
        assert len(found) == 2 and value == pytest.approx(min(found), abs=1e-6)


@pytest.mark.end_to_end
def test_data_shows_what_is_prepared_without_doing_it_again(copy):
    done = program("data", copy, "--examples=1")
    assert done.returncode == 0, done.stderr
    assert "finished before, not computed again: data" in done.stdout
    assert "set all:" in done.stdout and "<bos>" in done.stdout and "0.00 % unknown" in done.stdout


@pytest.mark.unit
def test_a_text_that_changed_is_other_data_and_one_that_moved_is_not(tmp_path, monkeypatch):
    """The node of the data has another name, so no result of the old text is shown for the new."""
    prepared, text = [], tmp_path / "korean.txt"
    monkeypatch.setattr(graph, "execute", lambda nodes, *_: prepared.append(nodes["data"].identity) or sys.exit(0))

    def identify(path: Path) -> None:
        with contextlib.chdir(ROOT), contextlib.suppress(SystemExit):
            main(["distill-jax", "prepare", SMOKE, f"--config.data.forget={path}", f"--workdir={tmp_path}/run"])

    original = SAMPLES / "sample_korean.txt"
    text.write_text(original.read_text())
    identify(original)
    identify(text)
    text.write_text(original.read_text() + "한 줄 더 있다.\n")
    identify(text)
    assert prepared[0] == prepared[1] != prepared[2]


REFUSED = {
    "no text": (["--config=configs/language.py:cpu"], ["data.retain is empty", "--config.data.retain=a.txt"]),
    "no file": ([SMOKE, "--config.data.forget=none.txt"], ["data.forget='none.txt'", "no such file"]),
    "vocabulary": ([SMOKE, "--config.model.vocab=1000"], ["model.vocab = 1000", "1024", "raise"]),
    "methods": ([SMOKE, "--config.methods=('rmu',)"], ["methods = ('rmu',)", "maxent first"]),
    "preset": (["--config=configs/language.py:gpu"], ["no preset 'gpu'", "cpu, why,"]),
    "examples": (["--examples=1", SMOKE], ["--examples", "run has no such flag; only `distill-jax data`"]),
}


@pytest.mark.unit
@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_refused_before_anything_runs(case, tmp_path, capsys):
    given, words = REFUSED[case]
    code = call("run", *given, f"--workdir={tmp_path}/run")
    assert_refused(code, *capsys.readouterr(), *words)
    assert not os.path.exists(tmp_path / "run")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (Pretrain(loss_on="answer"), "stages.a.loss_on = 'answer': text has no answers; choose 'all'"),
        (
            Relearn(start="b", data="filtered"),
            "stages.a.data = 'filtered': these data have no such set; choose one of all",
        ),
        (
            Distill(teacher="b", uniform="korean"),
            "stages.a.uniform = 'korean': these data have no such set; choose one of all",
        ),
    ],
)
def test_a_stage_that_text_has_nothing_for_is_refused(stage, said):
    module = load_module(ROOT / "configs/language.py")
    experiment = Experiment(stages={"a": stage}, data=TextConfig)
    given = SimpleNamespace(get_experiment=lambda _: experiment, __file__="x.py")
    with pytest.raises(ConfigError) as error:
        load_experiment(given, module.get_config("smoke"))
    assert said in str(error.value)
