"""Our step beside PyTorch's, which runs in a process of its own and, if need be, in another Python."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from distill_jax.bench.bench_results import Result, Row, TorchAnswer
from distill_jax.bench.options import Options
from distill_jax.bench.steps import Case, Stepper
from distill_jax.bench.timing import Timed, goal, summary, timed
from distill_jax.config import ConfigError
from distill_jax.interop import families
from distill_jax.models.presets import PRESETS

SCRIPT = Path(__file__).with_name("torch_step.py")


class Unavailable(RuntimeError):
    """PyTorch could not take the step: it is missing, sees no device, or ran out of memory."""


class TorchStepper:
    """PyTorch's step, waiting in its process.

    Attributes:
      about: parameters, versions, threads, first loss and the seconds of the first step.
      last: what it answered last: seconds, cpu_seconds, loss, peak_bytes.
    """

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process
        self.about = self._answer()
        self.last: TorchAnswer = {}

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of the last steps, over all threads."""
        return float(self.last["cpu_seconds"])

    def _answer(self) -> TorchAnswer:
        assert self._process.stdout
        line = self._process.stdout.readline()
        ended: TorchAnswer = {"error": f"ended without an answer {line.strip()}"}
        answer: TorchAnswer = json.loads(line) if line.startswith("{") else ended
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer

    def run(self, steps: int) -> float:
        """Take steps and return their seconds."""
        assert self._process.stdin
        # Its threads, and ours, spin for a moment after their last work.
        time.sleep(0.05)
        try:
            print(steps, file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise Unavailable("the process ended") from error
        self.last = self._answer()
        time.sleep(0.05)
        return float(self.last["seconds"])


@contextlib.contextmanager
def torch_stepper(
    python: str,
    case: Case,
    device: str,
    *,
    threads: int = 0,
    compiled: bool = False,
    attention: str = "eager",
    limit: float | None = None,
) -> Iterator[TorchStepper]:
    """Start PyTorch on a case.

    Args:
      attention: an implementation of transformers.
      limit: seconds after which the process is ended.

    Raises:
      Unavailable: with PyTorch's own reason.
    """
    if not case.cfg.tied:
        raise Unavailable("only a model with tied heads has a counterpart here")
    spec = {
        "model": dataclasses.asdict(case.cfg),
        "config": families.to_json(case.cfg),
        "workload": case.workload,
        "batch": case.batch,
        "length": case.length,
        "chunk": case.chunk,
        "device": device,
        "threads": threads,
        "compile": compiled,
        "attention": attention,
    }
    command = [python, str(SCRIPT), json.dumps(spec)]
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise Unavailable(f"cannot be started ({error.strerror})") from error
    timer = threading.Timer(limit or threading.TIMEOUT_MAX, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield TorchStepper(process)
    except Unavailable as error:
        stopped = limit and not timer.is_alive()
        raise Unavailable(f"stopped after {limit:.0f} s" if stopped else str(error)) from error
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def torch(options: Options) -> Iterator[Result]:
    """Our training step against PyTorch eager: same shape, batch, optimiser and threads, in turn.

    `taskset -c 0` gives both one core and so one thread: the fairer comparison where others use the machine, because
    PyTorch's threads wait for one another after every operation. So is the CPU time, which counts no waiting but that
    of threads that spin.
    """
    if jax.default_backend() != "cpu":
        raise ConfigError("bench torch compares on a CPU; the accelerator benchmark has PyTorch beside it")
    ((name, cfg),) = options.models({"cpu": PRESETS["cpu"]}).items()
    batch, length, steps = options.batch or 16, options.length or 128, options.steps or 3
    threads = len(os.sched_getaffinity(0))
    case = Case(cfg, "pretrain", batch, length, options.chunk)
    attention = "eager" if cfg.attention_softcap else "sdpa"  # sdpa leaves the softcap out
    try:
        with torch_stepper(options.torch_python, case, "cpu", threads=threads, attention=attention) as stepper:
            runs: dict[str, Timed] = {"torch": stepper}
            for devices in sorted({1, jax.device_count()}):
                ours = Stepper(dataclasses.replace(case, devices=devices))
                runs[f"jax, {devices} CPU device{'s' * (devices > 1)}"] = ours
            taken, busy = timed(runs, steps, options.repeats)
    except Unavailable as error:
        mend = "give --torch_python=PATH of one that has torch and transformers"
        raise ConfigError(f"{options.torch_python}: {error}; {mend}") from error
    rows: list[Row] = []
    speedups = []
    for way, seconds in taken.items():
        each = summary(seconds)
        speed = case.tokens / each["min"]
        ratios = {
            "speed_over_torch": min(taken["torch"]) / min(seconds),
            "cpu_time_over_torch": min(busy[way]) / min(busy["torch"]),
        }
        cpu = min(busy[way])
        shape = {"model": name, "batch": batch, "length": length, "threads": threads}
        rows.append({"way": way, **shape, "seconds": each, "cpu_seconds": cpu, "tokens_per_second": speed, **ratios})
        speedups.append(ratios["speed_over_torch"])
    best = max(speedups[1:])
    yield {"rows": rows, "torch": stepper.about, "goals": [goal("our speed / PyTorch's", best, least=1.0)]}
