"""How many GPUs of a type each unit of a sweep asks for: the least of a host on which its population trains together.

No compiler says for a GPU that is not there what a program needs, so a count of bytes decides: what a device holds at
least. A run whose population turns out not to fit cuts it by the compiler's account, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill_jax.config import ConfigError
from distill_jax.experiment.lowered_group import train_job
from distill_jax.experiment.slice_estimate import StepSizes, device_bytes, step_on_one_device, step_sizes
from distill_jax.experiment.unit_plan import Fit
from distill_jax.perf import gpus, memory
from distill_jax.stages.context import Context, Node
from distill_jax.units import size_text

COUNTS = (1, 2, 4, 8)  # of a host


class GpuPlanner:
    """Finds the least number of GPUs for each population; equal ones are counted once."""

    def __init__(self, kind: str) -> None:
        """Plan for GPUs of a type of `perf.gpus`."""
        self.kind = kind
        self._known: dict[tuple[Any, ...], list[float | None]] = {}

    def fit(self, ctx: Context, group: Sequence[Node]) -> Fit | None:
        """Return the least number on which a group trains together, else in parts; None if it takes no steps.

        Raises:
          ConfigError: if a single member fits on none.
        """
        if train_job(ctx, group) is None:
            return None
        room = memory.FILL * gpus.usable_bytes(self.kind)
        for members in (group, group[:1]):
            for count, size in zip(COUNTS, self._sizes(ctx, members), strict=True):
                if size is not None and size <= room:
                    return Fit(f"at least {size_text(size)} of {size_text(room)} each", gpus=count)
        least = min((size for size in self._sizes(ctx, group[:1]) if size is not None), default=None)
        need = f"a device needs at least {size_text(least)} of {size_text(room)}" if least else "they make no mesh"
        fix_hint = "name another type, set config.run.fsdp = -1, or shrink the batch or the loss_chunk"
        raise ConfigError(f"stages.{group[0].stage}: fits on no {COUNTS[-1]} GPUs {self.kind}: {need}; {fix_hint}")

    def _sizes(self, ctx: Context, group: Sequence[Node]) -> list[float | None]:
        """Return what a device of so many must hold, for each of COUNTS; None where they make no mesh."""
        key = (ctx.run.fsdp, ctx.run.tensor, *step_on_one_device(ctx, group).key)
        if key not in self._known:
            (sizes,) = step_sizes(ctx, [group])
            self._known[key] = [_device_bytes(ctx, sizes, count) for count in COUNTS]
        return self._known[key]


def _device_bytes(ctx: Context, sizes: StepSizes, devices: int) -> float | None:
    try:
        return device_bytes(ctx, sizes, devices)
    except ConfigError:
        return None
