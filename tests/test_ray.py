"""A sweep on a real Ray cluster of two nodes, one of which is killed: the numbers are those of one worker."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill_jax import main
from tests import ray_cluster
from tests.ray_cluster import NODE, children, family, kill, meanwhile, raylet

pytestmark = [pytest.mark.kill, pytest.mark.thorough]

ROOT = Path(__file__).parent.parent
SWEEP = f"""
from distill_jax import axis, product, select_stages

def get_sweep(arg=""):
    return "{ROOT}/configs/arithmetic.py:smoke", select_stages(axis("seed", 0, 1), "relearn-reference")
"""
SETTINGS = (
    "--config.data.multiplication_max=3",
    "--config.reference.steps=120",
    "--config.reference.batch=8",
    "--config.reference.checkpoint_every=20",
    "--config.relearn.steps=8",
    "--config.relearn.evaluate_steps=(0,8)",
    "--config.run.progress_seconds=0",
)


@pytest.fixture(scope="module")
def sweep_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("ray") / "sweep.py"
    file.write_text(SWEEP)
    return file


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator:
    """Two nodes with a core each."""
    with ray_cluster.cluster(tmp_path_factory.mktemp("compiled")) as nodes:
        nodes.add_node(**NODE)
        yield nodes


def command(file: Path, workdir: Path, *more: str) -> list[str]:
    return ["distill-jax", "sweep", f"--sweep={file}", f"--workdir={workdir}", "--pack=1", *SETTINGS, *more]


def kill_with_its_workers(pid: int, workdir: Path, killed: list[int], ended: threading.Event) -> None:
    """Wait until a node trains something and has saved a state of it, and kill all of the node at once."""
    while not ended.wait(0.02):
        processes = family(pid, children())
        for lease in workdir.glob("attempts/reference-*/lease-*.json"):
            record = json.loads(lease.read_text() or "{}")
            if record.get("pid") in processes and [*lease.parent.glob("*/checkpoints/*.json")]:
                kill(processes)
                killed.append(record["pid"])
                return


def test_a_node_killed_in_the_middle_changes_no_number(sweep_file, cluster, tmp_path, capfd):
    assert main.main(command(sweep_file, tmp_path / "one")) == 0
    (data,) = (tmp_path / "one/nodes").glob("data-*")
    shutil.copytree(data, tmp_path / "ray/nodes" / data.name)  # that it is made once more would show nothing
    second = raylet(cluster.list_all_nodes()[1])
    with meanwhile(kill_with_its_workers, second, tmp_path / "ray") as killed:
        code = main.main(command(sweep_file, tmp_path / "ray", f"--ray={cluster.address}"))
    out = capfd.readouterr().out
    assert code == 0 and len(killed) == 1
    assert out.count(": done\n") == 4 and "continuing from step" in out
    assert out.splitlines()[-1] == f"report: {tmp_path}/ray/report/index.html"
    assert summary(tmp_path / "one") == summary(tmp_path / "ray")
    rows = {path.parent.name: path.read_bytes() for path in (tmp_path / "one").glob("nodes/*/metrics.jsonl")}
    assert {path.parent.name: path.read_bytes() for path in (tmp_path / "ray").glob("nodes/*/metrics.jsonl")} == rows


def summary(workdir: Path) -> str:
    """Return a sweep's summary, byte for byte but for when it was written and the seal over that."""
    record = json.loads((workdir / "report/sweep.json").read_text())
    assert record.pop("created") and record.pop("sha256")
    return json.dumps(record)
