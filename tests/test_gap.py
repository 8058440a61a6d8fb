"""What takes the gap between a suppressed model and the oracle apart: its config, its leakage and its tokens."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_jax.evals import leakage
from distill_jax.evals.leakage import Logits
from distill_jax.experiment.config_file import load_module
from distill_jax.interop.scoring import log_likelihoods
from distill_jax.io.node import Node
from distill_jax.models import transformer
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.reports import language_gap
from distill_jax.stages import Distill, Unlearn
from tests.programs import finished_once

ROOT = Path(__file__).parents[1]
CONFIG = load_module(ROOT / "configs/language.py")
POSITIONS, VOCAB, ROWS = 400, 30, 20


def draw(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 1, (POSITIONS, VOCAB))
    return values - values.mean(axis=1, keepdims=True)


def logits(values: np.ndarray, targets: np.ndarray | None = None) -> Logits:
    targets = np.zeros(POSITIONS, int) if targets is None else targets
    return Logits(values, targets, np.arange(POSITIONS) * ROWS // POSITIONS)


# The config


def stages(preset: str = "why") -> dict:
    return dict(CONFIG.get_experiment(CONFIG.get_config(preset)).stages)


def changed(a: Distill | Unlearn, b: Distill | Unlearn) -> dict[str, object]:
    """Return the settings of b that differ from a's."""
    before, after = dataclasses.asdict(a), dataclasses.asdict(b)
    return {key: value for key, value in after.items() if value != before[key]}


@pytest.mark.unit
def test_every_control_differs_from_the_student_in_its_cause_alone():
    found = stages()
    student = found["student"]
    assert changed(student, found["student-of-oracle-maxent"]) == {"teacher": "oracle-maxent"}
    assert changed(student, found["student-english"]) == {"data": "retain"}
    assert changed(student, found["student-tight"]) == {"tolerance": 0.01, "steps": 1240}
    # Half of the student's rows are English too; the other half is there, without what the teacher says to it.
    assert changed(student, found["student-uniform"]) == {"data": "retain", "uniform": "forget", "batch": 8}
    assert student.batch == 16
    assert changed(found["maxent"], found["oracle-maxent"]) == {"start": "oracle"}


@pytest.mark.unit
def test_a_longer_attack_begins_as_the_shorter_one():
    """Its rate is constant, so at 60 steps both stand at the same place, and models can be compared there."""
    found = stages()
    short, long = found["relearn-student-uniform"], found["relearn-student"]
    more = changed(short, long)
    assert set(more) == {"start", "steps", "evaluate_steps", "checkpoint_every"} and long.steps == 300
    assert set(short.evaluate_steps) <= set(long.evaluate_steps)
    schedule = long.schedule(long.steps)
    assert {float(schedule(step)) for step in (0, 59, 299)} == {1.0}


# Leakage


@pytest.mark.unit
@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
def test_the_explained_share_is_the_share_that_was_put_in(share):
    """y = √s x + √(1 - s) e with unit variances has R² = s."""
    x, e = draw(0), draw(1)
    y = math.sqrt(share) * x + math.sqrt(1 - share) * e
    found, low, high = leakage.explained(logits(y), [logits(x)], of_context=False)
    assert found == pytest.approx(share, abs=0.03)
    assert low <= found <= high
    assert high - low < 0.1


@pytest.mark.unit
def test_what_tokens_have_everywhere_is_not_context():
    frequency = 3 * draw(2)[:1]
    x, y = logits(draw(0) + frequency), logits(draw(1) + frequency)
    assert leakage.explained(y, [x], of_context=False)[0] > 0.7
    assert leakage.explained(y, [x])[0] < 0.01
    shifted = logits(draw(0) - 2 * frequency)
    assert leakage.explained(shifted, [x])[0] == pytest.approx(1)


