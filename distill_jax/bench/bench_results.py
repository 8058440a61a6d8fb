"""What benchmarks measure, as their JSON file holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

Row = Mapping[str, object]  # what a table shows, by column


class Seconds(TypedDict):
    """Of several rounds: the minimum is the least disturbed, the median tells how disturbed the others were."""

    min: float
    median: float


class Goal(TypedDict):
    """A goal beside what was measured."""

    name: str
    value: float
    goal: str
    met: bool


class Device(TypedDict):
    """What JAX runs on."""

    platform: str
    kind: str
    count: int
    peak_flops: float | None


class StepTimes(TypedDict, total=False):
    """What a process answers that timed a step, or why it did not; a number of seconds a round."""

    device: Device
    error: str
    seconds: list[float]
    compile_seconds: float
    loss: float | None
    peak_bytes: int | None
    compiler_bytes: int | None
    attention: str
    head: str
    remat: str
    versions: dict[str, str]


class AcceleratorRow(TypedDict, total=False):
    """One measurement of the accelerator benchmark."""

    model: str
    workload: str
    way: str
    attention: str
    head: str
    remat: str
    dtype: str
    batch: int
    length: int
    members: int
    error: str
    seconds: Seconds
    tokens_per_second: float
    mfu_6n: float | None
    mfu_counted: float | None
    peak_bytes: int | None
    compiler_bytes: int | None
    compile_seconds: float | None
    loss: float | None
    versions: dict[str, str] | None


class TorchAnswer(TypedDict, total=False):
    """What PyTorch's process answers: once it is built, and then for every number of steps."""

    error: str
    ready: bool
    parameters: int
    first_step_seconds: float
    first_loss: float
    threads: int
    versions: dict[str, str]
    seconds: float
    cpu_seconds: float
    loss: float
    peak_bytes: int | None


class Result(TypedDict, total=False):
    """What a benchmark has measured so far."""

    rows: Sequence[Row]
    goals: list[Goal]
    ratio: float
    ratio_without_compilation: float
    torch: TorchAnswer
    device: Device
