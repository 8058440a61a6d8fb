"""The benchmarks at tiny shapes: every line of them runs, and what they write agrees with itself. No time is judged."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from distill_jax import main
from distill_jax.bench import accelerator, against_torch, case, ratios, runner, steps, timing
from distill_jax.bench.options import Options
from distill_jax.commands import bench as bench_command
from distill_jax.config import ConfigError
from distill_jax.data.records import write_rows
from distill_jax.io.metrics import Progress, TrainingSize
from distill_jax.models import transformer
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops, peaks, profile
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages import Distill, Prepare, Pretrain, Relearn
from distill_jax.stages.compiled_step import compiled_step
from distill_jax.stages.context import Context, Node, RunSettings
from tests import mesh_worker

ROOT = Path(__file__).parent.parent
TINY = TransformerConfig(vocab=11, layers=1, hidden=4, mlp=6, heads=2, kv_heads=1, head_dim=2)
LLAMA = {"activation": "silu", "post_norms": False, "scale_embedding": False, "sliding_window": 0}
TINY_LLAMA = dataclasses.replace(TINY, **LLAMA, attention_softcap=0.0, final_softcap=0.0, query_scale=2.0)


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """The programs run for microseconds and compile for seconds: leave LLVM's optimiser out."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture
def tiny(monkeypatch):
    """Every model is TINY."""
    presets = dict.fromkeys(ratios.PRESETS, TINY)
    for module in (ratios, against_torch):
        monkeypatch.setattr(module, "PRESETS", presets)
    monkeypatch.setattr(ratios, "MODELS", {"cpu": TINY})


def bench(tmp_path, *arguments):
    """Run benchmarks and return what they wrote, and what they printed."""
    file, out = tmp_path / "bench.json", io.StringIO()
    bench_command.main([*arguments, f"--json={file}"], out)
    return json.loads(file.read_text()), out.getvalue()


def assert_goals(result, expected):
    """Each goal has its value, and is met exactly if the value is within the bound."""
    assert [one["name"] for one in result["goals"]] == list(expected)
    for one in result["goals"]:
        assert one["value"] == pytest.approx(expected[one["name"]], rel=1e-12)
        sign, bound = one["goal"].split()
        assert one["met"] == (one["value"] <= float(bound) if sign == "≤" else one["value"] >= float(bound))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("value", "bounds", "met"),
    [(0.1, {"most": 0.1}, True), (0.11, {"most": 0.1}, False), (3.0, {"least": 3}, True), (2.9, {"least": 3}, False)],
)
def test_a_goal_is_met_at_its_bound(value, bounds, met):
    assert timing.goal("x", value, **bounds)["met"] is met


@pytest.mark.unit
def test_rounds_are_interleaved_and_the_first_is_dropped():
    order = []

    def taker(name):
        def take():
            order.append(name)
            return float(len(order))

        return take

    taken = timing.interleaved({"a": taker("a"), "b": taker("b")}, repeats=2)
    assert order == ["a", "b"] * 3
    assert taken == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert timing.summary([4.0, 1.0, 2.0]) == {"min": 1.0, "median": 2.0}


@pytest.mark.end_to_end
def test_kl_memory(tmp_path):
    found, printed = bench(tmp_path, "kl_memory", "--batch=2", "--length=64", "--vocab=512", "--chunk=8")
    result = found["benchmarks"]["kl_memory"]
    chunked, dense, blockwise = result["rows"]
    assert (chunked["chunk"], dense["chunk"]) == (8, 0) and blockwise["way"] == "blockwise"
    assert result["ratio"] == chunked["temporary"] / dense["temporary"] < 1
    assert dense["temporary"] >= 2 * 64 * 512 * 4  # at least one array of all logits
    assert_goals(result, {"chunked / dense": result["ratio"]})
    assert "temporary" in printed and "goal chunked / dense ≤ 0.1" in printed
    assert found["command"].startswith("distill-jax bench kl_memory --batch=2")
    assert found["device"]["platform"] == "cpu" and found["device"]["cores"] >= 1
    assert found["versions"]["jax"] == jax.__version__


