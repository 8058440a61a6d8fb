"""Numbers as they come: JSON lines (the record), TensorBoard scalars and a console line (for the eye)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from distill_jax.config import ConfigError, check
from distill_jax.io.journal import Prefix
from distill_jax.io.staging import Growing
from distill_jax.io.storage import make_directory, naming, read_bytes
from distill_jax.types import JsonObject
from distill_jax.units import span


def read_rows(path: Path) -> list[JsonObject]:
    """Return the rows of a metrics file.

    Raises:
      ConfigError: if a line of it is no row.
    """
    try:
        return [json.loads(line) for line in read_bytes(path).decode().splitlines()]
    except ValueError as error:
        fix_hint = f"remove {path.parent} and run again to compute it anew"
        raise ConfigError(f"{path} is damaged ({error}); {fix_hint}") from error


def rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return numbers as they are written: to eight digits, and None for those that are not finite."""
    return {key: float(f"{value:.8g}") if math.isfinite(value) else None for key, value in values.items()}


class Metrics:
    """Append rows to `metrics.jsonl` and TensorBoard.

    Args:
      start: the step to continue from; there is nothing before 0.
      kept: what `metrics.jsonl` held at that step, which is kept; what was written after it goes.
    """

    def __init__(self, directory: Path, start: int = 0, kept: Prefix | None = None) -> None:
        if start and kept is None:
            raise ValueError(f"{directory}: a checkpoint of step {start} knows no rows")
        self.path = directory / "metrics.jsonl"
        self._growing = Growing(self.path)
        self._file = open(self._growing.path, "ab")  # noqa: SIM115 - it lives as long as this object
        self._file.seek(self._file.truncate(kept.bytes if kept else 0))
        self._hash = hashlib.sha256(self._growing.path.read_bytes())
        self._events = Growing(directory / "tensorboard")
        make_directory(self._events.path)
        # Not SummaryWriter, which writes from a thread of its own: there a full disk is nobody's exception.
        self._board = EventsWriter(str(self._events.path / "events"))
        self._board.write_event(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def write(self, kind: str, step: int, member: str, values: dict[str, float]) -> None:
        """Write one row of one member; what is not finite is written as null."""
        plain = rounded(values)
        self._append({"kind": kind, "step": step, "member": member, **plain})
        for name, value in plain.items():
            if value is not None:
                shown = scalar(f"{kind}/{name}" + (f"/{member}" if member else ""), value)
                self._board.write_event(Event(step=step, wall_time=time.time(), summary=shown))

    def write_counts(self, kind: str, step: int, member: str, name: str, counts: Sequence[float]) -> None:
        """Write one row with a list of counts or sums, which is for the record and not for the eye."""
        plain = [int(x) if float(x).is_integer() else round(x, 4) for x in counts]
        self._append({"kind": kind, "step": step, "member": member, name: plain})

    def _append(self, row: Mapping[str, str | int | float | list[float] | None]) -> None:
        line = f"{json.dumps(row)}\n".encode()
        with naming(self.path):
            self._file.write(line)
        self._hash.update(line)

    def flush(self) -> None:
        """Push everything written so far out to the files; to object storage at most every half minute."""
        self._flush()
        self._growing.push()
        self._events.push()

    def _flush(self) -> None:
        with naming(self.path):
            self._file.flush()
        self._board.flush()

    def sync(self) -> Prefix:
        """Flush everything written so far to the disk; return what a checkpoint of this moment must know of it."""
        self._flush()
        with naming(self.path):
            os.fsync(self._file.fileno())
        self._growing.push(durable=True)
        self._events.push()
        return Prefix(self._file.tell(), self._hash.hexdigest())

    def close(self) -> None:
        """Flush everything to the disk and close.

        Raises:
          ConfigError: if the file is not what was written to it.
        """
        try:
            written = self.sync()
            self._events.push(durable=True)
        finally:
            self._file.close()
            self._board.close()
            self._growing.close()
            self._events.close()
        fix_hint = f"remove {self.path.parent} and run again to compute it anew"
        check(written.is_all_of(self.path), f"{self.path}: something else wrote to it during the run; {fix_hint}")


@dataclasses.dataclass(frozen=True)
class TrainingSize:
    """How long a training is and what a step of it takes.

    Attributes:
      steps: of the whole stage.
      tokens_per_step: rows × length.
      flops: of the whole stage, as planned.
      ideal: seconds of a step at the devices' peak FLOP/s, for the MFU; None where no peak is known.
      predicted: seconds of a step by the plan's roofline; None where there is no prediction.
    """

    steps: int
    tokens_per_step: float
    flops: float
    ideal: float | None = None
    predicted: float | None = None


class Progress:
    """Print where the run is: stage of how many, step, loss, tokens a second, MFU, time left for stage and run.

    The run's time left is its remaining FLOPs at the rate at which steps have gone, and what stages took beside their
    steps (compiling, reading, measuring), for each that is left.
    """

    def __init__(self, stages: int, flops: float, every: float = 5.0, out: TextIO | None = None) -> None:
        self.stages, self.every, self.out = stages, every, out or sys.stdout
        self.stage, self.name, self._training = 0, "", ""
        self.workers = 1  # that share what is left
        self.flops_left = flops
        self._stepping, self._flops_done = 0.0, 0.0  # seconds of finished trainings' steps, and the FLOPs of these
        self._beside, self._finished = 0.0, 0  # seconds that finished stages took beside steps, and how many there are
        self._first: tuple[float, int] = (0.0, 0)  # when speed began to be measured, and at which step
        self._here = (0.0, 0.0)  # seconds and FLOPs since then
        self._calls = 0
        self._last = -math.inf

    def say(self, text: str) -> None:
        """Print one line at once."""
        print(text, file=self.out, flush=True)

    def begin(self, name: str, count: int = 1) -> None:
        """Start the next stage (or `count` stages that run as one)."""
        self.stage += count
        self._count, self._before = count, self._stepping
        self.name, self._began = name, time.monotonic()
        self.begin_training(name)

    def begin_training(self, name: str) -> None:
        """Start one of the stage's trainings, whose steps count from their own beginning."""
        self._stepping, self._flops_done = self._stepping + self._here[0], self._flops_done + self._here[1]
        self._training, self._calls, self._last, self._here = name, 0, -math.inf, (0.0, 0.0)

    def step(self, step: int, size: TrainingSize, text: str) -> None:
        """Report a step, at most once in `every` seconds."""
        now = time.monotonic()
        if self._calls < 2:
            self._first = (now, step)  # the first step's time is mostly compilation
        self._calls += 1
        step_flops = size.flops / max(size.steps, 1)
        elapsed, done = now - self._first[0], step - self._first[1]  # steps of an earlier process are not in this time
        self._here = elapsed, step_flops * done
        if now - self._last < self.every and step < size.steps:
            return
        self._last = now
        rate = done / elapsed if done and elapsed else 0.0
        left = span((size.steps - step) / rate) if rate else "?"
        mfu = f"MFU {100 * rate * size.ideal:.1f} %  " if size.ideal and rate else ""
        plan = f"{100 * rate * size.predicted:.0f} % of the plan's speed  " if size.predicted and rate else ""
        run_left = self._run_left(self.flops_left - step_flops * step)
        speed = f"{rate * size.tokens_per_step:,.0f} tok/s" if rate else "starting"
        self.say(
            f"[{self.stage}/{self.stages}] {self._training}  step {step}/{size.steps}  {text}  "
            f"{speed}  {mfu}{plan}stage {left} left, run {run_left} left"
        )

    def finish(self, flops: float, text: str) -> None:
        """Close a stage that was planned at this many FLOPs."""
        self.begin_training("")
        spent = time.monotonic() - self._began
        self._beside += spent - (self._stepping - self._before)
        self._finished += self._count
        self.flops_left -= flops
        self.say(f"[{self.stage}/{self.stages}] {self.name}  {text}  ({span(spent)})")

    def _run_left(self, left: float) -> str:
        """Return how long so many FLOPs take, and the stages that have not begun."""
        stepping, done = self._stepping + self._here[0], self._flops_done + self._here[1]
        beside = self._beside / self._finished if self._finished else 0.0
        seconds = left * stepping / done + beside * (self.stages - self.stage) if done > 0 else math.nan
        return "?" if math.isnan(seconds) else span(seconds / self.workers)
