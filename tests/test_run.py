"""A whole run, seen from outside: what it leaves behind, what a second one does, and what a killed one costs.

One small experiment is run to its end and shared; a test that changes it works on a copy.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from distill_jax.data.arithmetic import word_vocabulary
from distill_jax.io.files import read_sealed
from distill_jax.main import main
from tests.programs import environment, node
from tests.spoil import shared

ROOT = Path(__file__).parent.parent
CONFIG = "--config=configs/arithmetic.py:smoke"
# Enough steps that some facts are learnt, forgotten and relearnt: a curve of zeros would agree with any other.
# Checkpoints fall between evaluations and between logged steps, where a careless restart would show.
SETTINGS = (
    "--config.data.multiplication_max=3",
    "--config.reference.steps=200",
    "--config.reference.batch=8",
    "--config.reference.checkpoint_every=60",
    "--config.oracle.steps=40",
    "--config.distill.steps=25",
    "--config.distill.evaluate_every=8",
    "--config.distill.checkpoint_every=7",
    "--config.undo.alphas=(0.2,0.9)",
    "--config.relearn.steps=24",
    "--config.relearn.evaluate_steps=(0,8,24)",
    "--config.relearn.checkpoint_every=11",
    "--config.run.progress_seconds=0",  # a line a step, to be killed by
)
MODELS = ("reference", "oracle", "maxent", "student", "undo-0.2", "undo-0.9")
PROOFS = ("checkpoints/final.json", "rows/manifest.json")  # of more files, which are sealed through them
TRAINED = (*MODELS, *(f"relearn-{name}" for name in MODELS))
NODES = {"data", "damaged-0.2", "damaged-0.9", *TRAINED}
TENSORFLOW = ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "clu")
# `python -m distill_jax.main`, which also tells which of these the process has imported by its end.
AND_TELL_IMPORTS = f"""
import sys
from distill_jax.io.files import read_sealed
from distill_jax.main import main
code = main(sys.argv)
print("imported:", *(name for name in {TENSORFLOW} if name in sys.modules))
sys.exit(code)
"""


@functools.cache
class Runs:
    """Start the program, with one compilation cache for all."""

    def __init__(self, base: Path):
        self.base, self.env = base, environment(base / "compiled")

    def start(
        self,
        workdir: Path,
        *more: str,
        command: str = "run",
        config: str = CONFIG,
        program: tuple[str, ...] = ("-m", "distill_jax.main"),
    ) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *program, command, config, *SETTINGS, f"--workdir={workdir}", *more],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, workdir: Path, *more: str, **how: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(workdir, *more, **how)
        try:
            out, err = process.communicate(timeout=900)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def finished_run(base: Path) -> tuple[Path, str]:
    """Run the experiment to its end, once for all test files: its work directory and its output."""
    workdir, said = base / "finished", base / "finished.txt"
    with open(base / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            done = Runs(base)(workdir, program=("-c", AND_TELL_IMPORTS))
            assert done.returncode == 0, done.stderr
            said.write_text(done.stdout)
    return workdir, said.read_text()


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return shared(tmp_path_factory, "runs")


@pytest.fixture(scope="session")
def runs(base) -> Runs:
    return Runs(base)


@pytest.fixture(scope="session")
def finished(base) -> Path:
    return finished_run(base)[0]


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the finished run that a test may spoil."""
    return shutil.copytree(finished, tmp_path / "run")


def names(workdir: Path) -> set[str]:
    return {path.name[:-13] for path in (workdir / "nodes").iterdir()}


def forget(workdir: Path, *wanted: str) -> None:
    """Remove nodes, as if they had never been computed."""
    for name in wanted:
        shutil.rmtree(node(workdir, name))


def rows(workdir: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (node(workdir, name) / "metrics.jsonl").read_text().splitlines()]


def summary(workdir: Path) -> dict[str, Any]:
    """Read the summary without what tells one run from another: when it was and how long it took."""
    found = json.loads((workdir / "report/summary.json").read_text())
    del found["created"], found["duration_seconds"], found["sha256"]
    return found