@pytest.mark.end_to_end
def test_distill(tmp_path, tiny):
    found, printed = bench(tmp_path, "distill", "--batch=2", "--length=6", "--repeats=2", "--steps=1")
    result = found["benchmarks"]["distill"]
    assert [(row["model"], row["step"]) for row in result["rows"]] == [
        ("cpu", step) for step in ("pretrain", "online", "cached")
    ]
    base, online, cached = result["rows"][:3]
    for row in (base, online, cached):
        assert 0 < row["seconds"]["min"] <= row["seconds"]["median"]
        assert row["ratio"] == pytest.approx(row["seconds"]["min"] / base["seconds"]["min"])
        assert row["cpu_ratio"] == pytest.approx(row["cpu_seconds"]["min"] / base["cpu_seconds"]["min"])
    assert base["flops_ratio"] == 1 < cached["flops_ratio"] < online["flops_ratio"] == pytest.approx(4 / 3)
    # After three steps on their own gradients: the cached step is the online step.
    assert online["loss"] == pytest.approx(cached["loss"], rel=1e-5) and online["loss"] != base["loss"]
    expected = {"cpu: online / cross-entropy": online["ratio"], "cpu: cached / cross-entropy": cached["ratio"]}
    assert_goals(result, expected)
    assert printed.count("\ngoal ") == 2


@pytest.mark.end_to_end
def test_population(tmp_path, tiny):
    arguments = ("--batch=2", "--length=6", "--members=2", "--steps=2", "--rounds=1")
    found, _ = bench(tmp_path, "population", *arguments)
    result = found["benchmarks"]["population"]
    together, apart = result["rows"]
    assert (together["way"], apart["way"]) == ("together", "one by one")
    assert together["members"] == apart["members"] == 2
    for row in result["rows"]:
        assert row["whole_seconds"]["min"] >= row["compile_seconds"]["min"] + row["steps_seconds"]["min"]
    assert result["ratio"] == apart["whole_seconds"]["min"] / together["whole_seconds"]["min"]
    assert result["ratio_without_compilation"] == apart["steps_seconds"]["min"] / together["steps_seconds"]["min"]
    assert_goals(result, {"one by one / together": result["ratio"]})


@pytest.mark.unit
def test_one_by_one_compiles_every_time(monkeypatch):
    """A step left over from another run would make the runs one after another look cheap."""
    built = []

    def stepper(case, rates):
        built.append(compiled_step.cache_info().currsize)
        compiled_step(Pretrain().compile_key(TINY), make_mesh(1))
        return SimpleNamespace(run=lambda _: 2.0, compile_seconds=1.0)

    monkeypatch.setattr(ratios, "Stepper", stepper)
    for _ in range(2):
        ratios._run_anew(steps.Case(TINY, "pretrain", 2, 6), [1e-3], 1)
    assert built == [0, 0]


@pytest.mark.unit
@pytest.mark.parametrize("workload", steps.WORKLOADS)
def test_flops_of_a_case(workload):
    one = steps.Case(TINY, workload, 2, 6, members=3)
    count, forward = transformer.parameter_count(TINY), flops.forward(TINY, 2, 6)
    head = 2 * 2 * 6 * TINY.hidden * TINY.vocab
    assert one.tokens == 36
    assert one.flops_6n() == 6 * count * 36 + (2 * count * 12 if workload == "online" else 0)
    assert one.flops() == 9 * forward + {"pretrain": 0, "online": forward, "cached": 3 * head}[workload]


STUB = """#!{python}
import json, sys
spec = json.loads(sys.argv[2])
if spec["workload"] == "cached":
    print(json.dumps({{"error": "out of memory: stub"}}), flush=True)
    sys.exit()
about = {{"parameters": 1, "first_step_seconds": 2.0, "first_loss": 1.0, "threads": spec["threads"]}}
print(json.dumps({{"ready": True, "versions": {{"torch": "0"}}, **about}}), flush=True)
for line in sys.stdin:
    times = {{"seconds": 0.5 * int(line), "cpu_seconds": 0.25 * int(line)}}
    print(json.dumps({{**times, "loss": 1.0, "peak_bytes": 7}}), flush=True)
"""


