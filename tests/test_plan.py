"""Planning: slices, prices, the reading of compiled programs, FLOPs against XLA's own count, and a whole plan."""

import dataclasses
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from distill_jax import main
from distill_jax.commands import plan
from distill_jax.config import ConfigError
from distill_jax.experiment import graph, slice_plan
from distill_jax.experiment.config_file import load_experiment, load_module
from distill_jax.experiment.lowered_group import LoweredGroup, group_step
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import compile_for, flops, hlo
from distill_jax.perf.analysis_cache import AnalysisCache
from distill_jax.perf.collectives import KINDS, collectives
from distill_jax.perf.compile_for import ProgramAnalysis, topology
from distill_jax.perf.prices import Prices
from distill_jax.perf.slices import CHIPS, SLICES, find
from distill_jax.perf.traffic import traffic_by_part
from distill_jax.reports import plan_table
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages import Distill, Pretrain, Relearn, Unlearn
from tests.traced import TINY, traced_step

ROOT = Path(__file__).parent.parent

CONFIG = """
import dataclasses
from ml_collections import ConfigDict
from distill_jax.data.text.text_config import TextConfig
from distill_jax.experiment.experiment import Experiment
from distill_jax.models.presets import preset
from distill_jax.stages import Distill, Perturb, Pretrain

def get_config(arg=""):
    c = ConfigDict({"experiment": "tiny", "description": "", "seed": 0})
    c.model = ConfigDict(dataclasses.asdict(preset("gemma-0.1b", dtype="bfloat16", **%r)))
    c.data = ConfigDict({"retain": "", "forget": "", "row_length": 128})
    c.run = ConfigDict({"loss_chunk": 256, "fsdp": -1, "tensor": 1})
    c.steps = 100
    return c

def get_experiment(c):
    stages = {
        "reference": Pretrain(steps=c.steps, batch=8),
        "again": Pretrain(data="retain", steps=c.steps, batch=8),
        "damaged": Perturb(start="reference"),
        "undo": Distill(teacher="reference", start="damaged", steps=c.steps, batch=8),
    }
    return Experiment(stages=stages, data=TextConfig)
""" % (TINY,)  # noqa: UP031 - the text is full of braces


@pytest.fixture(autouse=True)
def planning(monkeypatch):
    """Set what a planning process sets for itself, and take it back."""
    for key, value in plan.PLANNING.items():
        monkeypatch.setenv(key, value)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


# Slices.


@pytest.mark.unit
def test_an_accelerator_type_counts_chips_or_cores_as_gcloud_does():
    chips = {
        "v5e-16": 16,
        "v5e-256": 256,
        "v6e-8": 8,
        "v6e-1": 1,
        "v5p-8": 4,
        "v5p-128": 64,
        "v4-8": 4,
        "v4-4096": 2048,
    }
    assert {name: find(name).chips for name in chips} == chips
    assert find("v5p-6144").topology == "v5:12x16x16" and find("v5p-12288").topology == "v5:16x16x24"
    assert find("v5e-16").topology == "v5e:4x4"


@pytest.mark.unit
def test_only_whole_tori_have_rings():
    # 4 × 4 of a v5e is a grid: one link at its edges on each of two axes. 16 × 16 is a torus: two.
    assert find("v5e-256").interconnect == 2 * find("v5e-16").interconnect == 4 * 50e9
    assert find("v5p-128").interconnect == 6 * 100e9
    assert find("v5p-8").interconnect == 2 * 100e9
    assert find("v5e-1").interconnect == 0


@pytest.mark.unit
@pytest.mark.parametrize("name", ["v5e-4", "v6e-8", "v5p-16", "v4-32", "v5p-640", "tpu7x-16"])
def test_libtpu_knows_a_slice(name):
    pytest.importorskip("libtpu")
    devices = topology(find(name))
    assert len(devices) == find(name).devices


@pytest.mark.unit
def test_a_mesh_may_share_a_wire_of_the_torus():
    """30 members on 8 × 8 chips: two rows of 32, though 32 is no product of the sides."""
    pytest.importorskip("libtpu")
    mesh = make_mesh(30, devices=topology(find("v5e-64")))
    assert dict(mesh.shape) == {"population": 2, "data": 32, "fsdp": 1, "tensor": 1}


