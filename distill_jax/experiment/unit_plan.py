"""Which TPU slice each unit of a sweep asks for: the least of a generation on which its population trains together.

The compiler is asked once for each distinct population and slice, as `distill-jax plan` asks it. Where there is none,
the least count of bytes decides, and a line says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from distill_jax.config import ConfigError
from distill_jax.experiment import graph
from distill_jax.experiment.lowered_group import group_step, train_job
from distill_jax.experiment.slice_plan import Compiler, SlicePlanner
from distill_jax.perf.analysis_cache import AnalysisCache
from distill_jax.perf.compile_for import compiler_version, topology
from distill_jax.perf.prices import Prices
from distill_jax.perf.slices import SLICES, Slice
from distill_jax.stages.context import Context, Node
from distill_jax.units import size_text

MAX_CHIPS = 256


class Fit(NamedTuple):
    """A slice, or GPUs of a host, that a population fits on.

    Attributes:
      reason: what of a device is used, for people.
    """

    reason: str
    slice: Slice | None = None
    gpus: int = 0


class Planner(Protocol):
    """What finds the devices of a unit."""

    def fit(self, ctx: Context, group: Sequence[Node]) -> Fit | None: ...


def slices_of(generation: str) -> list[Slice]:
    """Return the slices of a generation that are planned for, the smallest first."""
    candidates = [s for s in SLICES.values() if s.generation == generation and s.chips <= MAX_CHIPS]
    return sorted(candidates, key=lambda s: s.chips)


class UnitPlanner:
    """Finds the least slice for each population; equal ones are planned once."""

    def __init__(self, generation: str, cache: AnalysisCache, say: Callable[[str], None], compiler: Compiler) -> None:
        """Plan for the slices of a generation.

        Args:
          say: what is compiled, a line at a time.
        """
        self._slices, self._cache, self._say, self._compiler = slices_of(generation), cache, say, compiler
        self._known: dict[tuple[Any, ...], Fit] = {}
        try:
            self._compiles = bool(compiler_version())
        except ConfigError as error:
            self._compiles = False
            say(f"slices by the least count of bytes, which may be too small: {error}")

    def fit(self, ctx: Context, group: Sequence[Node]) -> Fit | None:
        """Return the least slice on which a group trains together, else in parts; None if it takes no steps.

        Raises:
          ConfigError: if there is none.
        """
        job = train_job(ctx, group)
        if job is None:
            return None
        if not self._compiles:
            return self._by_count(ctx, group)
        step = group_step(ctx, group, topology(self._slices[-1]))
        if step.key not in self._known:
            self._known[step.key] = self._by_compiler(ctx, group)
        return self._known[step.key]

    def _by_count(self, ctx: Context, group: Sequence[Node]) -> Fit:
        job = train_job(ctx, group)
        least = graph.least_memory(ctx, job) if job else 0
        for where in self._slices:
            if least <= graph.FILL * where.devices * where.device_hbm:
                return Fit(f"at least {size_text(least / where.devices)} a device", where)
        raise self._none(group, least)

    def _by_compiler(self, ctx: Context, group: Sequence[Node]) -> Fit:
        planner = SlicePlanner(ctx, Prices.load(None), self._cache, self._say, self._compiler)
        alone = train_job(ctx, group[:1])
        least = graph.least_memory(ctx, alone) if alone else 0
        in_parts: Fit | None = None
        for where in self._slices:
            if least > where.devices * where.device_hbm:
                continue
            try:
                stages = planner.on_slice([group], where)
            except ConfigError as error:  # its wires do not make the mesh
                self._say(f"{where.name}: {error}")
                continue
            if not all(stage.fits for stage in stages):
                continue
            of = f"{size_text(max(s.hbm_bytes for s in stages))} of {size_text(stages[0].hbm_capacity)}"
            fit = Fit(of, where)
            if len(stages[0].population) == len(group):
                return fit
            in_parts = in_parts or fit
        if in_parts:
            return in_parts
        raise self._none(group, least)

    def _none(self, group: Sequence[Node], least: int) -> ConfigError:
        need = f"a step needs at least {size_text(least)}"
        largest = self._slices[-1]
        fix_hint = "shrink the batch or the loss_chunk, or name a slice yourself"
        return ConfigError(f"stages.{group[0].stage}: fits on no slice up to {largest.name} ({need}); {fix_hint}")