@pytest.fixture
def stub(tmp_path):
    """A Python that speaks the protocol of torch_step.py without torch: half a second a step."""
    path = tmp_path / "python"
    path.write_text(STUB.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.mark.end_to_end
def test_torch(tmp_path, tiny, stub, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    arguments = ("--batch=2", "--length=6", "--repeats=2", "--steps=2", f"--torch_python={stub}")
    found, printed = bench(tmp_path, "torch", *arguments)
    result = found["benchmarks"]["torch"]
    theirs, *ours = result["rows"]
    assert [row["way"] for row in result["rows"]] == ["torch", "jax, 1 CPU device"]
    assert theirs["seconds"] == {"min": 0.5, "median": 0.5}
    assert theirs["tokens_per_second"] == 12 / 0.5 and theirs["speed_over_torch"] == 1
    for row in ours:
        assert row["tokens_per_second"] == pytest.approx(12 / row["seconds"]["min"])
        assert row["speed_over_torch"] == pytest.approx(0.5 / row["seconds"]["min"])
        assert row["cpu_time_over_torch"] == pytest.approx(row["cpu_seconds"] / 0.25)
    assert result["torch"]["threads"] == len(os.sched_getaffinity(0))
    assert_goals(result, {"our speed / PyTorch's": max(row["speed_over_torch"] for row in ours)})
    assert "tokens per second" in printed


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("workload", "cfg"),
    [*((workload, TINY) for workload in steps.WORKLOADS), ("pretrain", TINY_LLAMA)],
    ids=[*steps.WORKLOADS, "pretrain a Llama"],
)
def test_the_torch_step_itself(workload, cfg):
    """PyTorch's own step, chunked and whole, has one loss; and it learns."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    first = []
    for chunk in (0, 4):
        one = steps.Case(dataclasses.replace(cfg, remat="full"), workload, 2, 6, chunk)
        with against_torch.torch_stepper(sys.executable, one, "cpu", threads=1) as run:
            assert run.run(3) > 0
            first.append(run.about["first_loss"])
            assert run.last["loss"] < first[-1]
            assert run.about["parameters"] == transformer.parameter_count(cfg)
    assert first[0] == pytest.approx(first[1], rel=1e-5)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('#!/bin/sh\necho \'{"error": "No module named torch"}\'\n', "No module named torch"),
        ("#!/bin/sh\necho broken\n", "ended without an answer broken"),
    ],
)
def test_a_python_without_torch_is_one_line(tmp_path, tiny, capfd, script, words):
    path = tmp_path / "python"
    path.write_text(script)
    path.chmod(0o755)
    assert main.main(["distill-jax", "bench", "torch", f"--torch_python={path}"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"distill-jax: {path}: {words}; give --torch_python=PATH of one that has torch and transformers"


@pytest.fixture
def in_process(monkeypatch):
    """Answer bench/case.py's questions here: a process of its own starts JAX anew each time."""

    def ask(spec, limit):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            case.main(json.dumps(spec))
        return json.loads(out.getvalue())

    monkeypatch.setattr(accelerator, "_ask", ask)


MADE_UP = {"seconds": [0.5], "compile_seconds": 1.0, "loss": 1.0, "peak_bytes": 3, "compiler_bytes": 4}


@pytest.mark.end_to_end
def test_accelerator(tmp_path, stub, in_process, monkeypatch):
    """The population's case compiles; the others, which `distill` compiles too, get made-up times."""
    measure = case.measure

    def some(one, *how):
        return measure(one, *how) if one.members > 1 else MADE_UP

    monkeypatch.setattr(case, "measure", some)
    monkeypatch.setitem(peaks.PEAK_FLOPS, jax.devices()[0].device_kind, 1e9)
    arguments = ("--tiny", "--repeats=1", "--steps=1", "--members=2", f"--torch_python={stub}")
    found, printed = bench(tmp_path, "accelerator", *arguments)
    result = found["benchmarks"]["accelerator"]
    peak = 1e9 * jax.device_count()
    assert result["device"]["peak_flops"] == peak and result["device"]["platform"] == "cpu"
    rows = {(r["model"], r["workload"], r["way"], r["members"], r["attention"]): r for r in result["rows"]}
    assert len(rows) >= 8
    for row in result["rows"]:
        if row["way"] == "torch":
            if row["workload"] == "cached":
                assert row["error"] == "out of memory: stub"
                continue
            assert row["peak_bytes"] == 7 and row["compile_seconds"] == 2.0 and row["seconds"]["min"] == 0.5
        tokens = row["batch"] * row["length"] * row["members"]
        assert row["tokens_per_second"] == pytest.approx(tokens / row["seconds"]["min"])
        preset = ratios.PRESETS[row["model"]]
        cfg = dataclasses.replace(preset, vocab=64, layers=2, hidden=16, mlp=32, heads=2, kv_heads=1, head_dim=8)
        per_token = 8 if row["workload"] == "online" else 6
        counted = per_token * transformer.parameter_count(cfg) * row["tokens_per_second"] / peak
        assert row["mfu_6n"] == pytest.approx(counted) and np.isfinite(row["loss"])
    (ten,) = (row for row in result["rows"] if row["members"] == 2)
    (one,) = (r for r in result["rows"] if (r["model"], r["members"]) == (ten["model"], 1))
    expected = {
        "gemma-2-2b: online, MFU by 6N + 2N": max(
            r["mfu_6n"] for r in result["rows"] if (r["workload"], r["way"]) == ("online", "jax")
        ),
        "gemma-2-2b: online, our speed / PyTorch's": 1.0,
        "gemma-2-2b: pretrain, our speed / PyTorch's": 1.0,
        "gemma-0.1b: 2 runs / population": ten["tokens_per_second"] / one["tokens_per_second"],
    }
    assert {one["name"]: one["value"] for one in result["goals"]} == pytest.approx(expected)
    assert printed.count("\ngoal ") == len(expected)


@pytest.mark.unit
def test_minutes_end_the_accelerator_with_what_was_measured(tmp_path, monkeypatch):
    """Each measurement takes a third of the time: what the rest would have been is said, and every row was written."""
    now, file, written = [0.0], tmp_path / "bench.json", []

    def ask(spec, limit):
        if not spec:
            return {"device": {"platform": "gpu", "kind": "made up", "count": 1, "peak_flops": 1e15}}
        now[0] += 40.0
        assert limit <= 40.0  # no row takes more than a third
        if file.exists():
            written.append(len(json.loads(file.read_text())["benchmarks"]["accelerator"]["rows"]))
        return MADE_UP

    monkeypatch.setattr(accelerator, "_ask", ask)
    monkeypatch.setattr(accelerator, "_torch", lambda *_: {"error": "no PyTorch"})
    monkeypatch.setattr(accelerator.time, "monotonic", lambda: now[0])
    found, _ = bench(tmp_path, "accelerator", "--minutes=2")
    rows = found["benchmarks"]["accelerator"]["rows"]
    assert [("seconds" in row) for row in rows if row["way"] == "jax"][:4] == [True] * 3 + [False]
    assert rows[-1]["error"] == "not run: 0 s were left" and written and written == sorted(written)


@pytest.mark.unit
def test_a_measurement_that_hangs_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator.sys, "executable", str(_sleeper(tmp_path)))
    assert accelerator._ask({"case": {}}, 0.2) == {"error": "stopped after 0 s"}
    one = steps.Case(TINY, "pretrain", 2, 6)
    with (
        pytest.raises(against_torch.Unavailable, match="stopped after 0 s"),
        against_torch.torch_stepper(str(_sleeper(tmp_path)), one, "cpu", limit=0.2),
    ):
        pass


