"""A work directory in a bucket: what is written there, what is asked of it, and what it comes to, against a local one.

The bucket is gcp-storage-emulator in this process, strict about preconditions (`bucket_server`). The experiment is
`configs/arithmetic.py:smoke` with five of its stages.
"""

from __future__ import annotations

import re
from pathlib import Path

import jax
import pytest

from distill_jax.api import read_summary
from distill_jax.io import google_storage, storage
from distill_jax.main import main
from tests import bucket_server

STAGES = ("reference", "maxent", "student", "relearn-maxent", "relearn-student")
CONFIG = f"""
from distill_jax.configs import arithmetic
from distill_jax.experiment.experiment import Experiment

def get_config(arg=""):
    return arithmetic.get_config("smoke")

def get_experiment(config):
    stages = arithmetic.get_experiment(config).stages
    return Experiment(stages={{name: stages[name] for name in {STAGES}}})
"""


@pytest.fixture(scope="module")
def bucket():
    with bucket_server.serving() as served:
        yield served


@pytest.fixture(autouse=True)
def _impatient(monkeypatch, bucket):
    """Do not wait between tries, and let no test leave the server in trouble."""
    monkeypatch.setattr(google_storage, "FIRST_WAIT", 0.01)
    yield
    bucket.refuse = lambda method, path: 0


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A config of few stages; what is compiled for it is kept for this file."""
    base = tmp_path_factory.mktemp("config")
    (base / "small.py").write_text(CONFIG)
    jax.config.update("jax_compilation_cache_dir", str(base / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield base / "small.py"
    jax.config.update("jax_compilation_cache_dir", None)


def run(config: Path, workdir: str, *more: str) -> int:
    return main(["distill-jax", "run", f"--config={config}", f"--workdir={workdir}", *more])


def comparable(workdir: str) -> dict:
    """Return a summary without what depends on when and where it was made."""
    summary = read_summary(workdir)
    return {key: value for key, value in summary.items() if key not in ("created", "duration_seconds")}


def data_from(source: str, workdir: str) -> None:
    """Give a work directory the data that another one has prepared, which takes longer than all the rest."""
    (node,) = (storage.location(source) / "nodes").glob("data-*")
    for path in storage.files(node):
        to = storage.location(workdir) / "nodes" / node.name / str(path.relative_to(node))
        storage.make_directory(to.parent)
        storage.copy(path, to)


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
