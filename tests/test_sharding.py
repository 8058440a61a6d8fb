"""The numbers do not depend on the machine: devices, mesh, hosts and accumulation change sums' order and no more."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from distill_jax.models import transformer
from distill_jax.sharding import distributed
from distill_jax.sharding.mesh import make_mesh, parameter_table, spec
from tests import mesh_worker
from tests.fast_xla import xla_flags

ROOT = Path(__file__).parent.parent
VERBS = ("pretrain", "maxent", "rmu", "distill", "relearn", "adapters")
# fp32 sums of a few hundred terms in another order differ by about 1e-7 of their size; five Adam steps, which divide
# by the gradient's own size, bring that to 1e-6. A wrong mask, weight or shard shows in the first digits.
TOLERANCE = 2e-5
JOBS = 16  # of a process

# (stage, microbatches, devices, fsdp, tensor)
ALONE = [(verb, 1, 1, 1, 1) for verb in VERBS]
SHAPES = [("pretrain", 1, 8, f, t) for f, t in ((8, 1), (1, 8), (2, 2))]
OTHERS = [
    ("maxent", 4, 8, 2, 2),
    ("rmu", 2, 8, 2, 2),
    ("distill", 4, 8, 1, 2),
    ("distill", 1, 8, 1, 1),  # 3 students on 8 population rows
    ("relearn", 2, 8, 2, 1),
    ("relearn", 1, 8, 1, 1),  # 4 attackers × 2 devices each
    ("adapters", 2, 8, 2, 2),
]
HOSTS = [("pretrain", 2, 8, 2, 2), ("distill", 1, 8, 2, 1)]
# With --thorough: every stage in every shape that 8 devices have, under every accumulation, and every stage on hosts.
EVERY_SHAPE = [(f, t) for f in (1, 2, 4, 8) for t in (1, 2, 4, 8) if f * t <= 8]
EVERY = [(verb, micro, 8, *shape) for verb in VERBS for shape in EVERY_SHAPE for micro in (1, 2, 4)]
EVERY_HOST = [(verb, micro, 8, 2, 2) for verb in VERBS for micro in (1, 2)]


def wanted(config) -> tuple[list, list]:
    """Return the jobs of one process and those of two hosts."""
    if config.getoption("--thorough"):
        return list(dict.fromkeys(SHAPES + OTHERS + EVERY)), HOSTS + EVERY_HOST
    return [*SHAPES, OTHERS[2]], HOSTS[:1]


def pytest_generate_tests(metafunc):
    if "job" in metafunc.fixturenames:
        metafunc.parametrize("job", wanted(metafunc.config)[0], ids=lambda job: "-".join(map(str, job)))


def start(data: Path, out: Path, jobs, devices: int, *arguments: str) -> subprocess.Popen:
    # Unoptimised programs compile in half the time, and these run for a few steps only.
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.mesh_worker", f"--data={data}", f"--jobs={json.dumps(jobs)}"]
    command += [f"--out={out}", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen, out: Path) -> list:
    _, problems = process.communicate(timeout=3000)
    assert process.returncode == 0, problems[-3000:]
    return json.loads(out.read_text()) if out.exists() else []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rows")
    mesh_worker.write_data(directory)
    return directory


@pytest.fixture(scope="module")
def results(data, request):
    """Each job's numbers, from as many processes as it takes, two at a time.

    A process does a few jobs and ends: what is compiled stays mapped, and a system allows only so many maps a process.
    """
    jobs = wanted(request.config)[0]
    jobs = [job for job in ALONE if job[0] in {verb for verb, *_ in jobs}] + jobs
    count = -(-len(jobs) // JOBS)

    def numbers(i: int) -> list:
        out = data / f"part-{i}.json"
        return outcome(start(data, out, jobs[i::count], 8), out)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(numbers, range(count)))
    return {job: out for i in range(count) for job, out in zip(jobs[i::count], found[i], strict=True)}


def assert_same_numbers(ours, theirs):
    for name in ("losses", "weights"):
        for a, b in zip(ours[name], theirs[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=1e-7)
    assert ours["correct"] == theirs["correct"]


@pytest.mark.end_to_end
def test_devices_and_accumulation_change_nothing(results, job):
    ours, alone = results[job], results[(job[0], 1, 1, 1, 1)]
    assert_same_numbers(ours, alone)
    assert np.all(np.isfinite(alone["losses"]))
    assert np.prod(list(ours["mesh"].values())) == job[2]
    assert (ours["mesh"]["fsdp"], ours["mesh"]["tensor"]) == job[3:]


@pytest.mark.end_to_end
def test_weights_and_moments_are_divided(results):
    """fsdp divides what has the model's width, tensor what has heads, columns or words."""
    whole = results[("pretrain", 1, 1, 1, 1)]["bytes_on_first_device"]
    held = {job[3:]: results[job]["bytes_on_first_device"] / whole for job in SHAPES}
    assert held[(8, 1)] < 0.13 and held[(2, 2)] < 0.27
    assert held[(1, 8)] > held[(8, 1)]  # 4 heads and 30 words do not divide by 8, the columns do