def _sleeper(tmp_path):
    path = tmp_path / "sleeper"
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    path.chmod(0o755)
    return path


@pytest.mark.end_to_end
def test_accelerator_refuses_a_cpu_in_one_line():
    """In a process of its own, as the benchmark asks for the device in one."""
    done = subprocess.run(
        [sys.executable, "-m", "distill_jax", "bench", "accelerator"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines()[-1] == (
        "distill-jax: bench accelerator: there is no accelerator here; --tiny tries it out on the CPU"
    )


@pytest.mark.unit
def test_a_case_that_fails_does_not_end_the_others(monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out\nof memory")

    monkeypatch.setattr(case, "measure", fail)
    out = io.StringIO()
    one = dataclasses.asdict(steps.Case(TINY, "pretrain", 2, 6))
    with contextlib.redirect_stdout(out):
        case.main(json.dumps({"case": one, "steps": 1, "repeats": 1}))
    answer = json.loads(out.getvalue())
    assert answer["error"] == "RESOURCE_EXHAUSTED: out of memory"
    row = accelerator._row(accelerator.Measurement("m", steps.Case(TINY, "pretrain", 2, 6)), answer, None)
    assert row["error"] == answer["error"] and "tokens_per_second" not in row


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kl_memry"], "did you mean 'kl_memory'"),
        (["--batch=-1"], "--batch=-1: must not be negative"),
        (["--repeats=0"], "--repeats=0: must be at least 1"),
        (["--preset=gema-0.1b"], "did you mean 'gemma-0.1b'"),
        (["--preset=cpu", "--dtype=float16"], "choose float32 or bfloat16"),
        (["--dtype=float16"], "choose float32 or bfloat16"),
        (["--bach=1"], "bach"),
        (["--batch=x"], "batch"),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys, arguments, words):
    assert main.main(["distill-jax", "bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.unit
def test_help_names_every_benchmark_and_flag(capsys):
    assert main.main(["distill-jax", "bench", "--help"]) == 0
    printed = capsys.readouterr().out
    for name in (*runner.BENCHMARKS, *(f"--{field.name}" for field in dataclasses.fields(Options))):
        assert name in printed


# MFU in the progress line.


@pytest.mark.unit
def test_peak_of_several_devices():
    h100 = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    assert peaks.peak_flops([h100, h100]) == 2 * 989e12
    assert peaks.peak_flops([h100, SimpleNamespace(device_kind="cpu")]) is None
    assert peaks.mfu(1.0, None) is None and peaks.mfu(2.0, 8.0) == 0.25


@pytest.mark.unit
def test_progress_shows_the_mfu_only_where_a_peak_is_known(monkeypatch):
    """10 steps in 5 s after the first, each 0.1 s at the peak: 20 %."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    progress = Progress(stages=1, flops=1.0, every=0.0, out=out)
    progress.begin("reference")
    progress.step(0, TrainingSize(100, 32.0, 1.0, 0.1), "")
    progress.step(1, TrainingSize(100, 32.0, 1.0, 0.1), "")
    now[0] = 5.0
    progress.step(11, TrainingSize(100, 32.0, 1.0, 0.1), "")
    progress.step(11, TrainingSize(100, 32.0, 1.0), "")
    first, _, known, unknown = out.getvalue().splitlines()
    assert "64 tok/s  MFU 20.0 %  stage" in known
    assert "MFU" not in first + unknown


def node(verb, settings, directory, **inputs):
    directory.mkdir(exist_ok=True)
    return Node(verb, verb, settings, inputs, verb, directory)


def context(tmp_path, nodes=(), **run):
    """A context with rows and one evaluation prompt, made up."""
    rows = np.random.default_rng(0).integers(1, TINY.vocab, (8, 3, 6), dtype=np.int32)
    rows[:, 1:] = 1
    data = tmp_path / "rows"
    data.mkdir(exist_ok=True)
    write_rows(data / "all.array_record", rows)
    prompt = {"operation": "+", "form": "equation", "part": "retain", "fact": "1+1", "prompt": "", "answer": ""}
    (data / "evaluation.jsonl").write_text(json.dumps(prompt | {"prompt_ids": [1, 2], "answer_ids": [3]}) + "\n")
    names = {"data": SimpleNamespace(settings=Prepare(mesh_worker.Data(row_length=6)))} | {n.name: n for n in nodes}
    progress = Progress(1, 1.0, 0.0, io.StringIO())
    progress.begin("pretrain")
    return Context(TINY, names, data, progress, RunSettings(**run))


@pytest.mark.unit
def test_flops_of_a_programs_step(tmp_path):
    """The teacher runs once however many students there are; attackers all count."""
    attack = node("relearn", Relearn(seeds=2, learning_rates=(1e-3, 1e-4), steps=500), tmp_path / "a", start="x")
    ctx = context(tmp_path)
    step = flops.train_step(TINY, attack.settings.batch, 6)
    assert attack.settings.train_job(ctx, [attack]).step_flops() == 4 * step
    student = node("distill", Distill(teacher="x"), tmp_path / "b", teacher="x")
    assert student.settings.train_job(ctx, [student, student]).step_flops() == 2 * step + step / 3


# Traces and compiled programs that are kept.


def traces(directory):
    return sorted(directory.rglob("*.xplane.pb"))


@pytest.mark.end_to_end
def test_a_window_of_a_stage_is_traced_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(peaks.PEAK_FLOPS, jax.devices()[0].device_kind, 1e9)
    rows = {}
    for name, window in (("plain", ()), ("traced", (1, 2))):
        settings = Pretrain(steps=4, batch=2, warmup=0, log_every=1, evaluate_every=4, checkpoint_every=4)
        one = node("pretrain", settings, tmp_path / name)
        ctx = context(tmp_path, [one], profile=window)
        one.settings.run(ctx, [one])
        assert one.done and "MFU" in ctx.progress.out.getvalue()
        rows[name] = (one.directory / "metrics.jsonl").read_text()
        assert len(traces(one.directory / "tensorboard")) == (1 if window else 0)
    assert rows["plain"] == rows["traced"] and rows["plain"].count("\n") > 4


@pytest.mark.unit
@pytest.mark.parametrize(
    ("window", "start", "calls", "expected"),
    [
        ((), 0, 4, []),
        ((1, 2), 0, 4, ["start 1", "stop 3"]),
        ((1, 2), 2, 4, ["start 0", "stop 1"]),  # continued within the window
        ((1, 2), 3, 4, []),  # continued beyond it
        ((1, 9), 0, 3, ["start 1", "stop 3"]),  # ended within it
        ((0, 0), 0, 1, ["start 0", "stop 1"]),
    ],
)
def test_the_window(monkeypatch, window, start, calls, expected):
    """`expected` says how many steps of this process were taken when a trace began and ended."""
    taken, seen = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: seen.append(f"start {len(taken)}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append(f"stop {len(taken)}"))
    with profile.traced(taken.append, window, Path("nowhere"), start) as step:
        for i in range(calls):
            step(i)
    assert seen == expected and taken == list(range(calls))


COMPILE = """
import sys
from distill_jax import backend
backend.set_up({"cpu_devices": 1, "compile_cache": sys.argv[1]})
from distill_jax.bench.steps import Case, Stepper
from distill_jax.models.transformer_config import TransformerConfig
cfg = TransformerConfig(vocab=11, layers=1, hidden=4, mlp=6, heads=2, kv_heads=1, head_dim=2)
Stepper(Case(cfg, "pretrain", 2, 6)).run(1)
"""


@pytest.mark.end_to_end
def test_the_second_run_compiles_nothing(tmp_path):
    env = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    kept = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", COMPILE, str(tmp_path / "cache")], cwd=ROOT, env=env, check=True)
        kept.append({path.name for path in (tmp_path / "cache").iterdir() if path.name.endswith("-cache")})
    assert any("train_step" in name for name in kept[0])
    assert kept[1] == kept[0]


@pytest.mark.unit
def test_results_are_written_after_each_benchmark(tmp_path, monkeypatch):
    """What failed last does not take with it what was measured before."""

    def fail(_):
        raise ConfigError("no")

    monkeypatch.setitem(runner.BENCHMARKS, "distill", fail)

    def give(_):
        """Give a row."""
        yield {"rows": [{"a": 1}], "goals": []}

    monkeypatch.setitem(runner.BENCHMARKS, "kl_memory", give)
    with pytest.raises(ConfigError):
        bench(tmp_path, "kl_memory", "distill")
    assert set(json.loads((tmp_path / "bench.json").read_text())["benchmarks"]) == {"kl_memory"}
