"""`run --dry_run` says what a run would take, by the config as it was changed, and writes nothing."""

from __future__ import annotations

import pytest

from distill_jax.main import main

pytestmark = pytest.mark.unit


def test_a_dry_run_names_every_stage_and_writes_nothing(tmp_path, capsys):
    line = [
        "distill-jax",
        "run",
        "--config=smollm2:smoke",
        f"--workdir={tmp_path / 'run'}",
        "--config.undo.steps=(6,9)",
    ]
    assert main([*line, "--dry-run"]) == 0
    out = capsys.readouterr().out
    lines = {row.split()[0]: row for row in out.splitlines() if row.startswith("  ")}
    assert "distill, 6 steps of 4 rows" in lines["undo-0.05"] and "distill, 9 steps" in lines["undo-0.1"]
    assert out.startswith(f"{len(lines)} stages on ") and {"reference", "maxent", "relearn-undo-0.1-lora"} <= set(lines)
    assert "damage.alpha" not in out  # which this config does not have
    assert not (tmp_path / "run").exists()


def test_a_wrong_value_is_refused_before_it_is_forecast(tmp_path, capsys):
    line = ["distill-jax", "run", "--config=smollm2:smoke", f"--workdir={tmp_path / 'run'}", "--dry-run"]
    assert main([*line, "--config.maxent.steps=0"]) == 2
    assert "maxent.steps = 0: must be at least 1" in capsys.readouterr().err
    assert main(["distill-jax", "prepare", "--config=smollm2:smoke", f"--workdir={tmp_path / 'run'}", "--dry-run"]) == 2
    assert "`distill-jax run`" in capsys.readouterr().err
