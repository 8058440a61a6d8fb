"""Trace a window of training steps for xprof, in `plugins/profile/<time>/<host>.xplane.pb` of its directory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from distill_jax.io.staging import Growing
from distill_jax.types import PyTree

Step = Callable[..., PyTree]
STEP = "train"  # what a step is called in a trace


@contextlib.contextmanager
def traced(step: Step, window: Sequence[int], directory: Path, start: int = 0) -> Iterator[Step]:
    """Yield a step function that traces its calls of the window's first to last step into a directory.

    Steps are counted by calls from `start`, not read from the state, which would wait for the device. A stage that
    ends within the window closes its trace here; one that continues beyond it traces nothing.

    Args:
      window: first and last step; () traces nothing and gives the function back as it is.
    """
    if not window:
        yield step
        return
    first, last = window
    count = itertools.count(start)
    on, traces = False, Growing(directory)

    def stop() -> None:
        nonlocal on
        if on:
            jax.profiler.stop_trace()
            traces.push(durable=True)
            on = False

    def call(*args: PyTree) -> PyTree:
        nonlocal on
        s = next(count)
        if first <= s <= last and not on:
            jax.profiler.start_trace(str(traces.path))
            on = True
        with jax.profiler.StepTraceAnnotation(STEP, step_num=s):  # by which xprof tells steps apart
            out = step(*args)
        if s == last and on:
            jax.block_until_ready(out)  # the host runs ahead: the last step would be missing
            stop()
        return out

    try:
        yield call
    finally:
        stop()
        traces.close()
