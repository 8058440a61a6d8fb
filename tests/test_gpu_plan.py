"""How many GPUs of a type a unit of a sweep asks for: against weights, moments and gradients counted by hand."""

from __future__ import annotations

import pytest

from distill_jax import axis, product, select_stages
from distill_jax.config import ConfigError
from distill_jax.experiment import work_units
from distill_jax.experiment.engines import ray_engine
from distill_jax.experiment.gpu_plan import GpuPlanner
from distill_jax.experiment.work_units import Resources
from distill_jax.models import transformer
from distill_jax.perf import gpus, memory
from tests.test_work_units import load

pytestmark = pytest.mark.unit

BYTES = 16  # of a parameter: itself, two moments, and its gradient, in fp32
WIDE = axis("model.hidden", 1024), axis("model.mlp", 4096)  # beside its weights a step takes little


def sweep(*points):
    return load(select_stages(product(*WIDE, *points), "reference"))


@pytest.fixture(scope="module")
def two():
    """A population of two."""
    return sweep(axis("seed", 0, 1))


@pytest.fixture(scope="module")
def member(two) -> int:
    """What a member's weights, moments and gradients take."""
    return BYTES * transformer.parameter_count(two.shards[0].experiment.model)


def resources(of, room: float, monkeypatch) -> Resources:
    """Return what the one unit that trains needs, as if programs could take so many bytes of an H100."""
    monkeypatch.setattr(gpus, "usable_bytes", lambda kind: room / memory.FILL)
    units = work_units.work_units(of, Resources(2, gpu="h100"), planner=GpuPlanner("h100"))
    (unit,) = (unit for unit in units if unit.level)
    return unit.resources


@pytest.mark.parametrize(("members", "count"), [(2.5, 1), (1.25, 2)])
def test_members_of_a_population_are_divided_among_the_least_number(two, member, members, count, monkeypatch):
    needed = resources(two, members * member, monkeypatch)
    assert (needed.gpus, needed.slice) == (count, None)
    assert f"2 CPUs, {count} h100 (at least " in str(needed)
    assert ray_engine.host_options(needed)["num_gpus"] == count
    assert ray_engine.host_options(needed)["accelerator_type"] == "H100"


def test_weights_are_divided_only_where_the_config_says_so(member, monkeypatch):
    with pytest.raises(ConfigError, match=r"stages\.reference: fits on no 8 GPUs h100: .* config\.run\.fsdp = -1"):
        resources(sweep(axis("seed", 0)), 0.35 * member, monkeypatch)
    assert resources(sweep(axis("seed", 0), axis("run.fsdp", -1)), 0.35 * member, monkeypatch).gpus == 4


def test_what_does_not_fit_together_is_planned_for_its_parts(member, monkeypatch):
    nine = sweep(axis("seed", *range(9)))  # on eight, one has two of them
    assert resources(nine, 1.5 * member, monkeypatch).gpus == 1
