"""Several slices: what crosses the network between them, and that the numbers are those of one device."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_jax.perf import hlo
from distill_jax.perf.collectives import collectives, replica_groups
from distill_jax.perf.slices import find
from distill_jax.sharding.mesh import make_mesh, split_slices
from tests import mesh_worker
from tests.fast_xla import xla_flags

ROOT = Path(__file__).parent.parent
TOLERANCE = 2e-5  # as in tests/test_sharding.py, and for the same reason
AUTO = "auto"

# (stage, microbatches, devices, fsdp, tensor, attention, slices)
TOGETHER = [("pretrain", 1, 8, 4, 1, AUTO, 2)]
THOROUGH = [("distill", 2, 8, 1, 2, AUTO, 2)]
THOROUGH += [(verb, m, 8, 2, 2, AUTO, 2) for verb in ("maxent", "rmu", "relearn", "adapters") for m in (1, 2)]
PROGRAMS = [("pretrain", 4, 1), ("pretrain", 1, 1)]  # (stage, fsdp, tensor) of two slices of four


@dataclasses.dataclass(frozen=True)
class Device:
    """A stand-in for a TPU: all that laying out a mesh asks of it but its place in the torus."""

    id: int
    slice_index: int
    platform: str = "tpu"


def wanted(config) -> list:
    return TOGETHER + (THOROUGH if config.getoption("--thorough") else [])


def pytest_generate_tests(metafunc):
    if "job" in metafunc.fixturenames:
        metafunc.parametrize("job", wanted(metafunc.config), ids=lambda job: "-".join(map(str, job)))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory, request):
    """Each job's numbers, and those of one device, from a process with eight; and the programs' collectives."""
    data = tmp_path_factory.mktemp("rows")
    mesh_worker.write_data(data)
    jobs = wanted(request.config)
    jobs = [*dict.fromkeys((job[0], 1, 1, 1, 1) for job in jobs), *jobs]
    out = data / "numbers.json"
    command = [sys.executable, "-m", "tests.mesh_worker", f"--data={data}", f"--jobs={json.dumps(jobs)}"]
    command += [f"--out={out}", f"--programs={json.dumps(PROGRAMS)}"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(8), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    *found, programs = json.loads(out.read_text())
    return dict(zip(map(tuple, jobs), found, strict=True)), programs


@pytest.mark.end_to_end
def test_slices_change_nothing(numbers, job):
    ours, alone = numbers[0][job], numbers[0][(job[0], 1, 1, 1, 1)]
    for name in ("losses", "weights"):
        for a, b in zip(ours[name], alone[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=1e-7)
    assert ours["correct"] == alone["correct"] and np.all(np.isfinite(alone["losses"]))
    mesh = ours["mesh"]  # members that divide lie apart; those of fewer share a batch
    assert mesh.get("slice", mesh["population"]) == 2 and np.prod(list(mesh.values())) == 8


@pytest.mark.end_to_end
@pytest.mark.parametrize("which", range(len(PROGRAMS)), ids=map(str, PROGRAMS))
def test_gradients_are_reduced_within_a_slice_first(numbers, which):
    """No collective mixes both networks, and over the slow one each device sends only its part of a gradient, once."""
    _, fsdp, tensor = PROGRAMS[which]
    program = numbers[1][which]
    pairs = {frozenset((i, i + 4)) for i in range(4)}  # what holds the same part on the other slice
    crossing = [one for one in program["collectives"] if any(len({i // 4 for i in g}) > 1 for g in one["groups"])]
    assert crossing and all(one["kind"] == "all-reduce" for one in crossing)
    assert all({frozenset(group) for group in one["groups"]} == pairs for one in crossing)
    # The gradients, divided as the weights are; a loss and the weights of terms are a few numbers more.
    assert program["gradient_bytes"] <= sum(one["bytes"] for one in crossing) <= program["gradient_bytes"] + 64
    inside = [one for one in program["collectives"] if one not in crossing]
    assert {"all-reduce"} <= {one["kind"] for one in inside}
    assert {len(group) for one in inside for group in one["groups"]} <= {fsdp, tensor, 4 // tensor, 4}


@pytest.mark.unit
def test_members_take_the_network_and_weights_never_do(monkeypatch):
    monkeypatch.setattr("distill_jax.sharding.mesh._grid", lambda shape, devices: np.array(devices).reshape(shape))
    devices = [Device(id=i, slice_index=s) for i, s in enumerate([1, 0, 1, 0, 0, 1, 0, 1])]  # in no order

    def slices_of(mesh, *axes: str) -> set[int]:
        """Return how many slices each line along these axes touches."""
        order = [mesh.axis_names.index(axis) for axis in axes]
        rest = [i for i in range(mesh.devices.ndim) if i not in order]
        lines = mesh.devices.transpose(*rest, *order).reshape(-1, int(np.prod([mesh.shape[a] for a in axes])))
        return {len({device.slice_index for device in line}) for line in lines}

    for members, shape in [
        (1, {"slice": 2, "population": 1, "data": 2, "fsdp": 2, "tensor": 1}),
        (2, {"population": 2, "data": 2, "fsdp": 2, "tensor": 1}),  # one a slice: nothing crosses
        (3, {"slice": 2, "population": 1, "data": 2, "fsdp": 2, "tensor": 1}),
        (4, {"population": 4, "data": 1, "fsdp": 2, "tensor": 1}),
        (9, {"population": 4, "data": 1, "fsdp": 2, "tensor": 1}),
    ]:
        mesh = make_mesh(members, fsdp=2, devices=devices)
        assert mesh.shape == shape and {d.id for d in mesh.devices.flat} == set(range(8))
        assert slices_of(mesh, "fsdp", "tensor") == slices_of(mesh, "data", "fsdp", "tensor") == {1}
        assert slices_of(mesh, *shape) == {2}
    assert make_mesh(1, fsdp=-1, devices=devices).shape["fsdp"] == 4
    assert make_mesh(1, spread=True, devices=devices).shape == {"population": 8, "data": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(ValueError, match=r"slices of 4 devices do not divide into fsdp = 8 × tensor = 1"):
        make_mesh(1, fsdp=8, devices=devices)
    with pytest.raises(ValueError, match="slices = 4: these devices are in 2 slices"):
        make_mesh(1, slices=4, devices=devices)
    with pytest.raises(ValueError, match=r"slices of unequal size: \[4, 3\]"):
        make_mesh(1, devices=devices[1:])


@pytest.mark.unit
def test_devices_that_do_not_say_are_one_slice_or_cut_in_order():
    devices = [Device(id=i, slice_index=i, platform="gpu") for i in range(6)]
    assert [len(part) for part in split_slices(devices)] == [6]
    assert [[device.id for device in part] for part in split_slices(devices, 3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match="6 devices do not divide into slices = 4"):
        split_slices(devices, 4)
    assert make_mesh(1, devices=jax.devices()).axis_names == ("population", "data", "fsdp", "tensor")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, to_apply=%add", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("replica_groups={}, dimensions={0}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=[2,4]<=[4,2]T(1,0), use_global_device_ids=true", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ],
)
def test_groups_are_read_in_every_way_that_xla_writes_them(text, groups):
    assert replica_groups(f"%x), channel_id=1, {text}", 8) == groups


@pytest.mark.unit
def test_bytes_that_cross_slices_are_counted_apart():
    text = """
