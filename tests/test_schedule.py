"""What the TPU compiler says of a program once it is scheduled, beside what it says at its end."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax.commands.plan import PLANNING
from distill_jax.experiment import compile_process
from distill_jax.experiment.config_file import load_experiment, load_module
from distill_jax.experiment.slice_plan import planning_context
from distill_jax.perf import hlo
from distill_jax.perf.compile_for import analyse, slices_of, topology
from distill_jax.perf.schedule import buffer_sizes, read_schedule
from distill_jax.perf.slices import find
from distill_jax.perf.traffic import traffic_by_part

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[1]


def test_a_schedule_says_what_the_finished_program_does(tmp_path, monkeypatch):
    pytest.importorskip("libtpu")
    for name, value in PLANNING.items():
        monkeypatch.setenv(name, value)
    mesh = Mesh(np.array(topology(find("v5e-4"))), ("x",))
    rows = NamedSharding(mesh, PartitionSpec("x"))

    def step(weights, batch):
        def layer(x, w):
            return jnp.tanh(x @ w), jnp.sum(x)

        out, sums = jax.lax.scan(layer, batch, weights)
        return weights - jnp.mean(out), sums

    shapes = (jax.ShapeDtypeStruct((4, 512, 512), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec())),)
    shapes += (jax.ShapeDtypeStruct((4096, 512), jnp.float32, sharding=rows),)
    lowered = jax.jit(step, donate_argnums=0).lower(*shapes)
    assert read_schedule(tmp_path, slices_of(mesh)) is None
    options = {"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True}
    finished = analyse(lowered.compile(compiler_options=options), slices_of(mesh))

    schedule = read_schedule(tmp_path, slices_of(mesh))
    assert not schedule.final and finished.final
    for name in ("collectives", "traffic", "network", "unbounded_loops"):
        assert getattr(schedule, name) == getattr(finished, name), name
    assert sum(schedule.traffic.values()) > 0 and schedule.collectives["all-reduce"]["count"] > 0
    for kind in ("arguments", "outputs", "aliased"):
        assert schedule.hbm[kind] == pytest.approx(finished.hbm[kind], abs=4096), kind
    assert schedule.hbm["aliased"] == 4 * 512 * 512 * 4
    assert abs(schedule.hbm["temporaries"] - finished.hbm["temporaries"]) <= 0.1 * finished.needed

    (program,) = tmp_path.glob("*after_optimizations_after_buffer_assignment.txt")
    program.write_text(program.read_text()[:-200])
    assert read_schedule(tmp_path, slices_of(mesh)) is None  # as if it were being written


def test_buffers_in_other_memories_are_not_of_the_hbm():
    text = """BufferAssignment:
allocation 0: size 512, parameter 0, shape |f32[128]| at ShapeIndex {}, maybe-live-out:
allocation 1: size 256, parameter 1, shape |f32[64]| at ShapeIndex {}:
allocation 2: size 64, output shape is |(f32[128])|, maybe-live-out:
allocation 3: size 2048, preallocated-temp:
allocation 4: size 4096, color 1, preallocated-temp:
allocation 5: size 16, thread-local:
"""
    assert buffer_sizes(text) == {"arguments": 768, "outputs": 576, "aliased": 512, "temporaries": 2048}


# Stacks of 8 × 64 numbers of which a fusion inside a fusion reads one row, or which a copy inside it only renames.
NESTED = """HloModule nested

%rename (r: f32[8,64]) -> f32[8,64] {
  %r = f32[8,64]{1,0} parameter(0)
  ROOT %same = f32[8,64]{1,0} copy(%r)
}

%row (s: f32[8,64], i: s32[]) -> f32[1,64] {
  %s = f32[8,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %slice = f32[1,64]{1,0} dynamic-slice(%s, %i, %i), dynamic_slice_sizes={1,64}
}

%outer (a: f32[8,64], b: f32[8,64], k: s32[]) -> f32[1,64] {
  %a = f32[8,64]{1,0} parameter(0)
  %b = f32[8,64]{1,0} parameter(1)
  %k = s32[] parameter(2)
  %first = f32[1,64]{1,0} fusion(%a, %k), kind=kLoop, calls=%row
  %renamed = f32[8,64]{1,0} fusion(%b), kind=kLoop, calls=%rename
  %second = f32[1,64]{1,0} dynamic-slice(%renamed, %k, %k), dynamic_slice_sizes={1,64}
  ROOT %sum = f32[1,64]{1,0} add(%first, %second)
}

%async (w: f32[8,64]) -> f32[2,64] {
  %w = f32[8,64]{1,0} parameter(0)
  ROOT %part = f32[2,64]{1,0} slice(%w), slice={[0:2], [0:64]}
}

ENTRY %main (x: f32[8,64], y: f32[8,64], j: s32[]) -> f32[1,64] {
  %x = f32[8,64]{1,0} parameter(0)
  %y = f32[8,64]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %begin = ((f32[8,64]{1,0}), f32[2,64]{1,0:S(1)}, s32[]{:S(2)}) async-start(%x), calls=%async
  %end = f32[2,64]{1,0:S(1)} async-done(%begin)
  ROOT %both = f32[1,64]{1,0} fusion(%x, %y, %j), kind=kLoop, calls=%outer
}
"""


def test_only_the_slices_of_a_stack_count_however_deep_they_are_taken():
    row = 64 * 4
    index = 4
    brought = 2 * row  # read; it is written to another memory
    assert sum(traffic_by_part(*hlo.parse(NESTED)).values()) == brought + row + row + index + row
    whole = NESTED.replace("dynamic-slice(%s, %i, %i), dynamic_slice_sizes={1,64}", "reduce(%s, %i)")
    assert sum(traffic_by_part(*hlo.parse(whole)).values()) == brought + 8 * row + row + index + row


class Ended:
    """A process that ended with a code."""

    def __init__(self, returncode):
        self.returncode = returncode

    def poll(self):
        return self.returncode


def test_a_compiler_that_fails_says_why(tmp_path):
    (tmp_path / "printed.txt").write_text("INTERNAL: something else\n")
    with pytest.raises(RuntimeError, match="something else"):
        compile_process._answer(Ended(1), tmp_path, [0], False)


def test_another_program_is_not_taken_for_the_same(tmp_path, monkeypatch):
    pytest.importorskip("libtpu")
    for name, value in PLANNING.items():
        monkeypatch.setenv(name, value)
    module = load_module(ROOT / "configs/arithmetic.py")
    ctx = planning_context(load_experiment(module, module.get_config("smoke")))
    request = compile_process.Request(ctx.model, ctx.nodes, ctx.run, ["reference"], "none", "v5e-4", "0" * 64)
    (tmp_path / "request.pickle").write_bytes(compile_process.pickled(request))
    with pytest.raises(RuntimeError, match="reference: another program than the plan's"):
        compile_process.main(tmp_path)