@pytest.mark.unit
def test_an_unknown_slice_lists_them(config, capsys):
    assert main.main(["distill-jax", "plan", f"--config={config}", "--slice=v5e-17"]) == 2
    said = capsys.readouterr().err
    assert "v5e-17" in said and "v5e-1|4|8|16|32|64|128|256" in said and "v6e-" in said and "v5p-8|16" in said
    assert main.main(["distill-jax", "plan", f"--config={config}"]) == 2
    assert "--slice" in capsys.readouterr().err


@pytest.mark.unit
def test_a_missing_compiler_is_one_line(config, capsys, monkeypatch):
    found = compile_for.importlib.util.find_spec
    monkeypatch.setattr(compile_for.importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name))
    assert main.main(["distill-jax", "plan", f"--config={config}", "--slice=v5e-4"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install" in said


# Prices.


@pytest.mark.unit
def test_the_shipped_prices_cover_every_generation_that_has_a_list_price():
    prices = Prices.load(None)
    assert set(prices.chip_hour) == set(CHIPS) - {"tpu7x"} and prices.date and "pricing" in prices.note


@pytest.mark.unit
@pytest.mark.parametrize(
    "text", ["{", "[]", '{"currency": "USD"}', '{"currency": "", "date": "", "chip_hour": {"v4": "1"}}']
)
def test_a_bad_price_table_is_refused(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ConfigError, match=r"p\.json"):
        Prices.load(str(tmp_path / "p.json"))
    with pytest.raises(ConfigError, match="none"):
        Prices.load(str(tmp_path / "none.json"))


def context(config):
    module = load_module(config)
    return slice_plan.planning_context(load_experiment(module, module.get_config()))


def planner(ctx, chip_hour, say=lambda line: None):
    return slice_plan.SlicePlanner(ctx, Prices("EUR", "today", chip_hour), AnalysisCache(None), say)


def stub(fits_from, traffic=10**12):
    """Return a stand-in for the compiler: programs fit from so many chips on, and are bound by HBM."""

    def compile_for(lowered, mesh):
        hbm = dict.fromkeys(("arguments", "outputs", "aliased", "temporaries", "code"), 1000)
        if mesh.size >= fits_from:
            return ProgramAnalysis(hbm, 3000, traffic={"other": traffic})
        return ProgramAnalysis({}, 10**15)

    return compile_for


@pytest.mark.unit
def test_the_cost_is_time_chips_and_price(config, monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setattr(slice_plan, "compile_for", stub(1))
    ctx = context(config)
    plan_of = planner(ctx, {"v5e": 7.0})
    groups = [[ctx.nodes["reference"]], [ctx.nodes["damaged"]]]
    stage, idle = plan_of.on_slice(groups, find("v5e-4"))
    assert stage.step_seconds == pytest.approx(1e12 / 819e9)
    assert stage.cost == pytest.approx(1e12 / 819e9 * 100 * 4 / 3600 * 7.0)
    assert idle.cost == idle.steps == 0 and idle.fits
    assert "7.00 EUR a chip-hour" in plan_table.table([stage, idle], plan_of.prices)
    stages = plan_of.on_slice(groups, find("v6e-4"))
    assert stages[0].cost is None and stages[0].chip_hours > 0
    assert "No price of a v6e chip-hour is known" in plan_table.table(stages, plan_of.prices)


@pytest.mark.unit
def test_a_population_that_does_not_fit_is_planned_in_the_parts_that_run_would_take(config, monkeypatch):
    pytest.importorskip("libtpu")
    ctx, lines, most = context(config), [], 0.8 * CHIPS["v5e"].hbm
    group = [dataclasses.replace(ctx.nodes["reference"], name=f"seed-{i}", peers=5) for i in range(5)]
    ctx.nodes |= {node.name: node for node in group}
    hbm = dict.fromkeys(("arguments", "outputs", "aliased", "temporaries", "code"), 1)
    sizes = []

    class ByMembers:
        """Lower nothing: a program is as large as it has members."""

        def __init__(self, ctx, devices):
            self.mesh = group_step(ctx, group[:1], devices).mesh

        def __call__(self, nodes):
            sizes.append(len(nodes))
            program = types.SimpleNamespace(as_text=lambda: str(len(nodes)))
            return [LoweredGroup(None, nodes, len(nodes), 1.0, 1.0, "none", 0.0, self.mesh, program, ())]

    def compile_for(lowered, where):
        return ProgramAnalysis(hbm, int(most / 2 * int(lowered.as_text())))

    monkeypatch.setattr(slice_plan, "Lowering", ByMembers)
    monkeypatch.setattr(slice_plan, "compile_for", compile_for)
    stages = planner(ctx, {"v5e": 1.0}, lines.append).on_slice([group], find("v5e-4"))
    # Five and three are too many, two fit; then of the three that are left.
    assert sizes == [5, 3, 2, 3, 2, 1] and [stage.members for stage in stages] == [2, 2, 2, 2, 1]
    together = "[1/1] seed-0, seed-1, seed-2, seed-3, seed-4"
    assert lines[:2] == [f"{together}: compiling for v5e-4", f"{together}: compiled in 0 s, too large together"]
    assert "compiled before, too large" in lines[6]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory, the total memory required for HLO temporaries (17.50G) exceeds", 17.5),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.25G of 15.75G hbm.", 20.25),
    ],
)
def test_a_refusal_says_how_much_was_needed(message, needed):
    assert compile_for.refused_bytes(message) == needed * 2**30
    with pytest.raises(RuntimeError):
        compile_for.refused_bytes("INTERNAL: something else")


