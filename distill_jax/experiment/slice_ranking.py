"""Choose the slice on which stages cost least: ranked by an estimate from shapes alone, then by the compiler."""

from __future__ import annotations

import math

from distill_jax.config import ConfigError, check
from distill_jax.experiment.lowered_group import train_job
from distill_jax.experiment.planned_stage import PlannedStage
from distill_jax.experiment.slice_estimate import SliceEstimate, estimate_group, step_sizes
from distill_jax.experiment.slice_plan import Groups, SlicePlanner
from distill_jax.perf.slices import CHIPS, SLICES, Slice
from distill_jax.units import size_text

MAX_CHIPS = 256
MAX_TRIED = 3  # slices on which the dearest stage fits; compiling takes minutes each
NEAR = 0.9  # of the cost of the best so far: what cannot be below is not compiled, which takes minutes


def cheapest(planner: SlicePlanner, groups: Groups) -> list[PlannedStage]:
    """Return the plan for the slice on which the stages together cost least.

    In the order of the estimate, the stage that takes most of the time is compiled for up to MAX_TRIED slices on which
    it fits. Left out are slices whose estimate is not a tenth below the least cost, and of a generation those that
    would not be if they were as far above their estimates as a smaller one is: what is not divided by more chips has a
    larger part there. The rest of the stages is compiled for the cheapest of these alone.

    Raises:
      ConfigError: if no slice with a price fits.
    """
    training = [group for group in groups if train_job(planner.ctx, group)]
    tried = _tried(planner, training)
    for estimate, _ in sorted(tried, key=lambda pair: pair[1]):
        stages = planner.on_slice(groups, estimate.where)
        if all(stage.fits for stage in stages):
            return stages
        planner.say(f"{estimate.where.name}: does not fit")
    raise ConfigError(f"no slice of up to {MAX_CHIPS} chips with a price fits; shrink the batch or the loss_chunk")


def _tried(planner: SlicePlanner, groups: Groups) -> list[tuple[SliceEstimate, float]]:
    """Compile the dearest stage for the slices that the estimate ranks first; return those it fits, and their costs."""
    tried: list[tuple[SliceEstimate, float]] = []
    above: list[tuple[Slice, float]] = []  # how many times its estimate each takes
    for estimate in ranked(planner, groups):
        where, least = estimate.where, min((cost for _, cost in tried), default=math.inf)
        if len(tried) == MAX_TRIED or estimate.cost >= NEAR * least:
            break
        of_smaller = (x for it, x in above if it.generation == where.generation and it.chips < where.chips)
        if estimate.cost * max(of_smaller, default=1.0) >= NEAR * least:
            continue
        try:
            stages = planner.on_slice([estimate.dearest.nodes], where)
        except ConfigError as error:  # its wires do not make the mesh
            planner.say(f"{where.name}: {error}")
            continue
        if not all(stage.fits for stage in stages):
            planner.say(f"{where.name}: does not fit")
            continue
        slower = sum(stage.chip_hours or 0.0 for stage in stages) / estimate.chip_hours(estimate.dearest)
        cost = slower * estimate.cost  # as if the other stages were as far from their estimates
        planner.say(f"{where.name}: fits, {cost:.2f} {planner.prices.currency}, estimated {estimate.cost:.2f}")
        above.append((where, slower))
        tried.append((estimate, cost))
    return tried


def ranked(planner: SlicePlanner, groups: Groups) -> list[SliceEstimate]:
    """Return the slices that may hold the stages, the cheapest by the estimate first; of equal ones the smallest."""
    priced = {g: price for g, price in planner.prices.chip_hour.items() if g in CHIPS}
    check(bool(priced), f"--slice=auto: the price table has none of {', '.join(CHIPS)}")
    sizes = list(step_sizes(planner.ctx, groups))
    estimates = []
    for where in SLICES.values():
        if where.generation in priced and where.chips <= MAX_CHIPS:
            try:
                each = [estimate_group(planner.ctx, one, where) for one in sizes]
            except ConfigError as error:
                planner.say(f"{where.name}: {error}")
                continue
            estimates.append(SliceEstimate(where, each, priced[where.generation]))
    small = [e for e in estimates if e.hbm > e.where.device_hbm]
    if small:
        need = ", ".join(f"{e.where.name} ({size_text(e.hbm)})" for e in small)
        planner.say(f"not compiled, as a device needs more than it has: {need}")
    fitting = [e for e in estimates if e.hbm <= e.where.device_hbm]
    least = min((e.cost for e in fitting), default=1.0) or 1.0
    fitting.sort(key=lambda e: (round(math.log(max(e.cost / least, 1.0)), 2), e.where.chips))
    planner.say("estimated: " + ", ".join(f"{e.where.name} {e.cost:.2f}" for e in fitting[:8]))
    return fitting
