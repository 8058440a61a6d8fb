"""A work directory in a bucket: what is written there, what is asked of it, and what it comes to, against a local one.

The bucket is gcp-storage-emulator in this process, strict about preconditions (`bucket_server`). The experiment is
`configs/arithmetic.py:smoke` with five of its stages, or the first.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from distill_jax.config import ConfigError
from distill_jax.data import lines
from distill_jax.data.text.sources import Source, check_files
from distill_jax.io import object_service, staging, storage
from distill_jax.io.leases import held
from distill_jax.main import main
from tests import bucket_server
from tests.bucket_contract import (
    OFTEN,
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
    with bucket_server.serving() as served:
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


def rows(workdir: str) -> bytes:
    """Return what the first stage wrote of its training."""
    return storage.read_bytes(next(storage.location(workdir).glob("nodes/reference-*")) / "metrics.jsonl")


@pytest.fixture(scope="module")
def finished(config, bucket) -> str:
    """A run that was computed in the bucket from its data to its page."""
    assert run(config, "gs://bucket/finished") == 0
    return "gs://bucket/finished"


@pytest.mark.end_to_end
def test_a_run_in_a_bucket_comes_to_what_a_local_one_does(config, finished, tmp_path, bucket):
    local = f"{tmp_path}/run"
    data_from(finished, local)
    assert run(config, local) == 0
    assert comparable(finished) == comparable(local)
    here = {str(path.relative_to(local)) for path in Path(local).rglob("*") if path.is_file()}
    there = {name.removeprefix("finished/") for name in bucket.names() if name.startswith("finished/")}
    plain = re.compile(r"checkpoints/final/|tensorboard/|/rows/\.|^\.|digests|workers/")  # what Orbax and clocks name
    assert {name for name in here if not plain.search(name)} == {name for name in there if not plain.search(name)}
    assert any("tensorboard/events" in name for name in there) and any(
        name.endswith("/rows/all.array_record") for name in there
    )
    assert not Path("gs:").exists()


@pytest.mark.kill
def test_a_killed_run_continues_from_the_checkpoint_that_is_whole(config, finished, bucket, capsys):
    """Killed while it uploads its third checkpoint's proof; the second one is damaged before it goes on."""
    workdir, config = "gs://bucket/killed", config.parent / "reference.py"
    data_from(finished, workdir)
    kill_at_the_third_proof(config, workdir, bucket, "POST")
    assert run(config, workdir, OFTEN) == 0
    out = capsys.readouterr().out
    assert "manifest.ocdbt is damaged; going back" in out and "continuing from step 2" in out
    assert rows(workdir) == rows(finished)


@pytest.mark.end_to_end
def test_what_fails_for_a_moment_is_tried_again(config, finished, bucket):
    """Every fifth request fails: too many of them, a server in trouble, an answer that is lost."""
    workdir, failures = "gs://bucket/flaky", itertools.cycle((429, 503, 500))
    data_from(finished, workdir)
    bucket.refuse = lambda method, path: next(failures) if bucket.requests % 5 == 0 else 0
    bucket.lose = lambda method, path: bucket.requests % 5 == 1 and method == "POST" and "uploadType=media" in path
    before = bucket.requests
    assert run(config.parent / "reference.py", workdir) == 0
    assert bucket.requests - before > 50
    bucket.recover()
    assert rows(workdir) == rows(finished)


@pytest.mark.end_to_end
def test_a_finished_node_that_was_changed_is_refused_and_the_report_is_read_from_the_bucket(
    config, finished, bucket, capsys
):
    assert main(["distill-jax", "report", f"--workdir={finished}"]) == 0
    assert "report: gs://bucket/finished/report/index.html" in capsys.readouterr().out
    name = next(name for name in bucket.names() if re.search("^finished/nodes/maxent-.*/result.json", name))
    content = storage.read_bytes(storage.location(f"gs://bucket/{name}"))
    bucket.flip(name)
    try:
        assert run(config, finished) == 2
        assert "result.json is missing or damaged; remove gs://bucket/finished/nodes/maxent" in capsys.readouterr().err
    finally:
        storage.write_atomic(storage.location(f"gs://bucket/{name}"), content)


@pytest.mark.end_to_end
def test_workers_of_a_sweep_share_a_bucket(config, finished, bucket, capfd):
    data_from(finished, "gs://bucket/sweep")
    check_shared_sweep(config, "gs://bucket/sweep", bucket, capfd, "--pack=1")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("workdir", "status", "words"),
    [
        ("gs://elsewhere/run", {}, ["workdir=gs://elsewhere/run: there is no such bucket", "buckets create"]),
        ("gs://", {}, ["names a bucket"]),
        ("gs://bucket/run", {"GET": 403}, ["workdir=gs://bucket/run: no permission", "Storage Object User"]),
        ("gs://bucket/run", {"GET": 401}, ["no credentials", "gcloud auth application-default login"]),
        ("gs://bucket/run", {"POST": 403}, ["gs://bucket/run cannot be written: no permission"]),
        ("gs://bucket/run", {"GET": 503}, ["trying again, for up to 1 s\n", "--workdir=gs://bucket/run", "8 times in"]),
    ],
)
def test_what_is_not_to_be_had_is_said_before_anything_is_computed(workdir, status, words, config, bucket, capfd):
    check_refused_in_a_line(config, workdir, bucket, status, words, capfd)


