"""The benchmarks that compare this program with itself, so that their ratios hold on any machine."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence

import jax

from distill_jax.bench.bench_results import Goal, Result, Row
from distill_jax.bench.options import Options
from distill_jax.bench.steps import Case, Stepper
from distill_jax.bench.timing import goal, summary, timed
from distill_jax.models.presets import PRESETS
from distill_jax.perf.memory import HeadShape
from distill_jax.perf.memory import kl_memory as memory_of_kl
from distill_jax.stages.compiled_step import compiled_step

# The narrow head of the CPU preset is cheap beside its layers, and still its teacher is not free; four times as wide,
# with MLPs of eight times the width, products outweigh everything else and the ratios near those of the FLOPs.
MLP_HEAVY = dataclasses.replace(PRESETS["cpu"], hidden=256, mlp=2048, head_dim=64, query_scale=64.0)
MODELS = {"cpu": PRESETS["cpu"], "cpu-mlp-heavy": MLP_HEAVY}  # of `distill`


def kl_memory(options: Options) -> Iterator[Result]:
    """Temporary memory of the KL and its gradients, a chunk of tokens at a time and a block against all at once."""
    shape = {"batch": options.batch or 4, "length": options.length or 2048, "vocab": options.vocab or 256_000}
    ways = ((options.chunk or 256, "chunked"), (0, "chunked"), (0, "blockwise"))
    rows = [{**memory_of_kl(chunk, HeadShape(**shape), way=way), **shape} for chunk, way in ways]
    ratio = rows[0]["temporary"] / rows[1]["temporary"]
    yield {"rows": rows, "ratio": ratio, "goals": [goal("chunked / dense", ratio, most=0.1)]}


def distill(options: Options) -> Iterator[Result]:
    """A step of online and of cached distillation against one of cross-entropy, equal sizes, one device."""
    shapes = options.models(MODELS)
    batch, length, chunk = options.batch or 16, options.length or 64, options.chunk or 0
    rows: list[Row] = []
    goals: list[Goal] = []
    for name, cfg in shapes.items():
        of = functools.partial(Case, cfg, batch=batch, length=length, chunk=chunk, devices=1)
        runs = {workload: Stepper(of(workload=workload)) for workload in ("pretrain", "online", "cached")}
        steps = options.steps or 2
        taken, busy = timed(runs, steps, options.repeats)
        base = runs["pretrain"]
        for workload, run in runs.items():
            ratio = min(taken[workload]) / min(taken["pretrain"])
            rows.append(
                {
                    "model": name,
                    "step": workload,
                    "batch": batch,
                    "length": length,
                    "seconds": summary(taken[workload]),
                    "cpu_seconds": summary(busy[workload]),
                    "compile_seconds": run.compile_seconds,
                    "ratio": ratio,
                    "cpu_ratio": min(busy[workload]) / min(busy["pretrain"]),
                    "flops_ratio": run.case.flops() / base.case.flops(),
                    "loss": run.loss,
                }
            )
            if workload != "pretrain":
                most = 1.45 if workload == "online" else 1.10
                goals.append(goal(f"{name}: {workload} / cross-entropy", ratio, most=most))
    yield {"rows": rows, "goals": goals}


def population(options: Options) -> Iterator[Result]:
    """Ten members in one program against ten runs one after another, compilation included in both."""
    default = "cpu" if jax.default_backend() == "cpu" else "gemma-0.1b"
    ((name, cfg),) = options.models({default: PRESETS[default]}).items()
    batch, length, steps = options.batch or 4, options.length or 64, options.steps or 100
    rates = [1e-3 * 0.6**i for i in range(options.members)]
    case = functools.partial(Case, cfg, "pretrain", batch, length, options.chunk or 0)
    times: dict[str, dict[str, list[float]]] = {}
    for _ in range(options.rounds):
        for way, groups in (("together", [rates]), ("one by one", [[rate] for rate in rates])):
            spent = dict.fromkeys(("whole", "compile", "steps"), 0.0)
            for group in groups:
                for key, value in _run_anew(case(members=len(group)), group, steps).items():
                    spent[key] += value
            for key, value in spent.items():
                times.setdefault(way, {}).setdefault(key, []).append(value)
    rows = [
        {"model": name, "way": way, "members": len(rates), "batch": batch, "length": length, "steps": steps}
        | {f"{key}_seconds": summary(values) for key, values in spent.items()}
        for way, spent in times.items()
    ]
    together, apart = times["together"], times["one by one"]
    faster = min(apart["whole"]) / min(together["whole"])
    least = 1.0 if jax.default_backend() == "cpu" else 3.0
    steps_alone = min(apart["steps"]) / min(together["steps"])
    yield {
        "rows": rows,
        "ratio": faster,
        "ratio_without_compilation": steps_alone,
        "goals": [goal("one by one / together", faster, least=least)],
    }


def _run_anew(case: Case, rates: Sequence[float], steps: int) -> dict[str, float]:
    """Make weights, compile and train as a process does that has compiled nothing yet; return the seconds."""
    compiled_step.cache_clear()
    jax.clear_caches()
    began = time.perf_counter()
    run = Stepper(case, rates)
    taken = run.run(steps)
    return {"whole": time.perf_counter() - began, "compile": run.compile_seconds, "steps": taken}
