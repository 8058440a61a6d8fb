"""--slice=auto: slices are ranked before any is compiled, few are compiled, and no program twice."""

import dataclasses
import json
import types

import jax
import pytest
from jax.experimental import pallas

from distill_jax import main
from distill_jax.commands import plan
from distill_jax.config import ConfigError
from distill_jax.experiment import compile_process, slice_estimate, slice_plan, slice_ranking
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.experiment.lowered_group import LoweredGroup, Lowering, group_step
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import analysis_cache, flops
from distill_jax.perf.analysis_cache import AnalysisCache, program_key
from distill_jax.perf.compile_for import ProgramAnalysis
from distill_jax.perf.prices import Prices
from distill_jax.perf.slices import CHIPS, GIB, find
from distill_jax.perf.traffic import PARTS
from distill_jax.stages import Distill, Perturb, Pretrain
from distill_jax.stages.context import RunSettings
from tests import mesh_worker
from tests.traced import TINY, traced_step

pytestmark = pytest.mark.unit
HBM = dict.fromkeys(("arguments", "outputs", "aliased", "temporaries", "code"), 1000)
STAGES = {
    "reference": Pretrain(steps=100, batch=8),
    "damaged": Perturb(start="reference"),
    "undo": Distill(teacher="reference", start="damaged", steps=1000, batch=8),
    "again": Distill(teacher="reference", start="damaged", steps=10, batch=8),
}


class Compiler:
    """Stand in for the TPU compiler: a program fits from so many chips on, and is bound by HBM."""

    def __init__(self, monkeypatch, traffic=lambda where: 10**14, fits_from=1):
        self.traffic, self.fits_from = traffic, fits_from
        self.compiled = []
        monkeypatch.setattr(slice_plan, "topology", self.topology)
        monkeypatch.setattr(slice_plan, "Lowering", self.lowering)
        monkeypatch.setattr(slice_plan, "compile_for", self.compile_for)
        monkeypatch.setattr(analysis_cache, "compiler_version", lambda: "0")

    def topology(self, where):
        self.asked = where
        return jax.devices()[:1] * where.devices

    def lowering(self, ctx, devices):
        def lower(nodes):
            step = group_step(ctx, nodes, devices)
            settings = step.job.settings
            where = self.asked
            program = types.SimpleNamespace(as_text=lambda: f"{settings.kind} {settings.steps}", where=where)
            return [LoweredGroup(None, nodes, 1, 1.0, 1.0, "none", 0.0, step.mesh, program, ())]

        return lower

    def compile_for(self, lowered, mesh):
        where = lowered.where
        assert mesh.size == where.devices
        self.compiled.append((where.name, lowered.as_text()))
        if where.chips < self.fits_from:
            return ProgramAnalysis({}, 10**15)
        return ProgramAnalysis(HBM, 3000, traffic={"other": int(self.traffic(where))})


def planner(prices, say=lambda line: None, stages=STAGES):
    data = mesh_worker.Data(row_length=32)
    experiment = CheckedExperiment("it", "", TransformerConfig(**TINY), data, stages, RunSettings(fsdp=-1))
    ctx = slice_plan.planning_context(experiment)
    return slice_plan.SlicePlanner(ctx, Prices("USD", "", prices), AnalysisCache(None), say)


def cheapest(planner):
    return slice_ranking.cheapest(planner, slice_plan.chosen_groups(planner.ctx))


@pytest.mark.parametrize("prices", [{"v5e": 1.0, "v6e": 1.9}, {"v5e": 1.0, "v6e": 2.2}, {"v6e": 1.0, "v5e": 1e9}])
def test_the_cheapest_slice_that_fits_is_taken(monkeypatch, prices):
    """Bound by HBM, the same seconds on any number of chips: the smallest slices that fit have 4."""
    Compiler(monkeypatch, fits_from=4)
    stages = cheapest(planner(prices))
    cost = {g: 1e14 / CHIPS[g].bandwidth * 1110 * 4 / 3600 * price for g, price in prices.items()}
    assert {stage.slice for stage in stages} == {f"{min(cost, key=cost.__getitem__)}-4"}
    assert sum(stage.cost for stage in stages) == pytest.approx(min(cost.values()))


