"""Tokens a second, MFU and peak memory in bf16 on an accelerator, beside PyTorch on the same card."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

from distill_jax.bench.against_torch import Unavailable, torch_stepper
from distill_jax.bench.options import Options
from distill_jax.bench.steps import Case
from distill_jax.bench.timing import interleaved, summary
from distill_jax.config import ConfigError
from distill_jax.models.presets import PRESETS
from distill_jax.perf.peaks import mfu

# Rows of 2,048 tokens. The large shape recomputes its layers: without that, activations outweigh the weights.
SHAPES: dict[str, dict[str, Any]] = {
    "gemma-0.1b": {"batch": 16, "chunk": 2048, "remat": "none", "population": True},
    "gemma-2-2b": {"batch": 4, "chunk": 1024, "remat": "full", "population": False},  # ten of them fit nowhere
}
TINY = {"vocab": 64, "layers": 2, "hidden": 16, "mlp": 32, "heads": 2, "kv_heads": 1, "head_dim": 8}


def cases(options: Options) -> dict[tuple[str, str], Case]:
    """Return what is measured, by model and workload."""
    cases: dict[tuple[str, str], Case] = {}
    for name, cfg in options.models({name: PRESETS[name] for name in SHAPES}).items():
        shape = SHAPES.get(name, SHAPES["gemma-2-2b"])
        changes: dict[str, Any] = {
            "dtype": options.dtype or "bfloat16",
            "remat": shape["remat"],
            **(TINY if options.tiny else {}),
        }
        cfg = dataclasses.replace(cfg, **changes)
        length = options.length or (16 if options.tiny else 2048)
        batch = options.batch or (2 if options.tiny else shape["batch"])
        chunk = options.chunk or (8 if options.tiny else shape["chunk"])
        for workload in ("pretrain", "online", "cached"):
            cases[name, workload] = Case(cfg, workload, batch, length, chunk)
        if shape["population"]:
            # Every member holds a chunk's logits at the same time.
            share = max(chunk // options.members, 1)
            few = max(batch // 8, 1)
            cases[name, "population"] = Case(cfg, "pretrain", few, length, share, options.members)
    return cases


def accelerator(options: Options) -> dict[str, Any]:
    """Measure every case in JAX and in PyTorch, each in a process that has the device to itself.

    Raises:
      ConfigError: on a CPU, unless the shapes are tiny.
    """
    device = _ask({})["device"]
    if device["platform"] == "cpu" and not options.tiny:
        raise ConfigError("bench accelerator: there is no accelerator here; --tiny tries it out on the CPU")
    steps = options.steps or 5
    rows = []
    for (model, workload), case in cases(options).items():
        spec = {"case": dataclasses.asdict(case), "steps": steps, "repeats": options.repeats}
        answers = {"jax": _ask(spec), "torch": _torch(options, case, device["platform"], steps)}
        for way, answer in answers.items():
            rows.append(_row(model, workload, case, way, answer, device["peak_flops"]))
    return {"device": device, "rows": rows, "goals": []}


def _row(model: str, workload: str, case: Case, way: str, answer: dict[str, Any], peak: float | None) -> dict[str, Any]:
    members = case.members
    row: dict[str, Any] = {"model": model, "workload": workload, "way": way}
    row |= {"dtype": case.cfg.dtype, "batch": case.batch, "length": case.length, "members": members}
    if "error" in answer:
        return row | {"error": answer["error"]}
    if way == "torch":  # which has no population: its members run one after another, at one's speed
        case = dataclasses.replace(case, members=1)
    seconds = summary(answer["seconds"])
    return row | {
        "seconds": seconds,
        "tokens_per_second": case.tokens / seconds["min"],
        "mfu_6n": mfu(case.flops_6n() / seconds["min"], peak),
        "mfu_counted": mfu(case.flops() / seconds["min"], peak),
        **{key: answer.get(key) for key in ("peak_bytes", "compiler_bytes", "compile_seconds", "loss", "versions")},
    }


def _ask(spec: dict[str, Any]) -> dict[str, Any]:
    """Run `bench/case.py` and return its answer; a device that runs out of memory may also kill it."""
    command = [sys.executable, "-m", "distill_jax.bench.case", json.dumps(spec)]
    # JAX's allocator takes three quarters of the card unless told otherwise.
    env = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", **os.environ}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [*sys.path]))
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1][:200]
    if not spec:
        raise ConfigError(f"bench accelerator: JAX cannot start: {last}")
    return {"error": f"exit code {done.returncode}: {last}"}


def _torch(options: Options, case: Case, platform: str, steps: int) -> dict[str, Any]:
    if platform not in ("cpu", "gpu"):
        return {"error": f"PyTorch has no {platform} here"}
    one = dataclasses.replace(case, members=1)
    kind = "cuda" if platform == "gpu" else "cpu"
    try:
        with torch_stepper(options.torch_python, one, kind, compiled=kind == "cuda") as run:
            taken = interleaved({"step": lambda: run.run(steps)}, options.repeats)["step"]
            first, peak, loss = run.about["first_step_seconds"], run.last["peak_bytes"], run.last["loss"]
            seconds = [t / steps for t in taken]
            return {"seconds": seconds, "compile_seconds": first, "peak_bytes": peak, "loss": loss} | {
                "versions": run.about["versions"]
            }
    except Unavailable as error:
        return {"error": str(error)}