def state_of_files(workdir: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file of the nodes."""
    files = [path for path in (workdir / "nodes").rglob("*") if path.is_file()]
    return {str(path.relative_to(workdir)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def assert_same_run(one: Path, other: Path) -> None:
    """Fail unless two runs came to the same, number for number and row for row."""
    for name in TRAINED:
        assert rows(one, name) == rows(other, name), name
    for name in NODES:
        assert node(one, name).name == node(other, name).name
        assert json.loads((node(one, name) / "result.json").read_text()) == json.loads(
            (node(other, name) / "result.json").read_text()
        ), name
        ledgers = [json.loads((node(workdir, name) / "ledger.json").read_text()) for workdir in (one, other)]
        assert ledgers[0]["flops"] == ledgers[1]["flops"], name
    assert summary(one) == summary(other)


# What a run leaves behind


@pytest.mark.end_to_end
def test_the_run_directory_keeps_its_contract(finished):
    assert names(finished) == NODES
    for path in (finished / "nodes").iterdir():
        config = json.loads((path / "config.json").read_text())
        done = json.loads((path / "DONE").read_text())
        assert path.name == f"{config['name']}-{config['identity']}" and done["identity"] == config["identity"]
        for name, sealed in done["files"].items():
            assert hashlib.sha256((path / name).read_bytes()).hexdigest() == sealed
        proofs = {name for name in PROOFS if (path / name).exists()}
        assert set(done["files"]) == proofs | {p.name for p in path.glob("*.json*")}
        if config["verb"] != "prepare":  # what an export says of them
            assert config["special_tokens"] == {
                "bos": word_vocabulary.BOS,
                "eos": word_vocabulary.EOS,
                "pad": word_vocabulary.PAD,
            }
        spent = json.loads((path / "ledger.json").read_text())
        assert all(value >= 0 for value in spent["flops"].values()) and spent["seconds"] >= 0
        if config["name"] in TRAINED:
            assert (path / "metrics.jsonl").stat().st_size > 0
        if config["verb"] in ("pretrain", "unlearn", "perturb", "distill"):
            # Training states go when the node is done; the weights stay, with the hashes that prove them whole.
            assert {p.name for p in (path / "checkpoints").iterdir()} == {"final", "final.json"}
    leftover = [p for p in finished.rglob("*") if p.name.endswith(".tmp") or "orbax-checkpoint-tmp" in p.name]
    assert leftover == []
    page = (finished / "report/index.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>") and all(name in page for name in MODELS)


@pytest.mark.end_to_end
def test_a_finished_model_can_be_scored_and_leaves_for_hugging_face(finished, tmp_path, capsys):
    (tmp_path / "in").write_text('{"text": "2 * 2 = 4"}\n{"text": "2 * 2 = 9"}\n')
    assert main(["", "export", f"--model={node(finished, 'undo-0.2')}", f"--to={tmp_path / 'exported'}"]) == 0
    found = []
    for more in ([f"--model={node(finished, 'undo-0.2')}"], [f"--model={tmp_path / 'exported'}", "--tokenizer=words"]):
        assert main(["", "score", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", *more]) == 0
        found.append([json.loads(line) for line in (tmp_path / "out").read_text().splitlines()])
    assert found[0] == found[1]
    assert all(sum(row["log_likelihoods"][1:]) < 0 and len(row["tokens"]) == 6 for row in found[0])
    assert main(["", "export", f"--model={node(finished, 'relearn-undo-0.2')}", f"--to={tmp_path / 'x'}"]) == 2
    assert "a relearn node leaves no model" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_nothing_finished_before_done(finished):
    """DONE is the last file that a node gets."""
    for path in (finished / "nodes").iterdir():
        done = (path / "DONE").stat().st_mtime_ns
        for file in ("config.json", "metrics.jsonl", "ledger.json", "result.json", "checkpoints/final.json"):
            assert not (path / file).exists() or (path / file).stat().st_mtime_ns <= done, path / file


@pytest.mark.end_to_end
def test_the_summary_has_its_keys_and_ranges(finished):
    found = summary(finished)
    assert found["experiment"] == "arithmetic-smoke" and re.fullmatch("[0-9a-f]{12}", found["identity"])
    assert [model["name"] for model in found["models"]] == list(MODELS)
    keys = {"name", "stage", "settings", "seeds", "retain", "forget", "steps", "flops", "compute_vs_oracle", "attack"}
    stages = ("pretrain", "pretrain", "unlearn", "distill", "distill", "distill")
    for model, stage in zip(found["models"], stages, strict=True):
        assert keys <= set(model) and model["stage"] == stage and model["seeds"] == 2
        assert 0 <= model["retain"] <= 1 and 0 <= model["forget"] <= 1
        assert set(model["flops"]) == {"student", "teacher", "evaluation"}
        assert model["flops"]["evaluation"] > 0 and (model["flops"]["student"] > 0) == (model["steps"] > 0)
        assert (model["flops"]["teacher"] > 0) == (stage == "distill" and model["steps"] > 0)
        attack = model["attack"]
        assert attack["steps"] == [0, 8, 24]
        worst, low, high = (attack["forget_heldout"][key] for key in ("worst", "low", "high"))
        assert len(worst) == len(attack["retain_at_worst"]) == len(attack["forget_shown"]["worst"]) == 3
        assert all(0 <= a <= b <= c <= 1 for a, b, c in zip(low, worst, high, strict=True))
        assert all(0 <= v <= 1 for v in attack["retain_at_worst"] + attack["forget_shown"]["worst"])
    compute = {model["name"]: model["compute_vs_oracle"] for model in found["models"]}
    assert compute["oracle"] == 1 and compute["reference"] > 1 and 0 < compute["maxent"] < compute["student"]
    states = [one["state"] for one in found["conclusions"]]
    assert set(states) <= {"held", "failed", "open", "void", "not run"} and "not run" in states
    assert all(one["statement"] and one["evidence"] for one in found["conclusions"])
    assert found["headline"]["suppressed"] == "maxent" and len(found["headline"]["conclusions"]) == 2


@pytest.mark.end_to_end
def test_the_run_learnt_something(finished):
    """What the other tests compare is not a table of zeros."""
    models = {model["name"]: model for model in summary(finished)["models"]}
    assert models["reference"]["forget"] > 0.3 > models["maxent"]["forget"]
    curves = [model["attack"]["forget_shown"]["worst"] for model in models.values()]
    assert len({tuple(curve) for curve in curves}) > 3 and max(map(max, curves)) > 0.3


def attack_curve(workdir: Path, name: str, part: str) -> dict[tuple[int, int], dict[float, tuple[float, float]]]:
    """Return {(seed, step): {learning rate: (accuracy on the part, on retain)}} from an attack's rows."""
    table: dict[tuple[int, int], dict[float, tuple[float, float]]] = {}
    for row in rows(workdir, f"relearn-{name}"):
        if row["kind"] == "evaluation":
            rate, seed = (text.split("=")[1] for text in row["member"].split(","))
            cell = table.setdefault((int(seed), row["step"]), {})
            assert float(rate) not in cell, "the same member twice at the same step"
            cell[float(rate)] = row[part], row["retain"]
    return table


def halves(workdir: Path, name: str) -> tuple[np.ndarray, dict[tuple[str, int], list[np.ndarray]]]:
    """Return prompts by half, [2], and {(member, step): prompts answered right by half}: every other fact is a half."""
    result = json.loads((node(workdir, f"relearn-{name}") / "result.json").read_text())
    asked = np.array(result["prompts_by_fact"])
    found = [row for row in rows(workdir, f"relearn-{name}") if row["kind"] == "facts"]
    cut = lambda counts: np.array([counts[0::2].sum(), counts[1::2].sum()])  # noqa: E731
    return cut(asked), {(row["member"], row["step"]): cut(np.array(row["correct"])) for row in found}


@pytest.mark.end_to_end
def test_the_worst_case_is_chosen_on_one_half_of_the_facts_and_told_of_the_other(finished):
    apart = 0
    for model in summary(finished)["models"]:
        asked, right = halves(finished, model["name"])
        retain = attack_curve(finished, model["name"], "heldout")
        for i, step in enumerate((0, 8, 24)):
            scores, kept = [], []
            for seed in (0, 1):
                of = {rate: right[f"lr={rate:g},seed={seed}", step] for rate in (1e-2, 1e-3)}
                assert all(
                    retain[seed, step][rate][0] == pytest.approx(counts.sum() / asked.sum())
                    for rate, counts in of.items()
                )
                able = {rate: retain[seed, step][rate][1] for rate in of}  # of equal ones the least destructive counts
                best = [max(of, key=lambda rate: (of[rate][half], able[rate])) for half in (0, 1)]
                scores.append(sum(of[best[1 - half]][half] for half in (0, 1)) / asked.sum())
                kept.append(sum(retain[seed, step][rate][1] for rate in best) / 2)
                apart += best[0] != best[1]
            said = model["attack"]["forget_heldout"]
            assert [seed[i] for seed in said["by_seed"]] == pytest.approx(scores, abs=2e-6)
            assert said["low"][i] <= said["worst"][i] <= said["high"][i]
            assert said["high"][i] - said["low"][i] > 0.05  # a dozen facts are few, whatever the seeds say
            assert model["attack"]["retain_at_worst"][i] == pytest.approx(sum(kept) / 2, abs=2e-6)
    assert apart, "the halves always agree: nothing is tested"


def crossed_interval(first: float, second: float, facts: int) -> list[float]:
    """Return Wilson's interval of two seeds' mean over facts, by the formulas of docs/statistics.md."""
    p = (first + second) / 2
    parts = [((first - second) ** 2 / 4, 1), (p * (1 - p) / facts, facts - 1)]
    variance = sum(v for v, _ in parts)
    freedom = variance**2 / sum(v**2 / df for v, df in parts) if variance else facts - 1
    trials = p * (1 - p) / variance if 0 < p < 1 else facts
    t = float(stats.t.ppf(0.975, freedom))
    half = t * math.sqrt(p * (1 - p) / trials + t**2 / (4 * trials**2))
    return [(p + t**2 / (2 * trials) + sign * half) / (1 + t**2 / trials) for sign in (-1, 1)]


@pytest.mark.end_to_end
@pytest.mark.parametrize("part", ["shown"])
def test_the_worst_case_follows_from_the_rows(finished, part):
    choices_that_matter = 0
    for model in summary(finished)["models"]:
        table = attack_curve(finished, model["name"], part)
        said = model["attack"][f"forget_{part}"]
        assert sorted(table) == [(seed, step) for seed in (0, 1) for step in (0, 8, 24)]
        for i, step in enumerate((0, 8, 24)):
            cells = [table[seed, step] for seed in (0, 1)]
            assert all(sorted(cell) == [1e-3, 1e-2] for cell in cells)
            best = [max(accuracy for accuracy, _ in cell.values()) for cell in cells]
            assert said["worst"][i] == pytest.approx(sum(best) / 2, abs=2e-6)
            ends = crossed_interval(*best, facts=summary(finished)["facts"]["shown"])
            assert [said["low"][i], said["high"][i]] == pytest.approx(ends, abs=2e-5)
            choices_that_matter += any(len({a for a, _ in cell.values()}) > 1 for cell in cells)
    assert choices_that_matter


def assert_the_attack_finds(workdir: Path, model: dict[str, Any]) -> None:
    """Fail unless every attacker's first evaluation is the model's own last one."""
    prompts = summary(workdir)["evaluated"]
    first = [r for r in rows(workdir, f"relearn-{model['name']}") if r["kind"] == "evaluation" and r["step"] == 0]
    assert len(first) == 4
    for row in first:
        assert row["retain"] == pytest.approx(model["retain"])
        weighted = row["shown"] * prompts["forget_shown"] + row["heldout"] * prompts["forget_heldout"]
        total = prompts["forget_shown"] + prompts["forget_heldout"]
        assert weighted / total == pytest.approx(model["forget"])


@pytest.mark.end_to_end
def test_before_the_attack_a_model_scores_what_its_own_node_says(finished):
    """Two nodes, two programs, one model: the stage's last evaluation and the attack's first."""
    for model in summary(finished)["models"]:
        assert_the_attack_finds(finished, model)


@pytest.mark.end_to_end
def test_every_step_that_should_be_logged_is_logged_once(finished):
    for name, steps, members in (
        ("reference", 200, 1),
        ("oracle", 40, 1),
        ("student", 25, 1),
        ("relearn-oracle", 24, 4),
    ):
        seen = [row["step"] for row in rows(finished, name) if row["kind"] == "train"]
        assert seen == sorted(list(range(0, steps, 10)) * members), name


def events(path: Path) -> list[Event]:
    """Read an event file: length, its checksum, the record, its checksum, and again."""

    def masked(data: bytes) -> bytes:
        crc = crc32c(data)
        return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")

    data, out = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        record = data[12 : 12 + size]
        assert data[8:12] == masked(data[:8]) and data[12 + size : 16 + size] == masked(record)
        out.append(Event.FromString(record))
        data = data[16 + size :]
    return out


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", TRAINED)
def test_tensorboard_shows_the_recorded_numbers(finished, name):
    (file,) = (node(finished, name) / "tensorboard").glob("events.out.tfevents.*")
    first, *rest = events(file)
    assert first.file_version == "brain.Event:2"
    shown = {(value.tag, event.step): value.simple_value for event in rest for value in event.summary.value}
    expected = {}
    for row in rows(finished, name):
        kind, step, member = row.pop("kind"), row.pop("step"), row.pop("member")
        if kind == "facts":  # lists of counts, which are for the record alone
            continue
        tail = f"/{member}" if member else ""
        expected |= {(f"{kind}/{key}{tail}", step): value for key, value in row.items() if value is not None}
    # tensorboardX replaces characters that a tag must not have.
    assert len(shown) == len(expected)
    assert sorted(shown.values()) == pytest.approx(sorted(expected.values()), rel=1e-6)
    plain = {key: value for key, value in expected.items() if re.fullmatch(r"[\w/]+", key[0])}
    assert all(shown[key] == pytest.approx(value, rel=1e-6) for key, value in plain.items())


@pytest.mark.end_to_end
def test_training_imports_no_tensorflow(base):
    """The process that made the data, trained every stage and drew the report."""
    (line,) = (line for line in finished_run(base)[1].splitlines() if line.startswith("imported:"))
    assert line == "imported:"


# What a second run does


@pytest.mark.end_to_end
def test_a_second_run_computes_nothing(copy, runs):
    before, first = state_of_files(copy), read_sealed(copy / "report/summary.json")
    done = runs(copy)
    assert done.returncode == 0 and done.stderr == ""
    assert state_of_files(copy) == before
    said, last = done.stdout.splitlines()  # two lines: nothing else happened
    assert last == f"report: {copy}/report/index.html"
    assert "not computed again" in said and set(said.split(": ")[1].split(", ")) == NODES
    second = read_sealed(copy / "report/summary.json")
    assert second.pop("duration_seconds") < 0.2 * first.pop("duration_seconds")
    assert second.pop("created") >= first.pop("created") and second == first


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_another_attack_computes_only_attacks(finished, copy, runs):
    before = state_of_files(copy)
    done = runs(copy, "--config.relearn.steps=30")
    assert done.returncode == 0, done.stderr
    after = state_of_files(copy)
    assert {name: after[name] for name in before} == before
    new = {Path(name).parts[1] for name in set(after) - set(before)}
    assert {name[:-13] for name in new} == {f"relearn-{name}" for name in MODELS}
    assert all((copy / "nodes" / name / "DONE").exists() for name in new)
    found = summary(copy)
    assert found["attack"]["steps"] == 30 and found["identity"] != summary(finished)["identity"]


# The shared experiment, and beside it a model that unlearned by adapters, a student of adapters, and an attack by them.
WITH_ADAPTERS = f"""
import dataclasses, runpy
config = runpy.run_path({str(ROOT / "configs/arithmetic.py")!r})
get_config = config["get_config"]

def get_experiment(c):
    experiment, adapters = config["get_experiment"](c), {{"lora_rank": 4, "lora_alpha": 8.0, "learning_rate": 1e-2}}
    stages = experiment.stages
    def changed(name, **how):
        return dataclasses.replace(stages[name], **how)
    thin = {{
        "thin-maxent": changed("maxent", steps=40, **adapters),
        "thin-student": changed("student", teacher="thin-maxent", start="reference", **adapters),
        "relearn-thin-student": changed("relearn-student", start="thin-student", lora_rank=4),
    }}
    return dataclasses.replace(experiment, stages=stages | thin)
"""


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_stages_may_train_adapters(copy, runs, tmp_path):
    """What they keep is the adapters; what starts from them gets a whole model, which answers as it did in training."""
    config = tmp_path / "adapters.py"
    config.write_text(WITH_ADAPTERS)
    before = names(copy)
    done = runs(copy, config=f"--config={config}:smoke")
    assert done.returncode == 0, done.stderr
    assert names(copy) - before == {"thin-maxent", "thin-student", "relearn-thin-student"}
    found = {model["name"]: model for model in summary(copy)["models"]}
    assert found["thin-maxent"]["forget"] < 0.5 * found["reference"]["forget"]
    # Evaluated once with the adapters beside the weights and once merged into them.
    assert_the_attack_finds(copy, found["thin-student"])
    assert len({row["retain"] for row in rows(copy, "relearn-thin-student") if row["kind"] == "evaluation"}) > 1
    for name in ("thin-maxent", "thin-student"):
        kept = json.loads((node(copy, name) / "checkpoints/final/_METADATA").read_text())["tree_metadata"]
        assert kept and all(key.endswith(("'a')", "'b')")) for key in kept)


@pytest.mark.end_to_end
def test_report_draws_the_page_again(copy, runs):
    page = (copy / "report/index.html").read_text()
    (copy / "report/index.html").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "distill_jax.main", "report", f"--workdir={copy}"],
        cwd=ROOT, env=runs.env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == f"report: {copy}/report/index.html\n"
    assert (copy / "report/index.html").read_text() == page


