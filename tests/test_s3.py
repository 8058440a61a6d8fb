"""A work directory on s3:// is as one on gs:// or on a disk: against moto, whose conditional writes are S3's."""

from __future__ import annotations

import itertools
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
from distill_jax.main import main
from tests import s3_server
from tests.bucket_contract import (
    OFTEN,
    STAGES,
    check_creation,
    check_holders,
    check_leases,
    check_refused_in_a_line,
    check_shared_sweep,
    comparable,
    data_from,
    kill_at_the_third_proof,
    run,
    small_configs,
)


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


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A config of few stages; what is compiled for it is kept for this file."""
    yield from small_configs(tmp_path_factory.mktemp("config"))


@pytest.fixture
def place(bucket, request) -> Path:
    return storage.location(f"s3://bucket/{request.node.name}")


@pytest.mark.unit
def test_of_all_who_create_an_object_one_does(place, bucket):
    check_creation(place, bucket, "PUT")
    assert not storage.replace_if(place / "nothing", storage.version(place / "object"), b"late")


@pytest.mark.unit
def test_leases_go_to_one_and_follow_the_dead(place):
    def touched_is_another_version(lease: Path) -> None:
        before = storage.version(lease)
        time.sleep(1.1)  # the times of objects have whole seconds
        storage.touch(lease)
        assert storage.version(lease) != before

    check_leases(place, touched_is_another_version)


@pytest.mark.unit
def test_a_work_directory_is_one_runs_or_one_sweeps(place):
    check_holders(place)


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
def test_what_is_not_to_be_had_is_said_before_anything_is_computed(workdir, status, words, config, bucket, capfd):
    check_refused_in_a_line(config, workdir, bucket, status, words, capfd)


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
def test_a_killed_run_among_failures_comes_to_what_a_local_one_does(config, tmp_path, bucket, capsys):
    """Every fifth request fails; killed at its third checkpoint's proof; the second one is damaged afterwards."""
    local, workdir = f"{tmp_path}/run", "s3://bucket/run"
    assert run(config, local, OFTEN) == 0
    data_from(local, workdir)
    kill_at_the_third_proof(config, workdir, bucket, "PUT")
    failures = itertools.cycle((429, 503, 500))
    bucket.refuse = lambda method, path: next(failures) if len(bucket.log) % 5 == 0 else 0
    bucket.lose = lambda method, path: len(bucket.log) % 5 == 1 and method == "PUT"
    assert run(config, workdir, OFTEN) == 0
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
def test_workers_of_a_sweep_share_a_bucket(config, bucket, capfd):
    check_shared_sweep(config, "s3://bucket/sweep", bucket, capfd)
