"""Plan: compile an experiment's stages for a TPU slice that is not there, and say what they take.

`distill-jax plan --config=FILE.py[:preset] --slice=v5e-16` hands each stage's own step, on the mesh that `run` would
make, to the XLA compiler for TPUs (libtpu), up to the schedule and the buffers of its program: machine code, which
takes it minutes, is asked for where something hangs on it. Memory per chip is the compiler's; FLOPs are counted from
shapes; traffic is read from the compiled program (perf/traffic.py). The seconds of a step are the largest of compute /
peak, HBM traffic / bandwidth and interconnect traffic / bandwidth: a floor, as if each ran at its peak and hid the
others. Evaluation, checkpoints, compilation and waiting for data are not in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jax.sharding import Mesh

from distill_jax.config import check, nearest
from distill_jax.experiment import graph
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.experiment.lowered_group import LoweredGroup, Lowering, group_step, train_job
from distill_jax.experiment.planned_stage import PlannedStage, idle_stage, planned_stages
from distill_jax.models import transformer
from distill_jax.models.remat import policies
from distill_jax.perf.analysis_cache import AnalysisCache, program_key
from distill_jax.perf.compile_for import ProgramAnalysis, compile_for, topology
from distill_jax.perf.prices import Prices
from distill_jax.perf.slices import Slice
from distill_jax.stages.context import Context, Node
from distill_jax.units import size_text

Groups = Sequence[Sequence[Node]]
Say = Callable[[str], None]
# Of what a step may need: a program that is larger before its code is generated is compiled to its end, as the code's
# own needs may take it over the limit. They were up to 7 % of the whole where both were compared.
CLOSE = 0.9


def compile_here(group: LoweredGroup, where: Slice, codegen: bool) -> ProgramAnalysis:
    """Compile a program in this process, to its end."""
    del where, codegen
    return compile_for(group.lowered, group.mesh)


@dataclasses.dataclass(frozen=True)
class Compiler:
    """How a plan asks the compiler.

    Attributes:
      ask: (program, slice, whether to go on to machine code) -> what the compiler says of it.
      codegen: whether it goes on to machine code also where nothing hangs on it.
    """

    ask: Callable[[LoweredGroup, Slice, bool], ProgramAnalysis] = compile_here
    codegen: bool = False


def planning_context(experiment: CheckedExperiment) -> Context:
    """Return the surroundings of stages that are only planned: no file of data or weights is looked at."""
    nodes = graph.build(experiment, Path("plan"))  # nothing is written there
    return Context.not_run(experiment.model, nodes, Path(), experiment.run)


def chosen_groups(ctx: Context, stages: Sequence[str] = ()) -> list[list[Node]]:
    """Return the populations of the named stages, with what trains together with them; all when none is named.

    Raises:
      ConfigError: if a stage is not there, or none takes steps.
    """
    for stage in stages:
        check(stage in ctx.nodes, f"--stages={stage}: no such stage{nearest(stage, ctx.nodes)}")
    groups = [g for g in graph.pack(list(ctx.nodes.values())) if not stages or {n.name for n in g} & set(stages)]
    planned = any(train_job(ctx, group) for group in groups)
    check(planned, "none of these stages takes steps that are compiled for a slice: there is nothing to plan")
    return groups


class SlicePlanner:
    """Plans stages for slices; a program that it compiled once it does not compile again."""

    def __init__(
        self, ctx: Context, prices: Prices, cache: AnalysisCache, say: Say, compiler: Compiler | None = None
    ) -> None:
        """Plan stages of one experiment.

        Args:
          cache: of what the compiler said before.
          say: what is done, a line at a time.
          compiler: this process's, to its end, when left out.
        """
        self.ctx, self.prices, self.say = ctx, prices, say
        self._cache, self._compiler = cache, compiler or Compiler()
        self._lowerings: dict[str, Lowering] = {}
        self._seconds: list[float] = []  # of each program that was compiled

    def on_slice(self, groups: Groups, where: Slice) -> list[PlannedStage]:
        """Compile the stages for one slice; what does not fit together is divided as `run` does."""
        stages: list[PlannedStage] = []
        jobs = [train_job(self.ctx, group) for group in groups]
        price = self.prices.chip_hour.get(where.generation)
        for i, group in enumerate(groups):
            count = f"[{i + 1}/{len(groups)}]"
            if jobs[i] is None:
                stages += [idle_stage(node, where) for node in group]
                self.say(f"{count} {', '.join(node.name for node in group)}: no steps")
                continue
            earlier, later = ({job.key for job in part if job} for part in (jobs[:i], jobs[i:]))
            left = list(group)
            while left:
                lowered, key, analysis = self._fitting(left, where, count, len(later - earlier))
                parameters = transformer.parameter_count(self.ctx.model)
                for stage in planned_stages(lowered, where, analysis, price, parameters):
                    stages.append(dataclasses.replace(stage, program=key[:12]))
                left = left[len(lowered.nodes) :]
        order = {name: i for i, name in enumerate(self.ctx.nodes)}
        return sorted(stages, key=lambda stage: order[stage.stage])

    def _fitting(
        self, nodes: Sequence[Node], where: Slice, count: str, programs: int
    ) -> tuple[LoweredGroup, str, ProgramAnalysis]:
        """Compile as many of the nodes, from the first on, as `run` would train together.

        Args:
          programs: that are left to compile for the slice, this one among them.
        """
        size, tried = len(nodes), policies(self.ctx.model.remat)
        while True:
            too_large = f", too large{' together' if size > 1 else ''}"
            names = f"{count} {', '.join(node.name for node in nodes[:size])}"
            for group in self._lower(nodes[:size], where):
                final = size == 1 and group.remat == tried[-1]
                with_policy = f", remat = {group.remat}" if len(tried) > 1 else ""
                if group.least_bytes > graph.FILL * where.device_hbm and not final:
                    self.say(f"{names}{with_policy}: needs at least {size_text(group.least_bytes)}, not compiled")
                    continue
                compiling = f"{names}{with_policy}: compiling for {where.name}{self._time_left(programs)}"
                key, analysis, how = self._analysis(group, where, compiling)
                fits = bool(analysis.hbm) and analysis.needed < graph.FILL * where.device_hbm
                self.say(f"{names}{with_policy}: {how}{'' if fits or final else too_large}")
                if fits or final:
                    return group, key, analysis
            size = (size + 1) // 2

    def _analysis(self, group: LoweredGroup, where: Slice, compiling: str) -> tuple[str, ProgramAnalysis, str]:
        """Return a program's hash, what the compiler says of it, and whether it was asked now, which is then said."""
        key, limit = program_key(group.lowered, where), graph.FILL * where.device_hbm
        analysis, how = self._cache.get(key), "compiled before"
        if analysis is None:
            self.say(compiling)
            analysis, how = self._compiled(key, group, where, self._compiler.codegen)
        if not analysis.final and (self._compiler.codegen or CLOSE * limit < analysis.needed < limit):
            self.say(f"{compiling}, to its end as it takes {size_text(analysis.needed)} of {size_text(limit)}")
            analysis, how = self._compiled(key, group, where, True)
        return key, analysis, how

    def _compiled(self, key: str, group: LoweredGroup, where: Slice, codegen: bool) -> tuple[ProgramAnalysis, str]:
        analysis = self._compiler.ask(group, where, codegen)
        self._cache.put(key, analysis)
        self._seconds.append(analysis.seconds)
        return analysis, f"compiled in {analysis.seconds:.0f} s"

    def _time_left(self, programs: int) -> str:
        """Return how long so many programs take if each takes as long as those compiled so far; "" before the first."""
        if not self._seconds:
            return ""
        minutes = programs * sum(self._seconds) / len(self._seconds) / 60
        left = f"{minutes:.0f} minutes" if minutes >= 1.5 else "a minute"
        return f", about {left} left for {programs} program{'s' if programs > 1 else ''}"

    def mesh(self, groups: Groups, where: Slice) -> Mesh:
        """Return the mesh that `run` would make of a slice for the first group that trains."""
        group = next(group for group in groups if train_job(self.ctx, group))
        return group_step(self.ctx, group, topology(where)).mesh

    def _lower(self, nodes: Sequence[Node], where: Slice) -> Iterator[LoweredGroup]:
        if where.name not in self._lowerings:
            self._lowerings = {where.name: Lowering(self.ctx, topology(where))}  # one slice's at a time: they are large
        return self._lowerings[where.name](nodes)