@pytest.mark.unit
def test_an_interrupt_that_was_lost_is_raised_again():
    """As when it comes while native code is calling back, where Python reports an exception and goes on."""
    before = [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)]
    try:
        distributed.heed_signals()
        assert not distributed.preempted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            distributed.preempted()
        distributed.heed_signals()
        assert not distributed.preempted()
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_hosts_change_nothing(data, results, request):
    """Two processes of four devices, joined over loopback: the global batch and all numbers are those of one."""
    port = free_port()
    join = [f"--coordinator=127.0.0.1:{port}", "--processes=2"]
    outs = [data / f"host-{i}.json" for i in range(2)]
    jobs = wanted(request.config)[1]
    both = [start(data, outs[i], jobs, 4, *join, f"--process={i}") for i in range(2)]
    first, second = [outcome(process, out) for process, out in zip(both, outs, strict=True)]
    assert second == []  # one of them writes
    for job, ours in zip(jobs, first, strict=True):
        assert_same_numbers(ours, results[(job[0], 1, 1, 1, 1)])
        assert np.prod(list(ours["mesh"].values())) == 8


@pytest.mark.unit
def test_a_dimension_that_does_not_divide_is_said():
    cfg = mesh_worker.MODEL
    mesh = make_mesh(1, tensor=2, devices=jax.devices())
    wide = jax.sharding.AbstractMesh((1, 1, 1, 4), ("population", "data", "fsdp", "tensor"))
    shapes = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
    rows, notes = parameter_table(mesh, transformer.logical_axes(cfg), shapes)
    assert notes == []
    by_name = {row[0]: row for row in rows}
    assert by_name["embedding"][1:] == ("30 × 16", "vocab, embed", "tensor, -", "960")
    assert by_name["layers/attention/query"][3] == "-, -, tensor, -"
    # By hand: 4-byte numbers; norms (5 of 16 on 2 layers, less one) whole, everything else halved.
    norms = 4 * (2 * 4 * 16 + 16)
    total = 4 * transformer.parameter_count(cfg)
    assert by_name["all"][-1] == f"{(total - norms) // 2 + norms:,}"
    rows, notes = parameter_table(wide, transformer.logical_axes(cfg), shapes)
    assert any(n.startswith("embedding: vocab 30 does not divide by tensor = 4") for n in notes)
    assert any("kv_heads 2 does not divide" in n for n in notes)
    assert spec(wide, ("vocab", "embed"), (30, 16)) == P(None, None)
    assert spec(wide, ("vocab", "embed"), (32, 16)) == P(("tensor",), None)


@pytest.mark.unit
def test_meshes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="2 devices do not divide"):
        make_mesh(1, fsdp=3)
    assert make_mesh(1, fsdp=-1).shape["fsdp"] == 2
    assert make_mesh(1, fsdp=-1, tensor=2).shape == {"population": 1, "data": 1, "fsdp": 1, "tensor": 2}


@pytest.mark.unit
def test_donation_and_constraints_reach_the_compiled_program():
    """The state's buffers are used again for the new state, and activations are held to the batch's axes."""
    code = """
import jax, pathlib
from tests import mesh_worker as w
from distill_jax.stages import Prepare, Pretrain
from distill_jax.stages.context import Context, Node, RunSettings
from distill_jax.train.batch import PackedRows
here = pathlib.Path()
node = Node("n", "pretrain", Pretrain(**w.COMMON), {}, "", here)
nodes = {"n": node, "data": Node("data", "prepare", Prepare(w.Data()), {}, "", here)}
ctx = Context(w.MODEL, nodes, here, None, RunSettings(fsdp=2, tensor=2))
program = node.settings.train_job(ctx, [node])
mesh = program.mesh(ctx)
state = program.state(ctx, mesh, [ctx.fresh(node, mesh)])
rows = jax.ShapeDtypeStruct((1, 16, w.LENGTH), "int32")
lowered = program.build(mesh).lower(state, None, PackedRows(rows, rows, rows))
held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
text = lowered.as_text()
print(lowered.compile().memory_analysis().alias_size_in_bytes / held)
print(text.count("sharding_constraint") + text.count("@Sharding"))
"""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(8)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    aliased, constraints = map(float, done.stdout.split())
    assert aliased > 0.95
    assert constraints >= 8


@pytest.mark.unit
def test_the_roll_call_names_who_is_missing(monkeypatch):
    monkeypatch.setattr(distributed, "WAIT_SECONDS", 0.5)
    port, said = free_port(), []
    code = "from distill_jax.sharding.distributed import roll_call; import sys; roll_call('127.0.0.1', {}, 4, {})"
    present = [subprocess.Popen([sys.executable, "-c", code.format(port, i)], cwd=ROOT) for i in (1, 3)]
    late = []

    def say(text):
        said.append(text)
        if "reported: 2" in text and not late:
            late.append(subprocess.Popen([sys.executable, "-c", code.format(port, 2)], cwd=ROOT))

    distributed.roll_call("127.0.0.1", port, 4, 0, say)
    assert any(text.endswith("of 4 processes these have not reported: 2") for text in said)
    assert [process.wait(timeout=60) for process in (*present, *late)] == [0, 0, 0]
    before = len(said)
    monkeypatch.setattr(distributed.time, "sleep", lambda _: None)

    class Enough(Exception):
        pass

    def once(text):
        raise Enough(text)

    with pytest.raises(Enough, match=r"process 0 does not answer at 127\.0\.0\.1"):
        distributed.roll_call("127.0.0.1", port, 4, 2, once)
    assert len(said) == before
