"""The package from Python: what `import distill_jax` offers does what the commands do."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

import distill_jax
from distill_jax.data.text.text_config import SAMPLES, TextConfig
from distill_jax.interop import scoring
from distill_jax.interop.rows import Inference
from distill_jax.shipped import TINY
from distill_jax.stages import Relearn
from tests.forked_preparation import quick_preparation

ROOT = Path(__file__).parents[1]
MODEL = TINY / "choices" / "model"


@pytest.mark.unit
def test_every_name_is_there_and_no_other():
    assert [name for name in distill_jax.__all__ if getattr(distill_jax, name).__doc__ is None] == []
    assert dir(distill_jax) == distill_jax.__all__
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        distill_jax.distil  # noqa: B018


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"relearn.stepz": 5}, "relearn.stepz: no such setting .did you mean 'steps'"),
        ({"relearn.steps": "many"}, "relearn.steps = 'many': expected int, got str"),
        ({"relearn.steps": None}, "relearn.steps = None: expected int, got NoneType"),
        ({"relearn": 3}, "relearn = 3: expected a section, got int"),
        ({"undo.alphas": (0.2, "a")}, r"config.undo.alphas\[1\] = 'a': expected number, got str"),
        ({"relearn.steps": 0}, "steps = 0"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_before_anything_is_written(settings, says, tmp_path):
    with pytest.raises(distill_jax.ConfigError, match=says):
        distill_jax.open_run("arithmetic:smoke", tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.unit
def test_settings_of_a_run_reach_its_nodes(tmp_path):
    run = distill_jax.open_run("arithmetic:smoke", tmp_path, {"relearn.steps": 9, "relearn.evaluate_steps": (0, 9)})
    settings = run.nodes["relearn-maxent"].settings
    assert (settings.steps, settings.evaluate_steps) == (9, (0, 9))
    assert not any(node.done for node in run.nodes.values())
    with pytest.raises(distill_jax.ConfigError, match=r"has no report/summary\.json"):
        run.summary()


@pytest.mark.unit
def test_rows_in_memory_score_as_rows_of_a_file_do(tmp_path):
    rows = [{"text": "The cell divides.", "id": 7}, {"tokens": [5, 9, 30]}]
    (tmp_path / "in").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scoring.score(MODEL, tmp_path / "in", tmp_path / "out", Inference(batch=2))
    written = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert distill_jax.score(MODEL, rows, batch=2) == written
    assert distill_jax.score(MODEL, ["The cell divides."], batch=2)[0]["tokens"] == written[0]["tokens"]
    with pytest.raises(distill_jax.ConfigError, match=r"row 1: .*must lie in 0 \.\. 299"):
        distill_jax.score(MODEL, [{"tokens": [1]}, {"tokens": [300]}])


@pytest.mark.unit
def test_an_attack_that_does_not_fit_is_refused(tmp_path):
    texts = {"retain": f"{SAMPLES}/sample_english.txt", "forget": f"{SAMPLES}/sample_korean.txt"}
    data = TextConfig(**texts, vocabulary=str(MODEL))
    with pytest.raises(distill_jax.ConfigError, match=r"data.row_length = 2048: .* reads 340 tokens"):
        distill_jax.attack(MODEL, data, tmp_path / "run", Relearn(steps=500))
    short = TextConfig(**texts, vocabulary=str(MODEL), row_length=340)
    with pytest.raises(distill_jax.ConfigError, match="data = 'shown': these data have no such set"):
        distill_jax.attack(MODEL, short, tmp_path / "run", Relearn(data="shown", steps=500))
    # What an attacker is shown of text has no name of its own, and none need be known.
    assert distill_jax.attack(MODEL, short, tmp_path / "run", Relearn(steps=500)).nodes["relearn-model"]
    assert not (tmp_path / "run").exists()


@pytest.mark.end_to_end
def test_the_example_of_an_attack(tmp_path, capsys):
    """As a user runs it; a random model gains on the text that it is attacked with, and there is a report."""
    with quick_preparation():
        summary = runpy.run_path(str(ROOT / "examples/attack_a_model.py"))["main"](str(tmp_path / "run"))
    (model,) = summary["models"]
    assert summary["attack"]["learning_rates"] == [1e-2, 1e-3] and model["name"] == "model"
    rows = (tmp_path / "run/nodes").glob("relearn-model-*/metrics.jsonl")
    shown = [row["shown"] for row in map(json.loads, next(rows).read_text().splitlines()) if "shown" in row]
    assert len(shown) == 4 and min(shown[2:]) < min(shown[:2])  # two learning rates, before and after
    assert (tmp_path / "run/report/index.html").is_file() and "log p = " in capsys.readouterr().out


@pytest.mark.unit
def test_a_setting_that_nothing_reads_is_refused(tmp_path):
    """Of a section whose stages a preset leaves out; not what says nothing new, nor what the run reads."""
    with pytest.raises(
        distill_jax.ConfigError, match=r"graddiff\.steps = 5: nothing of --config=arithmetic:smoke reads it"
    ):
        distill_jax.open_run("arithmetic:smoke", tmp_path, {"graddiff.steps": 5})
    distill_jax.open_run("arithmetic:smoke,full", tmp_path, {"graddiff.steps": 5})
    steps = distill_jax.open_run("arithmetic:smoke", tmp_path).experiment.stages["reference"].steps
    quiet = {"run.progress_seconds": 1.0, "description": "mine", "reference.steps": steps}
    distill_jax.open_run("arithmetic:smoke", tmp_path, quiet)