@pytest.mark.unit
@pytest.mark.parametrize(("scheme", "module", "library"), [("gs", "google", "gcsfs"), ("s3", "amazon", "s3fs")])
def test_without_the_library_the_extra_is_named(scheme, module, library, monkeypatch):
    monkeypatch.setitem(sys.modules, f"distill_jax.io.{module}_storage", None)
    storage._prepare.cache_clear()
    extra = "gcs" if scheme == "gs" else scheme
    with pytest.raises(ConfigError, match=rf"{library} is not installed.*distill-jax\[{extra}\]"):
        storage.location(f"{scheme}://bucket/run")


@pytest.fixture
def place(bucket, request) -> Path:
    return storage.location(f"gs://bucket/{request.node.name}")


@pytest.mark.unit
def test_of_all_who_create_an_object_one_does(place, bucket):
    check_creation(place, bucket, "POST")


@pytest.mark.unit
def test_objects_hold_what_was_written_whatever_its_last_byte(place, tmp_path):
    for end in (b"\r", b"\n", b"\r\n", b"-"):
        (tmp_path / "file").write_bytes(b"data" + end)
        storage.copy(tmp_path / "file", place / "object")
        assert storage.read_bytes(place / "object") == b"data" + end


@pytest.mark.unit
def test_leases_in_a_bucket_go_to_one_and_follow_the_dead(place, bucket):
    check_leases(place)


@pytest.mark.unit
def test_a_work_directory_is_one_runs_or_one_sweeps(place):
    check_holders(place)


@pytest.mark.unit
def test_a_bound_of_the_cache_that_is_no_number_is_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv(staging.CACHE_GIB, "64G")
    with pytest.raises(ConfigError, match="DISTILL_JAX_CACHE_GIB=64G: must be a number"):
        staging._make_room(tmp_path, 0)


@pytest.mark.unit
def test_local_copies_are_made_once_and_the_oldest_go(place, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(staging.CACHE_GIB, str(250 / 2**30))
    for name in "abc":
        storage.write_atomic(place / name, name.encode() * 100)
    copy = staging.local_copy(place / "a")
    downloads = sum("alt=media" in path for _, path in bucket.log)
    assert copy.read_bytes() == b"a" * 100 and staging.local_copy(place / "a") == copy
    assert sum("alt=media" in path for _, path in bucket.log) == downloads
    storage.write_atomic(place / "a", b"new")
    assert staging.local_copy(place / "a").read_bytes() == b"new"  # another version is another copy
    for entry in staging.cache_directory().iterdir():
        os.utime(entry, (0, 0))
    staging.local_copy(place / "b")
    staging.local_copy(place / "c")
    held_bytes = sum(path.stat().st_size for path in staging.cache_directory().rglob("*") if path.is_file())
    assert held_bytes <= 250 and not copy.exists()
    with pytest.raises(FileNotFoundError):
        staging.local_copy(place / "nothing")


@pytest.mark.unit
def test_a_file_system_without_links_or_locks_is_refused_in_a_line(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ConfigError, match=r"has no hard links.*its address"):
        storage.create_exclusive(tmp_path / "lease-0.json", b"mine")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match="has no locks"), held(tmp_path / "run", {"experiment": "e"}):
        pass


@pytest.mark.end_to_end
def test_models_and_configs_are_read_and_written_by_their_addresses(config, finished, bucket, capsys, tmp_path):
    """A node is exported into the bucket, imported from there, and is the model that a local copy of it is."""
    (node,) = (storage.location(finished) / "nodes").glob("reference-*")
    assert main(["distill-jax", "export", f"--model={node}", "--to=gs://bucket/published/tiny"]) == 0
    storage.copy(storage.location("gs://bucket/published/tiny/config.json"), tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"]
    line = ["distill-jax", "import", "--from=gs://bucket/published/tiny", "--workdir=gs://bucket/imported"]
    assert main(line) == 0
    address = capsys.readouterr().out.split("import: ")[-1].strip()
    assert re.fullmatch(r"gs://bucket/imported/nodes/tiny-[0-9a-f]{12}", address)
    shutil.copytree(staging.local_copy(storage.location("gs://bucket/published/tiny")), tmp_path / "tiny")
    assert main([*line[:2], f"--from={tmp_path}/tiny", f"--workdir={tmp_path}/imported"]) == 0
    assert capsys.readouterr().out.strip().endswith(Path(address).name)  # an identity is one of contents
    storage.write_atomic(storage.location("gs://bucket/configs/mine.py"), config.read_bytes())
    assert run("gs://bucket/configs/mine.py:smoke", finished) == 0
    assert run("gs://bucket/configs/other.py", finished) == 2
    assert "gs://bucket/configs/other.py: there is nothing at this address" in capsys.readouterr().err


@pytest.mark.unit
def test_corpora_are_read_by_their_addresses(place):
    for name, text in {"a.txt": "one\ntwo\n", "b.txt": "three\n", "c.md": "four\n"}.items():
        storage.write_atomic(place / name, text.encode())
    storage.write_atomic(place / "d.txt", gzip.compress(b"five\n"))
    source = Source(f"{place}/*.txt")
    assert source.files == [f"{place}/{name}" for name in ("a.txt", "b.txt", "d.txt")]
    check_files(source, "retain")
    read = [line for path in source.files for _, line in lines.numbered(path)]
    assert [line.strip() for line in read] == [b"one", b"two", b"three", b"five"]
    with pytest.raises(ConfigError, match="no such file"):
        check_files(Source(f"{place}/nothing.txt"), "retain")
