"""A node's ledger: what it cost, by cause."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from typing import TypedDict

import jax

CAUSES = ("student", "teacher", "evaluation", "attack", "data")


class Ledger(TypedDict):
    """What a node cost, as `ledger.json` has it; see `ledger`."""

    flops: dict[str, float]
    tokens: dict[str, float]
    device_seconds: dict[str, float]
    seconds: float
    seconds_by_cause: dict[str, float]
    peak_bytes: int
    peak_device_bytes: int | None


def ledger(
    flops: Mapping[str, float],
    tokens: Mapping[str, float],
    seconds: Mapping[str, float],
    *,
    devices: int = 1,
    share: float = 1.0,
) -> Ledger:
    """Return a node's ledger.

    Args:
      flops, tokens: of the node by cause: student and attack forward and backward, teacher forward, evaluation, data.
        FLOPs are counted from shapes (`perf.flops`), tokens are rows × length or prompts × width, padding included.
      seconds: wall time of the population that the node trained in, by what was waited for (`train.loop.Clock`).
      devices: that the population ran on.
      share: the node's part of the population's FLOPs.

    `device_seconds` divides the population's time among its nodes by FLOPs, and the time that was neither evaluation
    nor waiting for data (compilation and saving too) among the node's causes likewise. `peak_bytes` is this process's
    largest resident set so far; `peak_device_bytes` the device's, where it tells.
    """
    device_memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "flops": dict(flops),
        "tokens": dict(tokens),
        "device_seconds": {k: round(v * share * devices, 3) for k, v in _by_cause(flops, seconds).items()},
        "seconds": round(sum(seconds.values()), 2),
        "seconds_by_cause": {k: round(v, 2) for k, v in seconds.items()},
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": device_memory.get("peak_bytes_in_use"),
    }


def training_flops(spent: Mapping[str, float]) -> float:
    """Return the FLOPs that "compute against retraining" counts: the student's and the teacher's."""
    return spent.get("student", 0.0) + spent.get("teacher", 0.0)


def _by_cause(flops: Mapping[str, float], seconds: Mapping[str, float]) -> dict[str, float]:
    apart = {"evaluation": seconds.get("evaluate", 0.0), "data": seconds.get("data", 0.0)}
    rest = sum(seconds.values()) - sum(apart.values())
    steps = {cause: count for cause, count in flops.items() if cause != "evaluation"}
    total = sum(steps.values())
    if total:
        return {cause: rest * count / total for cause, count in steps.items()} | apart
    only = "evaluation" if flops else "data"  # a stage that takes no steps
    return apart | {only: apart[only] + rest}
