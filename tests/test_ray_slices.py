"""A sweep on a real Ray cluster with a TPU slice of two hosts that is made up: their processes are one worker's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill_jax import main
from tests.programs import environment
from tests.test_ray import ROOT, SETTINGS, children, family

pytestmark = [pytest.mark.kill, pytest.mark.thorough]

SWEEP = f"""
from distill_jax import axis, select_stages

def get_sweep(arg=""):
    return "{ROOT}/configs/arithmetic.py:smoke", select_stages(axis("seed", 0), "relearn-reference")
"""
SLICE = "v4-16"  # 2 x 2 x 2 chips, of which a host has four


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator:
    """A node without a TPU, and the two hosts of a slice, with the resources and labels that Ray gives them."""
    kept = environment(tmp_path_factory.mktemp("compiled")) | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**kept, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}.items():
            patch.setenv(name, value)
        cluster_utils = pytest.importorskip("ray.cluster_utils")  # which reads them as it is imported
        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "memory": 2**30, "node_ip_address": "127.0.0.1"}
        three = cluster_utils.Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        for worker in (0, 1):
            labels = {"ray.io/tpu-slice-name": "made-up", "ray.io/tpu-worker-id": str(worker)}
            head = {f"TPU-{SLICE}-head": 1} if worker == 0 else {}
            three.add_node(**node, resources={"TPU": 4, **head}, labels=labels)
        logs = three.head_node.get_session_dir_path()
        yield three
        three.shutdown()
        shutil.rmtree(logs, ignore_errors=True)


def kill_a_process(raylet: int, workdir: Path, killed: list[int], ended: threading.Event) -> None:
    """Wait until a state of what both hosts train is saved, and kill the process of the second host."""
    while not ended.wait(0.02):
        if not [*workdir.glob("attempts/reference-*/*/checkpoints/*.json")]:
            continue
        for pid in family(raylet, children()):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if "--process=1" in line:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return


def test_two_hosts_of_a_slice_compute_a_unit_together_and_outlive_a_kill(cluster, tmp_path, capfd):
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP)
    command = ["distill-jax", "sweep", f"--sweep={file}", *SETTINGS]
    assert main.main([*command, f"--workdir={tmp_path}/one"]) == 0
    (data,) = (tmp_path / "one/nodes").glob("data-*")
    shutil.copytree(data, tmp_path / "two/nodes" / data.name)  # that it is made once more would show nothing
    killed, ended = [], threading.Event()
    raylet = cluster.list_all_nodes()[2].all_processes["raylet"][0].process.pid
    killer = threading.Thread(target=kill_a_process, args=(raylet, tmp_path / "two", killed, ended))
    killer.start()
    placed = [f"--ray={cluster.address}", f"--slice={SLICE}", "--heartbeat=10", f"--workdir={tmp_path}/two"]
    try:
        code = main.main([*command, *placed])
    finally:
        ended.set()
        killer.join()
    out, err = capfd.readouterr()
    assert code == 0 and len(killed) == 1, err
    assert "continuing from step" in out
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    assert json.loads((tmp_path / "two/report/sweep.json").read_text())["points"]


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
