"""A work directory on s3:// is as one on gs:// or on a disk: against moto, whose conditional writes are S3's."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("s3fs", reason="needs the extra s3")
pytest.importorskip("moto", reason="needs moto")

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.config import ConfigError
from distill_jax.io import object_service, storage
from distill_jax.io.checkpoint import Checkpoints, Damaged
from distill_jax.io.leases import Leases, held
from distill_jax.main import main
from tests import s3_server
from tests.spoil import kept_in
from tests.test_buckets import ROOT, STAGES, SWEEP, comparable, config, data_from, run  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def bucket():
    with s3_server.serving() as served:
        yield served


@pytest.fixture(autouse=True)
def _impatient(monkeypatch, bucket):
    """Do not wait between tries, and let no test leave the server in trouble."""
    monkeypatch.setattr(object_service, "FIRST_WAIT", 0.01)
    yield
    bucket.recover()


@pytest.fixture
def place(bucket, request) -> Path:
    return storage.location(f"s3://bucket/{request.node.name}")


@pytest.mark.unit
def test_of_all_who_create_an_object_one_does(place, bucket):
    path = place / "object"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: storage.create_exclusive(path, b"by %d" % i), range(8)))
    assert made.count(True) == 1 and storage.read_bytes(path) == b"by %d" % made.index(True)
    lost = iter([True])
    bucket.lose = lambda method, path: method == "PUT" and next(lost, False)
    assert storage.create_exclusive(place / "unheard", b"mine")  # the second try is refused by what the first one made
    old = storage.version(path)
    assert storage.replace_if(path, old, b"next") and not storage.replace_if(path, old, b"late")
    assert storage.read_bytes(path) == b"next" and not storage.replace_if(place / "nothing", old, b"late")


@pytest.mark.unit
def test_leases_go_to_one_and_follow_the_dead(place):
    first, second = Leases(heartbeat=0.05), Leases(heartbeat=0.05, dead_after=0.4)
    lost: list[str] = []
    silent = Leases(heartbeat=1000, lost=lost.append)
    assert silent.take(place) and not second.take(place)  # of a process that lives on this machine
    (lease,) = place.glob("lease-*.json")
    elsewhere = {**json.loads(lease.read_text()), "machine": "elsewhere", "heartbeat": 0.0}
    storage.write_atomic(lease, json.dumps(elsewhere).encode())
    before = storage.version(lease)
    time.sleep(1.1)  # the times of objects have whole seconds
    storage.touch(lease)
    assert storage.version(lease) != before
    deadline = time.monotonic() + 60
    while not second.take(place):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert second.token(place) == 1 and not first.take(place)
    silent.confirm()
    assert len(lost) == 1
    second.close()
    first.close()


@pytest.mark.unit
def test_a_work_directory_is_one_runs_or_one_sweeps(place):
    one, sweep = {"experiment": "e"}, {"experiment": "e", "sweep": "s", "points": "1"}
    with held(place, one), pytest.raises(ConfigError, match="in use by another run"), held(place, sweep, shared=True):
        pass
    both = held(place, sweep, shared=True), held(place, sweep, shared=True)
    with both[0], both[1], pytest.raises(ConfigError, match="in use"), held(place, one):
        pass
    with pytest.raises(ConfigError, match="belongs to experiment 'e'"), held(place, {"experiment": "f"}):
        pass


@pytest.mark.unit
@pytest.mark.parametrize(
    ("workdir", "status", "words"),
    [
        ("s3://elsewhere/run", {}, ["workdir=s3://elsewhere/run: there is no such bucket", "aws s3 mb"]),
        ("s3://", {}, ["names a bucket, such as s3://bucket/run"]),
        ("s3://bucket/run", {"GET": 403}, ["workdir=s3://bucket/run: no permission", "s3:PutObject"]),
        ("s3://bucket/run", {"GET": 401}, ["no credentials", "aws configure"]),
        ("s3://bucket/run", {"PUT": 403}, ["s3://bucket/run cannot be written: no permission"]),
        ("s3://bucket/run", {"GET": 503}, ["trying again, for up to 1 s\n", "--workdir=s3://bucket/run", "8 times in"]),
    ],
)
def test_what_is_not_to_be_had_is_said_before_anything_is_computed(workdir, status, words, config, bucket, capfd):  # noqa: F811
    bucket.refuse = lambda method, path: status.get(method, 0)
    assert run(config, workdir) == 2
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if "trying again" not in line]
    assert all(word in err for word in words) and len(lines) == 1 and out == "", err


@pytest.mark.unit
def test_several_processes_are_refused_in_a_line(bucket, tmp_path):
    with pytest.raises(ConfigError, match=r"--workdir=s3://bucket/run: 2 processes cannot .* gs://BUCKET/DIRECTORY"):
        storage.check_processes(storage.location("s3://bucket/run"), 2)
    storage.check_processes(storage.location("s3://bucket/run"), 1)
    storage.check_processes(tmp_path, 2)


@pytest.mark.unit
def test_checkpoints_are_proved_and_read_back(place, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Checkpoints(place / "checkpoints", keep=1)
    tree = {"w": jnp.arange(12.0).reshape(3, 4), "step": jnp.int32(7)}
    for step in (1, 2):
        store.save(step, jax.tree.map(lambda x: x * step, tree), background=True)  # noqa: B023
    store.wait()
    assert store.steps() == [2]
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), store.shapes(2)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), like
    )
    np.testing.assert_array_equal(store.restore(2, like)["w"], np.arange(12.0).reshape(3, 4) * 2)
    assert not list((tmp_path / "distill_jax" / "building").iterdir())  # nothing stays of what was uploaded
    bucket.flip(next(name for name in bucket.names() if "/checkpoints/2/d/" in name))
    with pytest.raises(Damaged, match="is damaged"):
        store.restore(2, like)
    with pytest.raises(Damaged, match="no complete checkpoint"):
        store.restore(1, like)
    bucket.refuse = lambda method, path: 403 if method == "PUT" and "/checkpoints/3/" in path else 0
    with pytest.raises(PermissionError, match="s3:PutObject"):
        store.save(3, tree)
    assert store.steps() == [2]


@pytest.mark.thorough
@pytest.mark.kill
def test_a_killed_run_among_failures_comes_to_what_a_local_one_does(config, tmp_path, bucket, capsys):  # noqa: F811
    """Every fifth request fails; killed at its third checkpoint's proof; the second one is damaged afterwards."""
    local, workdir, often = f"{tmp_path}/run", "s3://bucket/run", "--config.reference.checkpoint_every=2"
    assert run(config, local, often) == 0
    data_from(local, workdir)
    line = [sys.executable, "-m", "distill_jax", "run", f"--config={config}", f"--workdir={workdir}", often]
    environment = {**os.environ, **kept_in(config.parent / "compiled")}
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(method: str, path: str) -> int:
        if method == "PUT" and "checkpoints/6.json" in path:
            process.kill()
            return 503
        return 0

    bucket.refuse = kill
    assert process.wait(timeout=300) == -signal.SIGKILL
    (damaged,) = (name for name in bucket.names() if re.search("run/.*reference-.*/checkpoints/4/manifest", name))
    bucket.flip(damaged)
    failures = itertools.cycle((429, 503, 500))
    bucket.refuse = lambda method, path: next(failures) if len(bucket.log) % 5 == 0 else 0
    bucket.lose = lambda method, path: len(bucket.log) % 5 == 1 and method == "PUT"
    assert run(config, workdir, often) == 0
    bucket.recover()
    out = capsys.readouterr().out
    assert "manifest.ocdbt is damaged; going back" in out and "continuing from step 2" in out
    assert comparable(workdir) == comparable(local)
    for name in STAGES:
        nodes = [next(storage.location(where).glob(f"nodes/{name}-*")) for where in (workdir, local)]
        rows = [storage.read_bytes(node / "metrics.jsonl") for node in nodes]
        assert rows[0] == rows[1], name
    assert main(["distill-jax", "status", f"--workdir={workdir}"]) == 0
    assert ": 6 done\n" in capsys.readouterr().out
    assert not Path("s3:").exists()


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_workers_of_a_sweep_share_a_bucket(config, bucket, capfd):  # noqa: F811
    """One is a process of its own, the other this one: no node is computed twice."""
    workdir = "s3://bucket/sweep"
    (config.parent / "sweep.py").write_text(SWEEP.format(config=str(config)))
    arguments = ["sweep", f"--sweep={config.parent}/sweep.py", f"--workdir={workdir}"]
    environment = {**os.environ, **kept_in(config.parent / "compiled")}
    line = [sys.executable, "-m", "distill_jax", *arguments]
    with subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as other:
        assert main(["distill-jax", *arguments]) == 0
        out, _ = other.communicate(timeout=300)
    assert other.returncode == 0
    computed = re.findall(r"^\[\d+/\d+\] (.+?)  done", out + capfd.readouterr().out, re.MULTILINE)
    names = sorted(name for group in computed for name in group.split(", ") if name != "data")
    nodes = {name.split("/")[2] for name in bucket.names() if name.startswith("sweep/nodes/")}
    assert names == sorted(name for name in nodes if not name.startswith("data-")) and len(names) == 4
    assert all(f"sweep/nodes/{name}/DONE" in bucket.names() for name in nodes)
    left = [name for name in bucket.names() if re.search("^sweep/(attempts/[^/]*/\\d|.holders)", name)]
    assert left == []
    assert main(["distill-jax", "status", f"--workdir={workdir}"]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert shown[0].endswith(f" in {workdir}: 5 done") and all(f"  done      {name}" in shown for name in names)