def test_a_slice_that_is_far_above_its_estimate_speaks_against_larger_ones(monkeypatch):
    """Estimated alike, v5e-8 is tried first; what it takes above its estimate, v5e-16 takes as well, v5e-4 may not."""
    traffic = {4: 9e13, 8: 8e13, 16: 7e13}  # of a device, by chips: the cost is this times the chips
    compiler = Compiler(monkeypatch, lambda where: traffic[where.chips])
    estimates = {"v5e-8": 1.0, "v5e-16": 1.01, "v5e-4": 1.02}

    def ranked(planner, groups):
        group = slice_estimate.GroupEstimate([planner.ctx.nodes["undo"]], 0.0, 1.0, 1000)
        each = {name: (find(name), cost) for name, cost in estimates.items()}
        return [
            slice_estimate.SliceEstimate(w, [dataclasses.replace(group, seconds=c / w.chips)], 1.0)
            for w, c in each.values()
        ]

    monkeypatch.setattr(slice_ranking, "ranked", ranked)
    assert {stage.slice for stage in cheapest(planner({"v5e": 1.0}))} == {"v5e-4"}
    assert {where for where, _ in compiler.compiled} == {"v5e-8", "v5e-4"}


def test_only_the_stage_that_takes_longest_is_compiled_for_slices_that_are_not_taken(monkeypatch):
    compiler = Compiler(monkeypatch)
    where = cheapest(planner({g: 1.0 for g in CHIPS}))[0].slice
    elsewhere = [program for name, program in compiler.compiled if name != where]
    assert 0 < len(elsewhere) <= slice_ranking.MAX_TRIED and set(elsewhere) == {"distill 1000"}
    assert len(set(compiler.compiled)) == len(compiler.compiled)


def test_what_compute_alone_makes_dearer_is_not_compiled(monkeypatch):
    compiler = Compiler(monkeypatch, traffic=lambda where: 1)
    cheapest(planner({"v6e": 1.0, "v5e": 1e9, "v4": 1e9}))
    assert {where.split("-")[0] for where, _ in compiler.compiled} == {"v6e"}


def test_recomputation_that_a_small_slice_needs_is_in_its_estimate():
    """Bound by compute, v5e-1 and v5e-4 cost the same unless the smaller one has to compute more again."""
    few, many = slice_estimate.PolicySizes(1.2e15, 0.0), slice_estimate.PolicySizes(1e15, 30 * GIB)
    plan_of = planner({"v5e": 1.0})
    group = [plan_of.ctx.nodes["undo"]]
    sizes = slice_estimate.StepSizes(group, GIB, GIB, 0, 0, [many, few], 10)
    one, four = (slice_estimate.estimate_group(plan_of.ctx, sizes, find(f"v5e-{n}")) for n in (1, 4))
    assert one.seconds == pytest.approx(1.2e15 / CHIPS["v5e"].flops)
    assert four.seconds == pytest.approx(1e15 / CHIPS["v5e"].flops / 4)


def test_what_is_compiled_is_said_before_with_the_time_that_is_left(monkeypatch):
    Compiler(monkeypatch)
    analysis = ProgramAnalysis(HBM, 3000, traffic={"other": 1}, seconds=120.0)
    monkeypatch.setattr(slice_plan, "compile_for", lambda *_: analysis)
    lines = []
    plan_of = planner({"v5e": 1.0}, lines.append)
    plan_of.on_slice(slice_plan.chosen_groups(plan_of.ctx), find("v5e-4"))
    compiling = [line.partition(": ")[2] for line in lines if ": compiling" in line]
    first, second = "compiling for v5e-4", "compiling for v5e-4, about 4 minutes left for 2 programs"
    assert compiling[:2] == [first, second] and "2 minutes left for 1 program" in compiling[2]


def test_what_costs_nothing_is_taken(monkeypatch):
    Compiler(monkeypatch)
    stages = cheapest(planner({"v4": 0.0, "v6e": 1.0}))
    assert stages[0].slice.startswith("v4-") and sum(stage.cost for stage in stages) == 0


def test_a_slice_whose_wires_make_no_such_mesh_is_left_out(monkeypatch):
    compiler = Compiler(monkeypatch, fits_from=4)
    lowering = compiler.lowering

    def refusing(ctx, devices):
        if len(devices) == 4:
            raise ConfigError("undo: no such mesh")
        return lowering(ctx, devices)

    monkeypatch.setattr(slice_plan, "Lowering", refusing)
    lines = []
    assert cheapest(planner({"v5e": 1.0}, lines.append))[0].slice == "v5e-8"
    assert "v5e-4: undo: no such mesh" in lines


