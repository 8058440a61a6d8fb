"""A sweep in a bucket on a Ray cluster of two nodes, one of which is killed: the numbers are those of one worker."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from distill_jax import main
from distill_jax.io import staging, storage
from distill_jax.io.leases import process_identity
from tests import bucket_server, ray_cluster
from tests.ray_cluster import NODE, children, family, kill, meanwhile, raylet
from tests.test_ray import SETTINGS, SWEEP

pytestmark = [pytest.mark.kill, pytest.mark.thorough]


@pytest.fixture(scope="module")
def bucket():
    with bucket_server.serving() as served:
        yield served


@pytest.fixture(scope="module")
def cluster(bucket, tmp_path_factory) -> Iterator:
    """Two nodes with a core each, whose workers find the bucket's server in their environment."""
    with ray_cluster.cluster(tmp_path_factory.mktemp("compiled")) as nodes:
        nodes.add_node(**NODE)
        yield nodes


def kill_with_its_workers(pid: int, bucket, killed: list[int], ended: threading.Event) -> None:
    """Wait until a node of Ray's trains something and has saved a state of it, and kill all of it at once."""
    while not ended.wait(0.1):
        names, processes = bucket.names(), family(pid, children())
        for name in names:
            folder = name.rpartition("/")[0]
            if not name.startswith("sweep/attempts/reference-") or "/lease-" not in name:
                continue
            record = json.loads(bucket.storage.get_file("bucket", name))
            saved = [n for n in names if n.startswith(folder) and "/checkpoints/" in n and n.endswith(".json")]
            if record.get("machine") == process_identity()["machine"] and record.get("pid") in processes and saved:
                kill(processes)
                killed.append(record["pid"])
                return


def test_a_node_killed_in_the_middle_of_a_bucket_changes_no_number(cluster, bucket, tmp_path, capfd):
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP)
    command = ["distill-jax", "sweep", f"--sweep={file}", "--pack=1", *SETTINGS]
    assert main.main([*command, f"--workdir={tmp_path}/one"]) == 0
    (data,) = (tmp_path / "one/nodes").glob("data-*")
    (data / "rows/.lock").unlink()  # empty, which the emulator takes for no upload
    staging.upload(data, storage.location(f"gs://bucket/sweep/nodes/{data.name}"), "DONE")
    second = raylet(cluster.list_all_nodes()[1])
    with meanwhile(kill_with_its_workers, second, bucket) as killed:
        code = main.main([*command, "--workdir=gs://bucket/sweep", f"--ray={cluster.address}"])
    out, err = capfd.readouterr()
    assert code == 0 and len(killed) == 1, err
    assert "continuing from step" in out
    for path in (tmp_path / "one").glob("nodes/*/metrics.jsonl"):
        there = bucket.storage.get_file("bucket", f"sweep/nodes/{path.parent.name}/metrics.jsonl")
        assert there == path.read_bytes()
    local = json.loads((tmp_path / "one/report/sweep.json").read_text())
    remote = json.loads(bucket.storage.get_file("bucket", "sweep/report/sweep.json"))
    for record in (local, remote):
        assert record.pop("created") and record.pop("sha256")
    assert local == remote
