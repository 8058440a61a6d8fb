"""The roofline of a compiled step: what it takes at least on a slice, by the same counts in a plan and in a run."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from distill_jax.perf import flops
from distill_jax.perf.compile_for import ProgramAnalysis, analyse
from distill_jax.perf.slices import Slice, of_devices
from distill_jax.types import PyTree


def step_floors(executed: float, analysis: ProgramAnalysis, where: Slice) -> dict[str, float]:
    """Return the seconds that a step takes at least for each of what it needs, as if at its peak and alone.

    Args:
      executed: FLOPs of its products on all devices, with what is computed twice.
    """
    floors = {"compute": executed / where.devices / where.device_flops}
    if analysis.hbm:
        received, far = (sum(kind["bytes"] for kind in x.values()) for x in (analysis.collectives, analysis.network))
        floors["memory"] = sum(analysis.traffic.values()) / where.device_bandwidth
        floors["interconnect"] = received / where.interconnect if received else 0.0
        if where.slices > 1:
            floors["network"] = far / where.device_network
    return floors


def predicted_seconds(step: object, inputs: Sequence[PyTree], mesh: Mesh) -> float | None:
    """Return the seconds of a step by the plan's roofline of the program that runs; None if the plan has none for it.

    The program is compiled if it was not yet, and is then the one that the next call of `step` runs.

    Args:
      step: a jitted function; of any other, as on devices that the plan does not know, nothing is predicted.
      inputs: of the step, arrays or shapes with shardings.
    """
    where = of_devices(list(mesh.devices.flat))
    if where is None or not isinstance(step, jax.stages.Wrapped):
        return None
    traced = step.trace(*inputs)
    compiled = traced.lower().compile()
    analysis = analyse(compiled, [getattr(device, "slice_index", 0) for device in mesh.devices.flat])
    return max(step_floors(flops.executed(traced.jaxpr.jaxpr), analysis, where).values())
