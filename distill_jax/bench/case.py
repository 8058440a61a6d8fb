"""Time one case of the accelerator benchmark: `python -m distill_jax.bench.case '{"case": …, "steps": …}'`.

A process of its own, because a process's peak memory is never reset and it keeps the device's memory to itself.
"""

from __future__ import annotations

import json
import sys

import jax

from distill_jax.bench.bench_results import Device, StepTimes
from distill_jax.bench.steps import Case, Stepper
from distill_jax.bench.timing import interleaved
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import peaks


def device() -> Device:
    """Say what JAX runs on here."""
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "peak_flops": peaks.peak_flops(devices),
    }


def measure(case: Case, steps: int, repeats: int) -> StepTimes:
    """Return the seconds of a step, a number a round, the device's peak memory and the compiler's account of it."""
    run = Stepper(case)
    taken = interleaved({"step": lambda: run.run(steps)}, repeats)["step"]
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "seconds": [t / steps for t in taken],
        "compile_seconds": run.compile_seconds,
        "loss": run.loss,
        "peak_bytes": stats.get("peak_bytes_in_use"),
        "compiler_bytes": run.compiler_bytes,
        "attention": run.attention,
        "head": run.head,
        "remat": run.remat,
    }


def main(argument: str) -> None:
    """Print the answer as one line of JSON: the device alone if no case is given."""
    spec = json.loads(argument)
    answer: StepTimes = {"device": device()}
    if "case" in spec:
        case = Case(**spec["case"] | {"cfg": TransformerConfig(**spec["case"]["cfg"])})
        try:
            answer = {**answer, **measure(case, spec["steps"], spec["repeats"])}
        except jax.errors.JaxRuntimeError as error:
            answer["error"] = " ".join(str(error).split())[:200]
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
