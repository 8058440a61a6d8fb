"""A node's ledger: what it cost, by cause."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import TypedDict

import jax

from distill_jax.perf.clock import CAUSES as TIME_CAUSES
from distill_jax.perf.clock import Lap

CAUSES = ("student", "teacher", "evaluation", "attack", "data")
STEPS = ("student", "teacher", "attack")  # of them, what steps compute


class Goodput(TypedDict):
    """Where a node's wall time went.

    Attributes:
      seconds: by cause (`perf.clock`); they add up to the wall time.
      processes: that worked on it; None of several nodes together.
      achieved: FLOP/s of steps over the seconds that went into them; None if none did.
      predicted: FLOP/s by the plan's roofline of the very programs that ran (`perf.roofline`); None where the plan has
        no figures for the devices.
    """

    seconds: dict[str, float]
    processes: int | None
    achieved: float | None
    predicted: float | None


class Ledger(TypedDict):
    """What a node cost, as `ledger.json` has it; see `ledger`."""

    flops: dict[str, float]
    tokens: dict[str, float]
    device_seconds: dict[str, float]
    seconds: float
    goodput: Goodput
    peak_bytes: int
    peak_device_bytes: int | None


def ledger(
    flops: Mapping[str, float],
    tokens: Mapping[str, float],
    lap: Lap,
    *,
    devices: int = 1,
) -> Ledger:
    """Return a node's ledger.

    Args:
      flops, tokens: of the node by cause: student and attack forward and backward, teacher forward, evaluation, data.
        FLOPs are counted from shapes (`perf.flops`), tokens are rows × length or prompts × width, padding included.
      lap: the node's wall time; of a population's, its share by FLOPs.
      devices: that it ran on.

    `device_seconds` divides the time that was neither evaluation nor waiting for data (compilation and saving too)
    among the node's causes by FLOPs. `peak_bytes` is this process's largest resident set so far; `peak_device_bytes`
    the device's, where it tells.
    """
    device_memory = jax.local_devices()[0].memory_stats() or {}
    steps, wall = sum(flops.get(cause, 0.0) for cause in STEPS), sum(lap.seconds.values())
    seconds = {cause: round(lap.seconds.get(cause, 0.0), 4) for cause in TIME_CAUSES}
    return {
        "flops": dict(flops),
        "tokens": dict(tokens),
        "device_seconds": {k: round(v * devices, 3) for k, v in _by_cause(flops, lap.seconds).items()},
        "seconds": round(wall, 2),
        "goodput": {
            "seconds": seconds,
            "processes": lap.processes,
            "achieved": steps / seconds["step"] if steps and seconds["step"] else None,
            "predicted": lap.predicted if steps else None,
        },
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": device_memory.get("peak_bytes_in_use"),
    }


def total(parts: Sequence[Goodput], idle: float = 0.0) -> Goodput:
    """Return where the time of several nodes went together.

    Args:
      idle: seconds of their workers outside nodes, such as those that waited for a lease.
    """
    seconds = {cause: sum(part["seconds"][cause] for part in parts) for cause in TIME_CAUSES}
    seconds["idle"] += idle
    achieved, predicted = _speeds([part for part in parts if part["achieved"] is not None])
    return {"seconds": seconds, "processes": None, "achieved": achieved, "predicted": predicted}


def _speeds(parts: Sequence[Goodput]) -> tuple[float | None, float | None]:
    """Return the FLOP/s of several nodes together, achieved and predicted; the latter None if one of them has none."""
    counts = [part["seconds"]["step"] * (part["achieved"] or 0.0) for part in parts]
    taken = sum(part["seconds"]["step"] for part in parts)
    speeds = [part["predicted"] for part in parts]
    needed = sum(count / speed for count, speed in zip(counts, speeds, strict=True) if speed)
    return sum(counts) / taken if parts else None, sum(counts) / needed if needed and all(speeds) else None


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