def test_nothing_that_fits_is_one_line(monkeypatch):
    Compiler(monkeypatch, fits_from=10**6)
    monkeypatch.setattr(slice_ranking, "MAX_CHIPS", 4)
    with pytest.raises(ConfigError, match="no slice"):
        cheapest(planner({"v5e": 1.0}))
    with pytest.raises(ConfigError, match="price table has none"):
        cheapest(planner({"v1": 1.0}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("8", "2x2x1"), ("64", "2x4x4"), ("128", "4x4x4"), ("384", "4x4x12"), ("768", "4x8x12"), ("4096", "8x16x16")],
)
def test_slices_of_ironwood_are_named_and_shaped_as_xpk_has_them(name, shape):
    where = find(f"tpu7x-{name}")
    assert where.topology == f"tpu7x:{shape}" and where.devices == 2 * where.chips == int(name)
    assert where.device_flops * where.devices == 2307e12 * where.chips and where.device_hbm < 96 * GIB


def test_an_estimate_counts_what_no_program_can_avoid(monkeypatch):
    """Against the same step traced: its FLOPs, and its state and gradients on one device of a slice."""
    plan_of = planner({"v5e": 1.0})
    group = [plan_of.ctx.nodes["reference"]]
    (sizes,) = slice_estimate.step_sizes(plan_of.ctx, [group])
    traced = traced_step(TransformerConfig(**TINY), STAGES["reference"], jax.devices()[:1], length=32)[2]
    assert sizes.policies[0].flops == flops.executed(traced.jaxpr.jaxpr)
    one, four = (slice_estimate.estimate_group(plan_of.ctx, sizes, find(f"v5e-{n}")) for n in (1, 4))
    parameters = sum(x.size for x in jax.tree.leaves(traced.in_avals[0][0].params))
    kept = 8 * 32 * TINY["hidden"] * TINY["layers"] * 4
    assert one.hbm == pytest.approx(16 * parameters + kept, rel=0.01) and four.hbm == pytest.approx(one.hbm / 4)
    assert one.seconds >= sizes.policies[0].flops / CHIPS["v5e"].flops and four.seconds < one.seconds


def test_a_batch_that_does_not_divide_is_planned_with_its_padding():
    def lowered(batch):
        ctx = planner({}, stages={"it": Pretrain(steps=1, batch=batch)}).ctx
        return next(Lowering(ctx, jax.devices()[:2])([ctx.nodes["it"]]))

    seven, eight = lowered(7), lowered(8)
    assert seven.executed == eight.executed and seven.flops == eight.flops * 7 / 8
    assert "padded to 8" in seven.notes[0] and not eight.notes


def test_a_wrong_slice_is_refused_before_the_config_is_read(capsys, tmp_path):
    (tmp_path / "config.py").write_text("raise SystemExit('read')")
    assert main.main(["distill-jax", "plan", f"--config={tmp_path}/config.py", "--slice=tpu7x-129"]) == 2
    message = capsys.readouterr().err
    assert "--slice=tpu7x-129: no such slice (did you mean 'tpu7x-" in message and "tpu7x-8|16|32" in message


def test_the_command_prints_and_writes_what_it_planned(monkeypatch, tmp_path, capsys):
    compiler = Compiler(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compile_process, "compile_apart", slice_plan.compile_here)
    for key, value in plan.PLANNING.items():  # which the command sets for its own process
        monkeypatch.setenv(key, value)
    compiled_parts = dict.fromkeys(PARTS, 0) | {"mlp": 6 * 10**13, "head": 4 * 10**13}
    monkeypatch.setattr(slice_plan, "compile_for", lambda *_: ProgramAnalysis(HBM, 3000, traffic=compiled_parts))
    command = ["distill-jax", "plan", "--config=language:smoke", "--stages=reference", f"--json={tmp_path}/plan.json"]
    assert main.main([*command, "--slice=tpu7x-8", "--verbose"]) == 0
    printed = capsys.readouterr().out
    (row,) = json.loads((tmp_path / "plan.json").read_text())
    assert row["slice"] == "tpu7x-8" and row["chips"] == 4 and sum(row["mesh"].values()) >= 8 and row["cost"] is None
    assert row["hbm_traffic"] == sum(row["traffic_by_part"].values()) == 10**14
    assert row["step_seconds"] == pytest.approx(10**14 / 3690e9)  # half of a chip's bandwidth is a device's
    assert row["mfu_ceiling"] == pytest.approx(row["flops_per_step"] / (4 * 2307e12) / row["step_seconds"])
    assert "No price of a tpu7x chip-hour is known" in printed and "mlp 60,000 GB, head 40,000 GB" in printed
    assert "layers/mlp/down" in printed and not compiler.compiled
    monkeypatch.setattr(slice_plan, "compile_for", None)  # what is kept is read
    assert main.main([*command, "--slice=tpu7x-8"]) == 0 and "compiled before" in capsys.readouterr().out