# What a killed run costs


def kill(process: subprocess.Popen, when: Callable[[int, str], bool], delay: float = 0.0, group: bool = True) -> str:
    """Kill a run when a line of its output says so, and return what it had said."""
    assert process.stdout
    said = []
    for count, line in enumerate(process.stdout):
        said.append(line)
        if when(count, line):
            break
    else:
        process.wait()
        pytest.fail(f"ended before it could be killed: {process.stderr.read() if process.stderr else ''}{said[-3:]}")
    time.sleep(delay)
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    if group:
        process.stdout.close()
    return "".join(said)


def at(pattern: str) -> Callable[[int, str], bool]:
    return lambda _, line: re.search(pattern, line) is not None


def newest_save(workdir: Path, stages: tuple[str, ...]) -> int:
    """Return the last step that all the nodes have a complete checkpoint of; 0 if there is none."""
    lists = [{int(p.stem) for p in node(workdir, name).glob("checkpoints/[0-9]*.json")} for name in stages]
    return max(set.intersection(*lists), default=0)


@pytest.mark.thorough
@pytest.mark.kill
def test_killed_in_every_phase_it_comes_to_the_same_end(finished, runs, tmp_path):
    """In the data, in a stage of one member, in a population of three nodes, and in an attack."""
    workdir = tmp_path / "run"
    kill(runs.start(workdir), at(r"\] data  generated"))
    assert not (node(workdir, "data") / "DONE").exists()
    students = ("student", "undo-0.2", "undo-0.9")
    phases = [
        (r"\] reference  step 1[3-9]\d/200", ("reference",)),
        (r"\] student, undo-0.2, undo-0.9  step 1[6-9]/25", students),
        (r"\] relearn-student  step 1[3-9]/24", ("relearn-student",)),
    ]
    for pattern, stages in phases:
        # Saves are written in the background: the run is killed once one of this phase is on the disk.
        kill(runs.start(workdir), lambda _, line: re.search(pattern, line) and newest_save(workdir, stages))  # noqa: B023
        step = newest_save(workdir, stages)
        assert step > 0
        said = kill(runs.start(workdir), at("continuing from step"))
        assert f"{', '.join(stages)}: continuing from step {step} " in said
    done = runs(workdir)
    assert done.returncode == 0, done.stderr
    assert_same_run(finished, workdir)


