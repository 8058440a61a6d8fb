"""docs/planning.md: each table can be made anew by the script beside it, which asks for what exists."""

import importlib.util
import sys
from pathlib import Path

import pytest

from distill_jax.experiment.planned_stage import PlannedStage
from distill_jax.perf.slices import find

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_planning", ROOT / "docs" / "make_planning.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look up their annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def row(fits=True):
    """Return what the file of a plan says of a stage, made by the program's own type."""
    stage = PlannedStage(
        *("undo", "distill", "v5e-16", 16),
        members=3,
        fits=fits,
        hbm_bytes=6 * 2**30,
        hbm_capacity=16 * 2**30,
        hbm={"arguments": 2**30, "temporaries": 2**31, "code": 3 * 2**30} if fits else {},
        flops_per_step=3e15,
        hbm_traffic=10**12,
        traffic_by_part={"mlp": 4 * 10**11, "attention": 6 * 10**11, "copies": 10**6},
        collectives={"all-gather": {"count": 2, "bytes": 5 * 10**9}},
        seconds={"compute": 0.5, "memory": 1.25, "interconnect": 0.25},
        step_seconds=1.25 if fits else None,
        mfu_ceiling=0.24 if fits else None,
        bound="memory",
        steps=100,
        chip_hours=12.0 if fits else None,
        cost=None,
    )
    return stage.as_json()


def test_every_table_has_its_place_in_the_page(script):
    page = script.PAGE.read_text(encoding="utf-8")
    for name in script.TABLES:
        once = script.replaced(page, name, "anew")
        assert "-->\nanew\n<!--" in once and script.replaced(once, name, "anew") == once
        others = [script.replaced(script.replaced(page, name, "x"), n, "x") for n in script.TABLES if n != name]
        assert all("x\n<!-- end of " in other for other in others)
    with pytest.raises(ValueError, match="no table other"):
        script.replaced(page, "other", "")


def test_what_the_script_plans_is_there(script):
    for plan in (plan for _, plans in script.TABLES.values() for plan in plans):
        assert (ROOT / "configs" / plan.config.partition(":")[0]).is_file()
        assert find(plan.slice)


@pytest.mark.parametrize("name", ["steps", "gemma", "llama", "organisms", "language"])
def test_a_table_says_what_the_plans_file_says(script, name):
    columns, plans = script.TABLES[name]
    lines = script.table(name, lambda plan: [row()]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(plans) and {line.count("|") for line in table} == {len(columns) + 1}
    assert all(f"distill-jax {' '.join(plan.arguments)}" in lines for plan in plans)
    cells = [cell.strip() for cell in table[2].split("|")[1:-1]]
    by_heading = dict(zip([heading for heading, _ in columns], cells, strict=True))
    assert by_heading["MFU at most"] == "24 %"
    if name == "steps":
        assert by_heading["seconds a step"] == "1.25" and by_heading["of them compute"] == "0.5"
        assert by_heading["through HBM in a step, GB, by part"] == "1,000: attention 600, mlp 400"
    else:
        assert by_heading["seconds: compute, memory, interconnect"] == "0.50, 1.25, 0.25"
        assert by_heading["USD"] == "unknown" and by_heading["received by a chip"] == "5 GB"
    refused = script.table(name, lambda plan: [row(fits=False)])
    assert refused.count("does not fit") == len(plans) * (len(columns) - 2)