# What was compiled once.


def lowered(text="a program"):
    return types.SimpleNamespace(as_text=lambda: text)


def test_a_kept_analysis_is_read_by_another_process(tmp_path):
    collectives = {"all-gather": {"count": 2, "bytes": 5}}
    analysis = ProgramAnalysis(HBM, 3000, collectives, collectives, {"mlp": 7}, 1, 2.5, ("warning",))
    AnalysisCache(tmp_path / "new" / "directory").put("key", analysis)
    assert AnalysisCache(tmp_path / "new" / "directory").get("key") == analysis
    assert AnalysisCache(tmp_path).get("key") is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"analysis": {}}', None])
def test_a_damaged_entry_is_a_miss(tmp_path, damage):
    AnalysisCache(tmp_path).put("key", ProgramAnalysis(HBM, 3000))
    path = tmp_path / "key.json"
    path.write_text(path.read_text().replace("3000", "3001") if damage is None else damage)
    assert AnalysisCache(tmp_path).get("key") is None


def test_a_directory_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").write_text("")
    cache = AnalysisCache(tmp_path / "file" / "below")
    cache.put("key", ProgramAnalysis(HBM, 3000))
    assert cache.get("key") == ProgramAnalysis(HBM, 3000)


def test_the_least_recently_used_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis_cache, "MAX_ENTRIES", 3)
    cache = AnalysisCache(tmp_path)
    for i, key in enumerate("abcd"):
        cache.put(key, ProgramAnalysis({}, i))
        path = tmp_path / f"{key}.json"
        if path.exists():
            analysis_cache.os.utime(path, (i, i))
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["b", "c", "d"]


def test_a_key_is_of_the_program_the_slice_the_compiler_and_the_reader(monkeypatch):
    monkeypatch.setattr(analysis_cache, "compiler_version", lambda: "1")
    key = program_key(lowered(), find("v5e-4"))
    assert key == program_key(lowered(), find("v5e-4"))
    keys = {key, program_key(lowered("another"), find("v5e-4")), program_key(lowered(), find("v6e-4"))}
    monkeypatch.setattr(analysis_cache, "_readers", lambda: "another")
    keys.add(program_key(lowered(), find("v5e-4")))
    monkeypatch.setattr(analysis_cache, "compiler_version", lambda: "2")
    keys.add(program_key(lowered(), find("v5e-4")))
    assert len(keys) == 5


KERNEL = """
def kernel(x, out):
    out[...] = x[...] * 2

def double(x):
    with jax.named_scope("attention"):
        return pl.pallas_call(kernel, out_shape=x)(x)
"""


def test_a_kernel_is_the_same_program_from_whatever_line_it_is_called(monkeypatch):
    monkeypatch.setattr(analysis_cache, "compiler_version", lambda: "1")

    def key(shift):
        names = {"jax": jax, "pl": pallas}
        exec(compile("\n" * shift + KERNEL, "kernel.py", "exec"), names)
        shape = jax.ShapeDtypeStruct((8, 128), jax.numpy.float32)
        program = jax.jit(names["double"]).trace(shape).lower(lowering_platforms=("tpu",))
        assert "attention" in program.as_text(debug_info=True)  # by which traffic is told apart
        return program_key(program, find("v5e-4"))

    before = jax.config.jax_traceback_in_locations_limit
    assert key(0) != key(5)
    jax.config.update("jax_traceback_in_locations_limit", int(plan.PLANNING["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"]))
    try:
        assert key(10) == key(20)
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def test_the_cache_lies_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert analysis_cache.default_directory() == tmp_path / "distill_jax" / "plan"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert analysis_cache.default_directory() == tmp_path / "home" / ".cache" / "distill_jax" / "plan"
