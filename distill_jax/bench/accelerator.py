"""Tokens a second, MFU and peak memory in bf16 on an accelerator, beside PyTorch on the same card."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from distill_jax.bench.against_torch import TorchStepper, Unavailable, torch_stepper
from distill_jax.bench.bench_results import AcceleratorRow, Goal, Result, StepTimes
from distill_jax.bench.options import Options
from distill_jax.bench.steps import Case
from distill_jax.bench.timing import goal, interleaved, summary
from distill_jax.config import ConfigError
from distill_jax.models.presets import PRESETS
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf.peaks import mfu
from distill_jax.types import JsonObject

LARGE, SMALL = "gemma-2-2b", "gemma-0.1b"
# Rows of 2,048 tokens and the chunk of them whose logits exist at a time.
SHAPES = {LARGE: (4, 1024), SMALL: (16, 2048)}
# An attacker's batch: rows and tokens a row, of which a population's members each read their own.
ATTACK = (4, 64)
LEAST_SECONDS = 20.0  # a measurement is not begun with less left
MFU_GOAL, POPULATION_GOAL = 0.40, 3.0


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One row of the table.

    Attributes:
      way: "jax" or "torch".
      attention: of PyTorch, an implementation of transformers; ours is in the case.
    """

    model: str
    case: Case
    way: str = "jax"
    attention: str = ""


def measurements(options: Options) -> list[Measurement]:
    """Return what is measured, the most telling first, as `--minutes` may end it anywhere."""
    models = options.models({name: PRESETS[name] for name in SHAPES})
    models = {name: _shrunk(options, cfg) for name, cfg in models.items()}
    large, small = (options.preset or name for name in (LARGE, SMALL))
    online, cached, pretrain = (_case(options, large, models[large], work) for work in ("online", "cached", "pretrain"))
    few = dataclasses.replace(pretrain, cfg=models[small], batch=ATTACK[0], length=min(ATTACK[1], pretrain.length))
    written_out = dataclasses.replace(online.cfg, attention="plain", loss_head="chunked")
    return [
        Measurement(large, online),
        Measurement(large, online, "torch", "flex_attention"),
        Measurement(small, dataclasses.replace(few, members=options.members)),
        Measurement(small, few),
        Measurement(large, cached),
        Measurement(large, pretrain),
        Measurement(large, dataclasses.replace(online, cfg=written_out)),
        Measurement(large, pretrain, "torch", "flex_attention"),
        Measurement(large, cached, "torch", "flex_attention"),
        Measurement(large, online, "torch", "eager"),
    ]


def _shrunk(options: Options, cfg: TransformerConfig) -> TransformerConfig:
    cfg = dataclasses.replace(cfg, dtype=options.dtype or "bfloat16")
    if not options.tiny:
        return cfg
    return dataclasses.replace(cfg, vocab=64, layers=2, hidden=16, mlp=32, heads=2, kv_heads=1, head_dim=8)


def _case(options: Options, name: str, cfg: TransformerConfig, workload: str) -> Case:
    batch, chunk = (2, 8) if options.tiny else SHAPES.get(name, SHAPES[LARGE])
    length = options.length or (16 if options.tiny else 2048)
    cfg = dataclasses.replace(cfg, remat="auto")
    return Case(cfg, workload, options.batch or batch, length, options.chunk or chunk)


def accelerator(options: Options) -> Iterator[Result]:
    """Measure steps in JAX and in PyTorch, each in a process that has the device to itself, within `--minutes`.

    Yields:
      the result so far, after each measurement.

    Raises:
      ConfigError: on a CPU, unless the shapes are tiny.
    """
    end = time.monotonic() + options.minutes * 60 if options.minutes else float("inf")
    most = options.minutes * 20 if options.minutes else None  # of one row: a third of all time
    device = _ask({}, None)["device"]
    if device["platform"] == "cpu" and not options.tiny:
        raise ConfigError("bench accelerator: there is no accelerator here; --tiny tries it out on the CPU")
    rows: list[AcceleratorRow] = []
    for one in measurements(options):
        left = end - time.monotonic()
        limit = min(left, most) if most else None
        answer: StepTimes = {"error": f"not run: {max(left, 0):.0f} s were left"}
        if left > LEAST_SECONDS:
            measure = _jax if one.way == "jax" else _torch
            answer = measure(options, one, device["platform"], limit)
        rows.append(_row(one, answer, device["peak_flops"]))
        yield {"device": device, "rows": rows, "goals": _goals(rows)}