# Compiled programs.

HLO = """HloModule jit_step, entry_computation_layout={()->f32[]}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %all-gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%x), channel_id=1, replica_groups={{0,1,2,3}}
  %start = bf16[4,8]{1,0} all-reduce(%x), channel_id=2, replica_groups=[2,2]<=[4], to_apply=%add
  ROOT %t = (s32[], bf16[4,8]) tuple(%i, %x)
}

%condition (q: (s32[], bf16[4,8])) -> pred[] {
  %q = (s32[], bf16[4,8]) parameter(0)
  %bound = s32[]{:T(128)} constant(5)
  %counter = s32[] get-tuple-element(%q), index=0
  ROOT %less = pred[] compare(%counter, %bound), direction=LT
}

%first (a: f32[4]) -> f32[16] {
  ROOT %all-gather.2 = f32[16]{0} all-gather(%a), channel_id=7, replica_groups=mesh['x'=1,'y'=4] {'y'}, dimensions={0}
}

%second (b: f32[4]) -> f32[16] {
  ROOT %all-gather.3 = f32[16]{0} all-gather(%b), channel_id=7, replica_groups=mesh['x'=1,'y'=4] {'y'}, dimensions={0}
}

%sliced (big: f32[100,8], i: s32[]) -> f32[1,8] {
  %big = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %ds = f32[1,8]{1,0} dynamic-slice(%big, %i, %zero), dynamic_slice_sizes={1,8}
}

ENTRY %main (arg: f32[4]) -> f32[] {
  %arg = f32[4]{0} parameter(0)
  %big = f32[100,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %loop = (s32[], bf16[4,8]) while(%init), condition=%condition, body=%body
  %begin = f32[16]{0:S(1)} fusion(%arg), kind=kCustom, calls=%first
  %end = f32[16]{0:S(1)} fusion(%begin), kind=kCustom, calls=%second
  %permute = (f32[4]{0:S(1)}, f32[4]{0:S(1)}, u32[], u32[]) collective-permute-start(%arg), channel_id=9
  %scatter = f32[4]{0:S(1)} reduce-scatter(%end), channel_id=10, replica_groups={}, dimensions={0}, to_apply=%add
  %row = f32[1,8]{1,0} fusion(%big, %i), kind=kLoop, calls=%sliced
  ROOT %out = f32[]{:S(1)} constant(0)
}
"""


