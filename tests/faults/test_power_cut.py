"""The power fails while a worker works: what its disk then holds is gone on with to the same numbers, or refused."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from harness import Workers, assert_same, finished, kill, nodes, said

from tests.spoil import shared

IMAGES = 8


@pytest.mark.thorough
@pytest.mark.kill
def test_a_power_cut_changes_no_numbers(tmp_path_factory, tmp_path):
    base, chance = shared(tmp_path_factory, "sweeps"), random.Random(9)
    undisturbed, workers, disk = finished(base), Workers(base), tmp_path / "disk/sweep"
    shutil.copytree(undisturbed, disk)
    for name, path in nodes(disk).items():
        if name != "data":
            shutil.rmtree(path)
    before = {path.stat().st_ino: written(path) for path in disk.rglob("*") if path.is_file()}
    log = tmp_path / "synced"
    recording = Path(__file__).parent / "recording"
    workers.env |= {"SYNCED": str(log), "PYTHONPATH": f"{recording}:{os.environ.get('PYTHONPATH', '')}"}
    worker, images = workers.start(disk), []
    try:
        while not log.exists():
            assert worker.poll() is None, said(disk)
            time.sleep(0.1)
        while worker.poll() is None and len(images) < IMAGES:
            time.sleep(chance.uniform(0.5, 8))
            os.kill(worker.pid, signal.SIGSTOP)
            while Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
                time.sleep(0.01)
            images.append(image(disk, tmp_path / f"{len(images)}/sweep", before, log, chance))
            os.kill(worker.pid, signal.SIGCONT)
    finally:
        kill(worker)
    assert len(images) > IMAGES / 2
    del workers.env["SYNCED"]
    for copy in images:
        while True:
            code, text = workers(copy)
            assert code in (0, 2) and "Traceback" not in text, text
            if code == 0:
                break
            damaged = re.search(r"remove (\S+?)[; ]", text)
            assert damaged and Path(damaged[1]).is_relative_to(copy), text
            shutil.rmtree(damaged[1])
        assert_same(copy, undisturbed)


def written(path: Path) -> tuple[int, int]:
    """Return size and time of a file."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def image(disk: Path, to: Path, before: dict[int, tuple[int, int]], log: Path, chance: random.Random) -> Path:
    """Copy a disk as a power cut leaves it: every name, and of each file what was synced and perhaps more."""
    lines = [[int(number) for number in line.split()] for line in log.read_text().splitlines()]
    synced = before | {inode: (size, mtime) for inode, size, mtime in lines}
    for path in disk.rglob("*"):
        copy = to / path.relative_to(disk)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        now, then = written(path), synced.get(path.stat().st_ino, (0, 0))
        grows = path.suffix == ".jsonl" and then[0] <= now[0]  # anything else of another time had the inode before
        safe = then[0] if grows or then == now else 0
        contents = path.read_bytes()
        copy.write_bytes(contents[: chance.choice([safe, chance.randint(safe, len(contents))])])
    return to
