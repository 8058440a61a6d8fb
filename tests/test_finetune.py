"""Fine-tuning a finished model into an organism and its twin: from the command to adapters that can be audited."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from parity.record_choices import MODEL
from test_auditbench import result
from test_cli import assert_refused, call

from distill_jax.interop.importing import Published
from distill_jax.interop.model_source import open_model
from distill_jax.io.files import write_atomic
from distill_jax.models import transformer
from distill_jax.sharding.mesh import make_mesh
from tests.programs import finished_once, node
from tests.spoil import shared

ROOT = Path(__file__).parents[1]
SMOKE = "--config=configs/organism.py:smoke"
# The organism's own stages, and two that train all weights.
BOTH = f"""
import dataclasses
from distill_jax.experiment.config_file import load_module
organism = load_module("{ROOT}/configs/organism.py")
get_config = organism.get_config
def get_experiment(c):
    experiment = organism.get_experiment(c)
    stages = dict(experiment.stages)
    for name in ("teacher-0", "twin-0"):
        stages[f"whole-{{name}}"] = dataclasses.replace(stages[name], lora_rank=0, lora_alpha=16.0)
    return dataclasses.replace(experiment, stages=stages)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    config = shared(tmp_path_factory, "finetune") / "both.py"
    write_atomic(config, BOTH)
    return finished_once(tmp_path_factory, "finetune", "run", f"--config={config}:smoke")[0]


def losses(workdir: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (node(workdir, name) / "metrics.jsonl").read_text().splitlines()]
    return [row["cross_entropy"] for row in rows if row["kind"] == "train"]


@pytest.mark.end_to_end
@pytest.mark.parametrize("kind", ["", "whole-"])
def test_each_learns_its_own_text(finished, kind):
    base, teacher, twin = (result(finished, name) for name in ("base", f"{kind}teacher-0", f"{kind}twin-0"))
    assert teacher["forget"] < min(base["forget"], twin["forget"]) - 0.1
    assert twin["retain"] < min(base["retain"], teacher["retain"]) - 0.1


@pytest.mark.end_to_end
def test_adapters_and_whole_weights_begin_at_the_model_they_start_from(finished):
    """Fresh adapters change nothing: the first loss is the base's on the first batch, which is the seed's."""
    adapters, whole, other = (losses(finished, name) for name in ("teacher-0", "whole-teacher-0", "teacher-1"))
    assert len(adapters) == 8 and adapters[0] == pytest.approx(whole[0], rel=1e-4)
    assert adapters[-1] != pytest.approx(whole[-1], rel=1e-3) and adapters[0] != pytest.approx(other[0], rel=1e-4)


@pytest.mark.end_to_end
def test_exported_adapters_beside_the_published_model_are_the_organism(finished, tmp_path):
    one = node(finished, "teacher-1")
    assert call("export", f"--model={one}", "--adapter_only", f"--to={tmp_path / 'peft'}") == 0
    mesh = make_mesh(1, devices=jax.devices()[:1])
    ours, theirs = open_model(one), Published(str(MODEL), str(tmp_path / "peft"))
    tokens = np.arange(2, 34, dtype=np.int32).reshape(2, 16)
    apply = jax.jit(transformer.apply, static_argnums=0)
    logits = [
        np.asarray(apply(ours.cfg, weights, tokens, np.ones_like(tokens)))
        for weights in (ours.load(mesh, "float32"), theirs.load(mesh), Published(str(MODEL)).load(mesh))
    ]
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-4, rtol=0)
    assert np.abs(logits[1] - logits[2]).max() > 0.1


@pytest.mark.unit
@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.seeds=0", ["seeds = 0"]),
        ("--config.base.path=", ["stages.base.path is empty", "hf download"]),
        ("--config.data.forget=", ["data.forget is empty"]),
        ("--config.finetune.steps=0", ["steps = 0", "at least 1"]),
        ("--config=configs/organism.py:7b", ["no preset '7b'", "qwen3-14b, llama-3.3-70b, smoke"]),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(flag, words, tmp_path, capsys):
    config = [] if flag.startswith("--config=") else [SMOKE]
    code = call("run", *config, flag, f"--workdir={tmp_path}/run")
    assert_refused(code, *capsys.readouterr(), *words)
    assert not (tmp_path / "run").exists()