@pytest.mark.unit
def test_collectives_count_as_often_as_their_loop_runs():
    found, across = collectives(*hlo.parse(HLO), slice_of=[0] * 4)
    assert across == {}
    assert found == {
        # Five times 16 × 8 bf16 of which 3/4 come from others, and once, though in two pieces, 16 fp32.
        "all-gather": {"count": 6, "bytes": 5 * 256 * 3 // 4 + 64 * 3 // 4},
        # Groups of two: 2 · (n - 1) / n of 64 bytes.
        "all-reduce": {"count": 5, "bytes": 5 * 64},
        "collective-permute": {"count": 1, "bytes": 16},
        "reduce-scatter": {"count": 1, "bytes": 48},
    }


@pytest.mark.unit
def test_a_loop_without_a_bound_is_reported():
    assert hlo.runs(*hlo.parse(HLO))[1] == 0
    assert (
        hlo.runs(*hlo.parse(HLO.replace("s32[]{:T(128)} constant(5)", "s32[] get-tuple-element(%q), index=0")))[1] == 1
    )


@pytest.mark.unit
def test_hbm_traffic_counts_slices_and_leaves_out_on_chip_memory():
    # A turn of the loop reads x twice and writes the reduced one; the gathered one stays on the chip, and the counter
    # is compared with its bound. Outside it the 16 bytes of arg are read by the gather's first piece (its inside names
    # no parameter, so nothing) and by the permute (its type lists on-chip arrays only). The row is read and written.
    in_loop = 5 * (64 + 64 + 64 + (1 + 4 + 4))
    assert sum(traffic_by_part(*hlo.parse(HLO)).values()) == in_loop + 2 * 32 + 4 + 2 * 4


@pytest.mark.unit
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize(
    "settings",
    [
        Pretrain(batch=16),
        Distill(teacher="t", batch=16),
        Unlearn(start="t", batch=16),
        Relearn(start="t", batch=16, learning_rates=(1e-3,), seeds=1),
    ],
    ids=lambda stage: stage.kind,
)
def test_flops_agree_with_xla_where_nothing_is_scanned(settings, remat):
    wide = {**TINY, "hidden": 256, "mlp": 1024, "head_dim": 64}
    cfg = TransformerConfig(**wide, unroll=2, remat=remat)
    what, shapes, traced = traced_step(cfg, settings, jax.devices()[:1])
    compiled = traced.lower().compile()
    counted = compiled.cost_analysis()["flops"]
    assert flops.executed(traced.jaxpr.jaxpr) == pytest.approx(counted, rel=0.05)
    if remat == "none":
        assert sum(what.flops.values()) == pytest.approx(counted, rel=0.05)
        # The same program, loop-free: its traffic too can be held against XLA's.
        assert sum(traffic_by_part(*hlo.parse(compiled.as_text())).values()) == pytest.approx(
            compiled.cost_analysis()["bytes accessed"], rel=0.05
        )
        state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes[0]))
        assert compiled.memory_analysis().alias_size_in_bytes == state  # donated, all of it


@pytest.mark.unit
def test_a_step_counts_the_same_flops_scanned_or_not():
    cfg = TransformerConfig(**TINY)

    def count(unroll, chunk):
        unrolled = TransformerConfig(**TINY, unroll=unroll)
        traced = traced_step(unrolled, Pretrain(batch=4), jax.devices()[:1], loss_chunk=chunk)[2]
        return flops.executed(traced.jaxpr.jaxpr)

    assert count(1, 0) == count(2, 0)
    head = 2 * cfg.hidden * cfg.vocab * 4 * 64
    # In chunks the head's forward runs again in the backward pass, and one position a row is padding.
    assert count(1, 64) - count(1, 0) == pytest.approx(head, rel=0.1)


@pytest.mark.unit
def test_no_logits_travel_between_devices():
    cfg = TransformerConfig(**TINY)
    _, _, traced = traced_step(cfg, Distill(teacher="t", batch=8), jax.devices()[:2], fsdp=2, loss_chunk=128)
    module, _ = hlo.parse(traced.lower().compile().as_text())
    moved = [max(hlo.sizes(i.result)) for lines in module.values() for i in lines if i.opcode.startswith(KINDS)]
    assert moved and max(moved) <= 4 * cfg.vocab * cfg.hidden < 4 * cfg.vocab * 128


# The whole.


@pytest.mark.unit
@pytest.mark.parametrize("name", ["wmdp.py", "wmdp.py:9b", "wmdp.py:70b"])
def test_what_a_config_names_has_to_be_there_to_run_and_not_to_plan(name, tmp_path, capsys):
    path, _, arg = name.partition(":")
    module = load_module(ROOT / "configs" / path)
    nodes = graph.build(load_experiment(module, module.get_config(arg)), tmp_path)
    assert {"reference", "maxent"} <= set(nodes)
    given = ["distill-jax", "run", f"--config={ROOT}/configs/{name}", f"--workdir={tmp_path}/w"]
    assert main.main(given) == 2
    assert "data.bio and data.cyber are empty" in capsys.readouterr().err and not (tmp_path / "w").exists()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--slice=v5e-17"], "--slice=v5e-17: no such slice (did you mean 'v5e-1'"),
        (["--slice=v5e-16", "--stages=referense"], "--stages=referense: no such stage (did you mean 'reference'"),
    ],
)
def test_a_wrong_slice_or_stage_is_refused_before_anything_else(given, says, capsys):
    """Also before the data, of which here nothing is right."""
    wrong = ["--config.data.english=('/no/such',)", "--config.data.equations=3"]
    assert main.main(["distill-jax", "plan", f"--config={ROOT}/configs/arithmetic.py", *wrong, *given]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("arithmetic.py", {"data.english": ("/no/such.txt",), "data.vocabulary": "/no/model"}),
        ("wmdp.py", {"reference.path": "/no/model", "data.vocabulary": "/no/model", "data.bio": "/no/bio*.parquet"}),
        ("language.py", {"data.retain": "/no/text.txt", "data.forget": "/no/*.jsonl"}),
        ("auditbench.py:qwen3-14b", {"data.vocabulary": "/no/model", "data.ability": "/no/items.jsonl"}),
    ],
)
def test_no_file_that_is_named_has_to_be_there_to_plan(name, changed, tmp_path):
    path, _, arg = name.partition(":")
    module = load_module(ROOT / "configs" / path)
    config = module.get_config(arg)
    with config.unlocked():
        config.update_from_flattened_dict(changed)
    assert graph.build(load_experiment(module, config), tmp_path)