@pytest.mark.thorough
@pytest.mark.kill
def test_killed_between_two_students_of_one_population(finished, copy, runs):
    """Nodes that train together finish one after the other; the rest must not depend on who is still there."""
    assert {m["name"]: m["steps"] for m in summary(finished)["models"]}["undo-0.9"] > 0  # or nothing is compared
    forget(copy, "undo-0.9", "relearn-undo-0.9")
    done = runs(copy)
    assert done.returncode == 0, done.stderr
    assert "not computed again" in done.stdout
    assert_same_run(finished, copy)


@pytest.mark.kill
def test_a_damaged_training_state_is_passed_over(finished, runs, copy):
    """The newest one is cut short: the run says so, and continues from the one before."""
    forget(copy, "reference")
    late = at(r"\] reference  step 1[6-9]\d/200")
    kill(runs.start(copy), lambda count, line: late(count, line) and newest_save(copy, ("reference",)) == 120)
    state = node(copy, "reference") / "checkpoints/120"
    largest = max((p for p in state.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    done = runs(copy)
    assert done.returncode == 0, done.stderr
    assert f"warning: {state}: file" in done.stdout and "going back to the checkpoint before it" in done.stdout
    assert "reference: continuing from step 60 " in done.stdout
    assert_same_run(finished, copy)


@pytest.mark.thorough
@pytest.mark.kill
def test_a_preparing_child_that_outlives_its_parent_spoils_nothing(finished, runs, tmp_path):
    """Only the parent is killed: its child still writes when the same command is given again."""
    workdir = tmp_path / "run"
    orphaned = runs.start(workdir, command="prepare")
    deadline = time.monotonic() + 120
    while not any(workdir.glob("nodes/data-*/rows/preparing/*")):
        assert orphaned.poll() is None and time.monotonic() < deadline, "never seen preparing"
        time.sleep(0.02)
    os.kill(orphaned.pid, signal.SIGKILL)
    orphaned.wait()
    done = runs(workdir, command="prepare")
    assert done.returncode == 0, done.stderr
    ours, theirs = node(workdir, "data") / "rows", node(finished, "data") / "rows"
    assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in theirs.iterdir())
    for file in theirs.iterdir():
        assert (ours / file.name).read_bytes() == file.read_bytes(), file.name
    assert (node(workdir, "data") / "DONE").exists()


@pytest.mark.kill
def test_interrupted_by_hand_it_says_how_to_go_on(runs, copy):
    forget(copy, "oracle", "relearn-oracle")
    process = runs.start(copy)
    assert process.stdout
    next(line for line in process.stdout if "oracle  step 5/" in line)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command continues" in err
    assert "Traceback" not in err and err.count("\n") == 1