HloModule m

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  %inside = f32[64]{0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %across = f32[64]{0} all-reduce(%inside), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
}
"""
    inside, across = collectives(*hlo.parse(text), slice_of=[0] * 4 + [1] * 4)
    assert inside == {"all-reduce": {"count": 1, "bytes": 256 * 2 * 3 // 4}}
    assert across == {"all-reduce": {"count": 1, "bytes": 256}}


@pytest.mark.unit
def test_transfers_by_the_hosts_are_counted():
    """As libtpu 0.0.52 writes the sum over two slices of 4 chips, whose own groups it numbers from 0."""
    attributes = '_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"'
    ends = f"is_host_transfer=true, frontend_attributes={{{attributes}}}"
    text = f"""
HloModule m

ENTRY %main (x: f32[2,8,128]) -> f32[2,8,128] {{
  %x = f32[2,8,128]{{2,1,0:T(8,128)}} parameter(0)
  %sum = f32[2,8,128]{{2,1,0:T(8,128)}} all-reduce(%x), channel_id=9, replica_groups={{{{0,1,2,3}}}}, to_apply=%add
  %after = token[] after-all()
  %send = (f32[2,8,128]{{2,1,0:T(8,128)}}, u32[], token[]) send(%sum, %after), channel_id=4, {ends}
  %recv = (f32[2,8,128]{{2,1,0:T(8,128)}}, u32[], token[]) recv(%after), channel_id=1, {ends}
  %done = (f32[2,8,128]{{2,1,0:T(8,128)}}, token[]) recv-done(%recv), channel_id=1
  ROOT %out = f32[2,8,128]{{2,1,0:T(8,128)}} get-tuple-element(%done), index=0
}}
"""
    inside, across = collectives(*hlo.parse(text), slice_of=[0] * 4 + [1] * 4)
    assert inside == {"all-reduce": {"count": 1, "bytes": 8192 * 2 * 3 // 4}}
    assert across == {"all-reduce": {"count": 1, "bytes": 8192}}


@pytest.mark.end_to_end
@pytest.mark.thorough
def test_a_plan_for_two_slices_counts_the_gradient_once():
    """What the TPU's compiler moves between two slices of four is each device's quarter of the gradient."""
    code = """
import json, sys
from distill_jax.commands.plan import PLANNING
import os
os.environ.update(PLANNING)
from tests import mesh_worker
print(json.dumps(mesh_worker.planned("2xv5e-4")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    out = json.loads(done.stdout.splitlines()[-1])
    ((kind, moved),) = out["network"].items()
    assert kind == "all-reduce" and out["inside"]
    assert out["gradient_bytes"] <= moved["bytes"] <= 3 * out["gradient_bytes"]  # filled up to whole tiles


@pytest.mark.unit
def test_several_slices_are_named_by_how_many():
    one, two = find("v5e-16"), find("2xv5e-16")
    assert (two.chips, two.devices, two.topology) == (32, 32, one.topology) and one.slices == 1
    assert two.device_hbm == one.device_hbm and two.interconnect == one.interconnect
    assert two.device_network == pytest.approx(200e9 / 8 / 8)  # two cards of 100 Gbit/s for a host of eight chips
    assert find("4xtpu7x-8").device_network == pytest.approx(100e9 / 8 / 2)