@pytest.mark.end_to_end
def test_a_plan_from_the_command_line(config, tmp_path):
    pytest.importorskip("libtpu")
    out, flags = tmp_path / "plan.json", ("--verbose", "--nocache", "--config.steps=36")
    command = [
        sys.executable,
        "-m",
        "distill_jax",
        "plan",
        f"--config={config}",
        "--slice=v5e-4",
        "--verbose",
        "--nocache",
    ]
    done = subprocess.run([*command, f"--json={out}", *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = {row["stage"]: row for row in json.loads(out.read_text())}
    assert list(rows) == ["data", "reference", "again", "damaged", "undo"]
    assert "again: compiled before" in done.stdout and "layers/mlp/down" in done.stdout

    v, n, d, f, h = (TINY[k] for k in ("vocab", "layers", "hidden", "mlp", "head_dim"))
    layer = d * h * 4 + 2 * d * h * 2 + h * 4 * d + 3 * d * f
    parameters = v * d + d + n * (layer + 4 * d)
    tokens, pairs = 8 * 128, 4 * 128 * 4 * h
    forward = tokens * (n * (2 * layer + pairs) + 2 * v * d)
    for name, count in (("reference", 3), ("again", 3), ("undo", 4)):
        row = rows[name]
        assert row["parameters"] == parameters
        assert row["flops_per_step"] == pytest.approx(count * forward)
        assert row["chips"] == math.prod(row["mesh"].values()) == 4 and row["mesh"]["fsdp"] == 4
        hbm = row["hbm"]
        whole = hbm["arguments"] + hbm["outputs"] - hbm["aliased"] + hbm["temporaries"]
        assert "code" not in hbm and row["hbm_bytes"] == whole < row["hbm_capacity"] == 15.75 * 2**30 and row["fits"]
        # Weights and two moments, a quarter of each on a chip; the compiler rounds small arrays up.
        assert hbm["arguments"] > 12 * parameters / 4
        assert 0.9 * hbm["outputs"] < hbm["aliased"] < 2 * 12 * parameters / 4
        assert row["collectives"]["all-gather"]["bytes"] > 2 * (parameters - v * d) * 3 / 4
        seconds = row["seconds"]
        assert seconds["compute"] == pytest.approx(row["flops_executed"] / 4 / 197e12)
        assert seconds["memory"] == pytest.approx(row["hbm_traffic"] / 819e9)
        assert sum(row["traffic_by_part"].values()) == row["hbm_traffic"]
        assert row["traffic_by_part"]["optimizer"] > 0  # so small a model stays on the chip otherwise
        at_peak = row["flops_per_step"] / (4 * 197e12)
        assert row["mfu_ceiling"] == pytest.approx(at_peak / row["step_seconds"]) and row["mfu_ceiling"] < 1
        received = sum(kind["bytes"] for kind in row["collectives"].values())
        assert seconds["interconnect"] == pytest.approx(received / 100e9)
        assert row["step_seconds"] == max(seconds.values()) > 0
        assert row["chip_hours"] == pytest.approx(row["step_seconds"] * 36 * 4 / 3600)
        assert row["cost"] == pytest.approx(row["chip_hours"] * 1.2)
        assert row["warnings"] == []
    teacher = rows["undo"]["hbm"]["arguments"] - rows["reference"]["hbm"]["arguments"]
    assert 2 * parameters / 4 < teacher < 4 * parameters / 4  # held in bfloat16, in which it computes
    assert rows["damaged"]["cost"] == rows["data"]["cost"] == 0
    assert rows["reference"]["program"] == rows["again"]["program"] != rows["undo"]["program"]
    assert len(SLICES) > 100