@pytest.mark.unit
def test_what_the_naive_model_shows_too_is_taken_off():
    generic, korean = draw(0), draw(1)
    known, naive = logits(generic + korean), logits(generic)
    only_generic, all_of_it = logits(0.1 * generic), logits(0.1 * (generic + korean))
    models = {"known": known, "naive": naive, "generic": only_generic, "all": all_of_it}
    rows = {row["model"]: row for row in leakage.table(models, "known", "naive", 1.0)}
    assert rows["generic"]["r2"] == pytest.approx(0.5, abs=0.03) and rows["generic"]["r2_beyond_naive"] < 1e-6
    assert rows["all"]["r2_beyond_naive"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.unit
def test_the_best_scale_makes_quiet_logits_as_loud_as_they_were():
    loud = 2 * draw(0)
    p = np.exp(loud) / np.exp(loud).sum(axis=1, keepdims=True)
    rng = np.random.default_rng(1)
    targets = np.array([rng.choice(VOCAB, p=row / row.sum()) for row in p])
    nats, scale = leakage.best_scaled(logits(loud / 16, targets))
    assert 12 < scale < 20
    assert nats == pytest.approx(-np.log(p[np.arange(POSITIONS), targets]).mean(), abs=0.02)


@pytest.mark.unit
def test_centred_logits_are_those_of_the_model_at_the_targets_that_count():
    cfg = TransformerConfig(vocab=11, layers=1, hidden=8, mlp=8, heads=2, kv_heads=1, head_dim=4)
    params = jax.tree.map(lambda w: 20 * w, transformer.init(cfg, jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(1, 11, (3, 6))
    segments = np.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    rows = np.stack([tokens, segments, np.zeros_like(tokens)], axis=1).astype(np.int32)
    found = leakage.centred_logits(cfg, params, rows, batch=2)
    counts = [(0, 0), (0, 1), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), *((2, t) for t in range(5))]
    assert found.rows.tolist() == [row for row, _ in counts]
    assert found.targets.tolist() == [tokens[row, t + 1] for row, t in counts]
    np.testing.assert_allclose(found.values.mean(axis=1), 0, atol=1e-5)
    expected = np.asarray(log_likelihoods(cfg, params, tokens, segments))
    nats = np.log(np.exp(found.values).sum(axis=1)) - found.values[np.arange(len(counts)), found.targets]
    np.testing.assert_allclose(nats, [-expected[at] for at in counts], atol=1e-4)


# Tokens to equal bits


@pytest.mark.unit
@pytest.mark.parametrize(
    ("goal", "tokens"), [(3.0, 0), (2.5, 500), (2.0, 1000), (1.75, 2000), (1.5, 3000), (1.4, math.inf)]
)
def test_tokens_are_read_off_the_curve(goal, tokens):
    """3 bits at the start, 2 after 10 steps of 100 tokens, 1.5 after 30."""
    assert language_gap.tokens_to([0, 10, 30], np.array([3.0, 2.0, 1.5]), goal, 100) == pytest.approx(tokens)


def attack(workdir: Path, model: str, bits: dict[tuple[float, int], list[float]]) -> None:
    """Finish an attack: bits at the steps 0, 10, ... of each (rate, seed)."""
    name = f"relearn-{model}-0123456789ab"
    node = Node(name, "relearn", None, {}, "0123456789ab", workdir / "nodes" / name)
    node.directory.mkdir(parents=True)
    rates, seeds = (sorted(set(values)) for values in zip(*bits, strict=True))
    settings, start = {"batch": 2, "learning_rates": rates, "seeds": len(seeds)}, workdir / "nodes" / f"{model}-0"
    config = {"name": f"relearn-{model}", "verb": "relearn", "settings": settings, "inputs": {"start": start.name}}
    (node.directory / "config.json").write_text(json.dumps(config))
    start.mkdir()
    (start / "config.json").write_text(json.dumps({"name": model}))
    rows = [
        {"kind": "evaluation", "step": 10 * k, "member": f"lr={rate:g},seed={seed}", "heldout": value}
        for (rate, seed), values in bits.items()
        for k, value in enumerate(values)
    ]
    (node.directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    node.finish({}, {})


@pytest.mark.unit
def test_the_worst_case_of_a_seed_is_its_best_rate_and_never_gets_worse(tmp_path, monkeypatch):
    monkeypatch.setattr(language_gap, "_rows", lambda workdir: "")
    monkeypatch.setattr(language_gap, "Rows", lambda path: type("Rows", (), {"row_length": 50}))
    first, second = (
        {(0.1, 0): [3.0, 1.0, 1.4], (0.01, 0): [3.0, 2.0, 1.2]},
        {(0.1, 1): [3.0, 1.5], (0.01, 1): [3.0, 1.6]},
    )
    attack(tmp_path, "maxent", first | {key: [*bits, 1.1] for key, bits in second.items()})
    attack(tmp_path, "oracle", {(0.1, 0): [3.0, 2.5, 2.0]})
    steps, worst, tokens = language_gap.attacks(tmp_path)["maxent"]
    assert (steps, tokens) == ([0, 10, 20], 100)
    assert worst.tolist() == [[3.0, 1.0, 1.0], [3.0, 1.5, 1.1]]


@pytest.mark.unit
def test_a_workdir_without_the_models_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        language_gap.main([f"--workdir={tmp_path}"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and len(said.splitlines()) == 1
    assert "no finished attack on maxent" in said and "distill-jax run" in said


@pytest.mark.end_to_end
@pytest.mark.thorough
def test_the_sample_runs_through_every_control_to_the_tables(tmp_path_factory, capsys):
    sample = "--config=configs/language.py:why-smoke"
    workdir, _ = finished_once(tmp_path_factory, "why", "run", sample, "--config.relearn.seeds=1")
    language_gap.main([f"--workdir={workdir}", "--at=8", "--bits", "1"])
    told = capsys.readouterr().out
    attacked = [name.removeprefix("relearn-") for name in stages("why-smoke") if name.startswith("relearn-")]
    assert len(attacked) == 8
    first, second = told.split("\n\n")
    for table, names in ((first, attacked), (second, ["reference", *attacked])):
        assert sorted(line.split()[0] for line in table.splitlines()[1:]) == sorted(names)
    assert "nan" not in second and all(line.endswith("never") for line in first.splitlines()[1:])