def _row(one: Measurement, answer: StepTimes, peak: float | None) -> AcceleratorRow:
    case = one.case
    row: AcceleratorRow = {
        "model": one.model,
        "workload": case.workload,
        "way": one.way,
        "attention": answer.get("attention", one.attention),
        "head": answer.get("head", ""),
        "remat": answer.get("remat", case.cfg.remat),
        "dtype": case.cfg.dtype,
        "batch": case.batch,
        "length": case.length,
        "members": case.members,
    }
    if "error" in answer:
        return {**row, "error": answer["error"]}
    seconds = summary(answer["seconds"])
    return {
        **row,
        "seconds": seconds,
        "tokens_per_second": case.tokens / seconds["min"],
        "mfu_6n": mfu(case.flops_6n() / seconds["min"], peak),
        "mfu_counted": mfu(case.flops() / seconds["min"], peak),
        "peak_bytes": answer.get("peak_bytes"),
        "compiler_bytes": answer.get("compiler_bytes"),
        "compile_seconds": answer.get("compile_seconds"),
        "loss": answer.get("loss"),
        "versions": answer.get("versions"),
    }


def _goals(rows: Sequence[AcceleratorRow]) -> list[Goal]:
    """Return the goals that the rows so far can answer."""
    done = [row for row in rows if "error" not in row]
    goals = []

    def fastest(model: str, workload: str, way: str, members: int = 1) -> AcceleratorRow | None:
        wanted = (model, workload, way, members)
        same = [r for r in done if (r["model"], r["workload"], r["way"], r["members"]) == wanted]
        return min(same, key=lambda row: row["seconds"]["min"]) if same else None

    for model, workload in dict.fromkeys((r["model"], r["workload"]) for r in done):
        ours, theirs = fastest(model, workload, "jax"), fastest(model, workload, "torch")
        if ours and workload == "online" and ours["mfu_6n"] is not None:
            goals.append(goal(f"{model}: {workload}, MFU by 6N + 2N", ours["mfu_6n"], least=MFU_GOAL))
        if ours and theirs:
            faster = ours["tokens_per_second"] / theirs["tokens_per_second"]
            goals.append(goal(f"{model}: {workload}, our speed / PyTorch's", faster, least=1.0))
    for row in done:
        alone = fastest(row["model"], row["workload"], "jax")
        if row["members"] > 1 and alone and (alone["batch"], alone["length"]) == (row["batch"], row["length"]):
            faster = row["tokens_per_second"] / alone["tokens_per_second"]
            goals.append(goal(f"{row['model']}: {row['members']} runs / population", faster, least=POPULATION_GOAL))
    return goals


def _jax(options: Options, one: Measurement, platform: str, limit: float | None) -> StepTimes:
    del platform
    spec = {"case": dataclasses.asdict(one.case), "steps": options.steps or 5, "repeats": options.repeats}
    return _ask(spec, limit)


def _ask(spec: JsonObject, limit: float | None) -> StepTimes:
    """Run `bench/case.py` and return its answer; a device that runs out of memory may also kill it."""
    command = [sys.executable, "-m", "distill_jax.bench.case", json.dumps(spec)]
    # JAX's allocator takes three quarters of the card unless told otherwise.
    env = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", **os.environ}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [*sys.path]))
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {limit:.0f} s"}
    if done.returncode == 0:
        answer: StepTimes = json.loads(done.stdout.splitlines()[-1])
        return answer
    last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1][:200]
    if not spec:
        raise ConfigError(f"bench accelerator: JAX cannot start: {last}")
    return {"error": f"exit code {done.returncode}: {last}"}


def _torch(options: Options, one: Measurement, platform: str, limit: float | None) -> StepTimes:
    if platform not in ("cpu", "gpu"):
        return {"error": f"PyTorch has no {platform} here"}
    kind, steps = "cuda" if platform == "gpu" else "cpu", options.steps or 5
    # Its own implementation of attention needs no recomputation to fit; written out, scores outweigh the weights.
    remat = "full" if one.attention == "eager" else "none"
    case = dataclasses.replace(one.case, members=1, cfg=dataclasses.replace(one.case.cfg, remat=remat))
    stepper = torch_stepper(
        options.torch_python, case, kind, compiled=kind == "cuda", attention=one.attention, limit=limit
    )
    try:
        with stepper as run:
            return {"remat": remat, "head": "chunked", **_torch_times(run, steps, options.repeats)}
    except Unavailable as error:
        return {"error": str(error), "remat": remat}


def _torch_times(run: TorchStepper, steps: int, repeats: int) -> StepTimes:
    taken = interleaved({"step": lambda: run.run(steps)}, repeats)["step"]
    return {
        "seconds": [t / steps for t in taken],
        "compile_seconds": run.about["first_step_seconds"],
        "peak_bytes": run.last["peak_bytes"],
        "loss": run.last["loss"],
        "versions": run.about["versions"],
    }
