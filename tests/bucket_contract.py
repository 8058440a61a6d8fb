"""What a work directory in a bucket must do whoever serves it: the small runs, and checks that gs:// and s3:// share.

A bucket here is the server of `tests/bucket_server.py` or `tests/s3_server.py`.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import jax
import pytest

from distill_jax.api import read_summary
from distill_jax.config import ConfigError
from distill_jax.io import storage
from distill_jax.io.leases import Leases, held
from distill_jax.main import main
from tests.programs import ROOT
from tests.spoil import kept_in

STAGES = ("reference", "maxent", "student", "relearn-maxent", "relearn-student")
CONFIG = """
from distill_jax.configs import arithmetic
from distill_jax.experiment.experiment import Experiment

def get_config(arg=""):
    return arithmetic.get_config("smoke")

def get_experiment(config):
    stages = arithmetic.get_experiment(config).stages
    return Experiment(stages={name: stages[name] for name in STAGES})
"""
SWEEP = """
from distill_jax import axis, select_stages

def get_sweep(arg=""):
    return {config!r}, select_stages(axis("seed", 0, 1), "maxent")
"""
OFTEN = "--config.reference.checkpoint_every=2"


class Bucket(Protocol):
    """The server of one bucket, able to fail on purpose."""

    refuse: Callable[[str, str], int]
    lose: Callable[[str, str], bool]

    def recover(self) -> None: ...
    def names(self) -> list[str]: ...
    def flip(self, name: str) -> None: ...


def small_configs(base: Path) -> Iterator[Path]:
    """Write a config of few stages, and one of the first of them beside it; what is compiled is kept beside them."""
    (base / "small.py").write_text(CONFIG.replace("STAGES", str(STAGES)))
    (base / "reference.py").write_text(CONFIG.replace("STAGES", str(STAGES[:1])))
    jax.config.update("jax_compilation_cache_dir", str(base / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield base / "small.py"
    jax.config.update("jax_compilation_cache_dir", None)


def run(config: Path | str, workdir: str, *more: str) -> int:
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


def process_environment(config: Path) -> dict[str, str]:
    """Return the environment of a process that keeps what it compiles beside a config."""
    return {**os.environ, **kept_in(config.parent / "compiled")}


def check_creation(place: Path, bucket: Bucket, upload: str) -> None:
    """Of all who create an object one does, and one who replaces it does so once; upload: the method of a request."""
    path = place / "object"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: storage.create_exclusive(path, b"by %d" % i), range(8)))
    assert made.count(True) == 1 and storage.read_bytes(path) == b"by %d" % made.index(True)
    lost = iter([True])
    bucket.lose = lambda method, path: method == upload and next(lost, False)
    assert storage.create_exclusive(place / "unheard", b"mine")  # the second try is refused by what the first one made
    old = storage.version(path)
    assert storage.replace_if(path, old, b"next") and not storage.replace_if(path, old, b"late")
    assert storage.read_bytes(path) == b"next"


def check_leases(place: Path, then: Callable[[Path], None] = lambda lease: None) -> None:
    """A lease goes to one and follows the dead; then: what else is asked of the lease of one who is elsewhere."""
    first, second = Leases(heartbeat=0.05), Leases(heartbeat=0.05, dead_after=0.4)
    lost: list[str] = []
    silent = Leases(heartbeat=1000, lost=lost.append)
    assert silent.take(place) and not second.take(place)  # of a process that lives on this machine
    (lease,) = place.glob("lease-*.json")
    elsewhere = {**json.loads(lease.read_text()), "machine": "elsewhere", "heartbeat": 0.0}
    storage.write_atomic(lease, json.dumps(elsewhere).encode())
    then(lease)
    deadline = time.monotonic() + 60
    while not second.take(place):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert second.token(place) == 1 and not first.take(place)
    silent.confirm()
    assert len(lost) == 1
    second.close()
    assert first.take(place) and first.token(place) == 2
    first.close()


def check_holders(place: Path) -> None:
    """A work directory is one run's or one sweep's, of one experiment."""
    one, sweep = {"experiment": "e"}, {"experiment": "e", "sweep": "s", "points": "1"}
    with held(place, one), pytest.raises(ConfigError, match="in use by another run"), held(place, sweep, shared=True):
        pass
    with held(place, sweep, shared=True), held(place, sweep, shared=True):
        with (
            pytest.raises(ConfigError, match="have points '1', this one '2'"),
            held(place, {**sweep, "points": "2"}, shared=True),
        ):
            pass
        with pytest.raises(ConfigError, match="in use"), held(place, one):
            pass
    with held(place, one):
        pass
    with pytest.raises(ConfigError, match="belongs to experiment 'e'"), held(place, {"experiment": "f"}):
        pass


def check_refused_in_a_line(
    config: Path, workdir: str, bucket: Bucket, status: Mapping[str, int], words: list[str], capfd
) -> None:
    """A work directory that is not to be had, as the server answers methods so, is said before anything is computed."""
    bucket.refuse = lambda method, path: status.get(method, 0)
    assert run(config, workdir) == 2
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if "trying again" not in line]
    assert all(word in err for word in words) and len(lines) == 1 and out == "", err


def kill_at_the_third_proof(config: Path, workdir: str, bucket: Bucket, upload: str) -> None:
    """Kill a run while it uploads its third checkpoint's proof, and damage its second checkpoint."""
    line = [sys.executable, "-m", "distill_jax", "run", f"--config={config}", f"--workdir={workdir}", OFTEN]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(line, cwd=ROOT, env=process_environment(config), **quiet)

    def kill(method: str, path: str) -> int:
        if method == upload and "checkpoints/6.json" in path:
            process.kill()
            return 503
        return 0

    bucket.refuse = kill
    assert process.wait(timeout=300) == -signal.SIGKILL
    bucket.recover()
    below = f"{workdir.rpartition('/')[2]}/.*reference-.*/checkpoints/4/manifest"
    (damaged,) = (name for name in bucket.names() if re.search(below, name))
    bucket.flip(damaged)


def check_shared_sweep(config: Path, workdir: str, bucket: Bucket, capfd, *flags: str) -> None:
    """Two workers, one a process of its own and the other this one, compute no node twice; workdir ends in /sweep."""
    (config.parent / "sweep.py").write_text(SWEEP.format(config=str(config)))
    arguments = ["sweep", f"--sweep={config.parent}/sweep.py", f"--workdir={workdir}", *flags]
    line = [sys.executable, "-m", "distill_jax", *arguments]
    with subprocess.Popen(line, cwd=ROOT, env=process_environment(config), stdout=subprocess.PIPE, text=True) as other:
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
