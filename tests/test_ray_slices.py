"""A sweep on a real Ray cluster with a TPU slice of two hosts that is made up: their processes are one worker's."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from distill_jax import main
from tests import ray_cluster
from tests.ray_cluster import NODE, children, family, kill, meanwhile, raylet, words
from tests.test_ray import ROOT, SETTINGS

pytestmark = [pytest.mark.kill, pytest.mark.thorough]

SWEEP = f"""
from distill_jax import axis, select_stages

def get_sweep(arg=""):
    return "{ROOT}/configs/arithmetic.py:smoke", select_stages(axis("seed", 0), "relearn-reference")
"""
SLICE = "v4-16"  # 2 x 2 x 2 chips, of which a host has four


def add_slice(cluster, name: str) -> list[int]:
    """Add a slice's hosts, with the resources and labels that Ray gives them; return their raylets."""
    raylets = []
    for worker in (0, 1):
        labels = {"ray.io/tpu-slice-name": name, "ray.io/tpu-worker-id": str(worker)}
        head = {f"TPU-{SLICE}-head": 1} if worker == 0 else {}
        raylets.append(raylet(cluster.add_node(**NODE, resources={"TPU": 4, **head}, labels=labels)))
    return raylets


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator:
    """A node without a TPU, to which the hosts of a slice are added."""
    with ray_cluster.cluster(tmp_path_factory.mktemp("compiled")) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def hosts(cluster) -> list[int]:
    """The raylets of the slice's two hosts."""
    return add_slice(cluster, "made-up")


@pytest.fixture(scope="module")
def sweep(cluster, tmp_path_factory) -> Path:
    """A directory with the sweep's file, and in `one` what one worker came to."""
    base = tmp_path_factory.mktemp("sweep")
    (base / "sweep.py").write_text(SWEEP)
    assert main.main(["distill-jax", "sweep", f"--sweep={base}/sweep.py", *SETTINGS, f"--workdir={base}/one"]) == 0
    return base


def kill_when_saved(
    raylets: Sequence[int], process: int, workdir: Path, killed: list[int], ended: threading.Event
) -> None:
    """Wait until a state of what both hosts train is saved, and kill a process, of process 0 with all of its host."""
    while not ended.wait(0.02):
        if not [*workdir.glob("attempts/reference-*/*/checkpoints/*.json")]:
            continue
        for one in raylets:
            of_host = family(one, children())
            running = [pid for pid in of_host if f"--process={process}" in words(pid)]
            if running:
                kill(running if process else of_host)
                killed.append(running[0])
                return


@pytest.mark.parametrize(("lost", "process"), [("a process", 1), ("the head", 0)])
def test_two_hosts_of_a_slice_compute_a_unit_together_and_outlive_a_loss(cluster, hosts, sweep, lost, process, capfd):
    """Where the host of a slice's head is lost, another slice takes the unit."""
    workdir = sweep / lost.replace(" ", "-")
    (data,) = (sweep / "one/nodes").glob("data-*")
    shutil.copytree(data, workdir / "nodes" / data.name)  # that it is made once more would show nothing
    raylets = hosts if process else [*hosts, *add_slice(cluster, "another")]
    placed = [f"--ray={cluster.address}", f"--slice={SLICE}", "--heartbeat=10", f"--workdir={workdir}"]
    with meanwhile(kill_when_saved, raylets, process, workdir) as killed:
        code = main.main(["distill-jax", "sweep", f"--sweep={sweep}/sweep.py", *SETTINGS, *placed])
    out, err = capfd.readouterr()
    assert code == 0 and len(killed) == 1, err
    assert "continuing from step" in out
    assert rows(workdir) == rows(sweep / "one")
    assert json.loads((workdir / "report/sweep.json").read_text())["points"]


def rows(workdir: Path) -> dict[str, list]:
    """Return all rows of the metrics of nodes that trained; two hosts add in another order than one."""
    found = {}
    for path in workdir.glob("nodes/*/metrics.jsonl"):
        each = [json.loads(line) for line in path.read_text().splitlines()]
        numbers = [
            {k: pytest.approx(v, rel=1e-3, abs=1e-5) if isinstance(v, float) else v for k, v in row.items()}
            for row in each
        ]
        found[path.parent.name] = numbers if workdir.name == "one" else each
    assert len(found) == 2
    return found
