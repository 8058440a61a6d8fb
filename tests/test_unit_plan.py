"""Which slice a unit of a sweep asks for: by what the compiler says of it, once a population; without one by count."""

from __future__ import annotations

import importlib.util
import re

import pytest

from distill_jax import axis, main, product, select_stages
from distill_jax.config import ConfigError
from distill_jax.experiment import slice_plan, unit_plan, work_units
from distill_jax.experiment.unit_plan import UnitPlanner
from distill_jax.perf import compile_for, slices
from distill_jax.perf.analysis_cache import AnalysisCache
from distill_jax.perf.compile_for import ProgramAnalysis
from distill_jax.perf.slices import GIB
from tests.test_work_units import ROOT, load

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def sweep():
    """Two populations of equal programs: references of either data set."""
    data = axis("data.multiplication_max", 3, 4)
    return load(select_stages(product(axis("seed", 0, 1), data), "reference"))


def compiler(total: float, asked: list):
    """Return a compiler that says of every program that all devices together need so many bytes."""

    def compile_(lowered, mesh):
        asked.append(mesh.size)
        needed = int(total / mesh.size)
        return ProgramAnalysis(dict.fromkeys(("arguments", "outputs", "aliased", "temporaries", "code"), 1), needed)

    return compile_


@pytest.mark.parametrize(
    ("total", "name", "hosts"),
    [
        (8, "v5e-1", 1),
        pytest.param(100, "v5e-8", 1, marks=pytest.mark.thorough),
        (200, "v5e-16", 4),
    ],
)
def test_the_least_slice_that_the_compiler_lets_pass(sweep, monkeypatch, total, name, hosts):
    pytest.importorskip("libtpu")
    asked: list[int] = []
    monkeypatch.setattr(slice_plan, "compile_for", compiler(total * GIB, asked))
    planner = UnitPlanner("v5e", AnalysisCache(None), lambda line: None, slice_plan.Compiler())
    units = [unit for unit in work_units.work_units(sweep, planner=planner) if unit.level]
    assert [(unit.resources.slice.name, unit.resources.hosts) for unit in units] == [(name, hosts)] * 2
    tried = [size for size in (1, 4, 8, 16) if size <= slices.find(name).devices]
    # Once for both populations: two seeds together, and where they are too large, one.
    assert asked == [size for size in tried for _ in range(1 if size == tried[-1] else 2)]
    assert f"{total / asked[-1]:.1f} GiB of 15.8 GiB" in str(units[0].resources)


def test_what_fits_nowhere_is_refused(sweep, monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setattr(unit_plan, "MAX_CHIPS", 4)
    monkeypatch.setattr(slice_plan, "compile_for", compiler(1e6 * GIB, []))
    planner = UnitPlanner("v5e", AnalysisCache(None), lambda line: None, slice_plan.Compiler())
    with pytest.raises(ConfigError, match=r"stages\.reference: fits on no slice up to v5e-4.*name a slice yourself"):
        work_units.work_units(sweep, planner=planner)


def test_without_the_compiler_the_count_of_bytes_decides_and_that_is_said(monkeypatch, capsys, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(compile_for.importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    file = tmp_path / "sweep.py"
    file.write_text(
        "from distill_jax import axis, select_stages\n"
        "def get_sweep(arg=''):\n"
        f"    return '{ROOT}/configs/arithmetic.py:smoke', select_stages(axis('seed', 0), 'reference')\n"
    )
    flags = [f"--sweep={file}", f"--workdir={tmp_path}/x", "--ray=auto", "--slice=v6e", "--dry-run"]
    assert main.main(["distill-jax", "sweep", *flags]) == 0
    out, err = capsys.readouterr()
    assert "slices by the least count of bytes, which may be too small" in err and "distill-jax[plan]" in err
    assert re.match(r"1\.0    reference: 1 CPU, v6e-1 \(at least 0\.[1-9] MiB a device\), ", out.splitlines()[1])
