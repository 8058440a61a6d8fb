"""A sweep whose workers are killed, whose files are spoilt and whose numbers must not change."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
from harness import Workers, assert_same, attempted, computed, kill, nodes, said

from distill_jax.exit_codes import ExitCode
from distill_jax.io.files import read_sealed, write_sealed
from distill_jax.main import main
from tests.programs import with_data
from tests.spoil import cut, fill, flip, largest, shared, small_disk

KILLS, FEWER = 20, 3  # the twenty with --thorough


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return shared(tmp_path_factory, "sweeps")


@pytest.fixture(scope="module")
def workers(base) -> Workers:
    return Workers(base)


@pytest.fixture(scope="module")
def undisturbed(base, workers, tmp_path_factory) -> Path:
    """The sweep that nobody disturbs."""
    workdir = with_data(tmp_path_factory, base / "sweep")
    code, text = workers(workdir)
    assert code == 0, text
    return workdir


@pytest.fixture
def copy(undisturbed, tmp_path) -> Path:
    """A copy of the finished sweep that a test may spoil."""
    return shutil.copytree(undisturbed, tmp_path / "sweep")


def remove(workdir: Path, *stages: str) -> None:
    for name, path in nodes(workdir).items():
        if name.rpartition("-")[0] in stages:
            shutil.rmtree(path)


@pytest.mark.end_to_end
def test_the_undisturbed_sweep_computes_every_node_once_and_shares_references(undisturbed):
    done = computed(said(undisturbed))
    assert sorted(done) == sorted(set(nodes(undisturbed)) - {"data"})  # which it was given
    stages = [name.rpartition("-")[0] for name in done]
    assert stages.count("reference") == stages.count("maxent") == 2 and stages.count("undo-0.9") == 2
    summary = json.loads((undisturbed / "report/sweep.json").read_text())
    assert summary["points"] == {"total": 6, "finished": 6}
    assert len({tuple(run["attack"]["forget_shown"]) for run in summary["runs"]}) > 3  # no table of zeros


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_eight_workers_at_once_do_every_node_exactly_once(workers, undisturbed, tmp_path):
    workdir = tmp_path / "eight"  # without data, which one of them prepares
    crowd = [workers.start(workdir) for _ in range(8)]
    try:
        assert [process.wait(timeout=900) for process in crowd] == [0] * 8, said(workdir)
    finally:
        for process in crowd:
            kill(process)
    assert sorted(computed(said(workdir))) == sorted(nodes(workdir))
    assert_same(workdir, undisturbed)


@pytest.mark.kill
def test_kills_at_random_moments_change_nothing(workers, undisturbed, copy, request):
    workdir, chance, thorough = copy, random.Random(20), request.config.getoption("--thorough")
    wanted = KILLS if thorough else FEWER
    remove(workdir, "maxent", "undo-0.2", "undo-0.9", "relearn-undo-0.2", "relearn-undo-0.9")
    if thorough:
        shutil.rmtree(workdir / "nodes")
    crowd, kills = [workers.start(workdir) for _ in range(2)], 0
    try:
        while kills < wanted:
            time.sleep(chance.uniform(0.5, 6))
            victim = chance.randrange(len(crowd))
            if crowd[victim].poll() is None:
                kill(crowd[victim])
                kills += 1
            elif all((path / "DONE").exists() for path in nodes(workdir).values()):
                remove(workdir, "relearn-undo-0.9", "undo-0.9")  # finished before it was killed often enough
            crowd[victim] = workers.start(workdir)
        assert [process.wait(timeout=900) for process in crowd] == [0, 0], said(workdir)[-2:]
    finally:
        for process in crowd:
            kill(process)
    code, text = workers(workdir)
    assert code == 0, text
    assert_same(workdir, undisturbed)


@pytest.mark.kill
def test_a_worker_stopped_beyond_its_term_leaves_and_changes_nothing(workers, undisturbed, copy):
    """Its successor works in a directory of its own; when it wakes, everything is finished."""
    remove(copy, "relearn-undo-0.2")
    stopped = workers.start(copy, "--dead_after=1")
    try:
        deadline = time.monotonic() + 300
        while not any(path.glob("checkpoints/[0-9]*.json") for path in attempted(copy, "relearn-undo-0.2")):
            assert stopped.poll() is None and time.monotonic() < deadline, said(copy)
            time.sleep(0.01)
        os.kill(stopped.pid, signal.SIGSTOP)
        for lease in copy.glob("attempts/relearn-undo-0.2-*/lease-*.json"):
            owner = json.loads(lease.read_text())
            if owner.get("pid") == stopped.pid:  # on this machine it would count as alive for as long as it is stopped
                lease.write_text(json.dumps(owner | {"machine": "elsewhere"}))
        code, text = workers(copy, "--dead_after=1")
        assert code == 0, text
        os.kill(stopped.pid, signal.SIGCONT)
        assert stopped.wait(timeout=120) == ExitCode.LEASE_LOST
    finally:
        kill(stopped)
    assert "was taken over by" in said(copy)[-2] and "Traceback" not in said(copy)[-2]
    assert_same(copy, undisturbed)
    code, text = workers(copy)
    assert code == 0 and not [path for path in copy.glob("attempts/*/*") if path.is_dir()]


@pytest.mark.thorough
@pytest.mark.kill
def test_nodes_interrupted_apart_go_on_together_on_their_own_data(workers, undisturbed, copy):
    """Two seeds train in two workers, both are killed, and one worker takes both up as one population."""
    remove(copy, "reference", "maxent", "damaged-0.2", "damaged-0.9", "undo-0.2", "undo-0.9")
    remove(copy, "relearn-undo-0.2", "relearn-undo-0.9", "relearn-reference")
    crowd = [workers.start(copy, "--pack=1") for _ in range(2)]

    def saved() -> list[set[int]]:
        return [{int(p.stem) for p in path.glob("checkpoints/[0-9]*.json")} for path in attempted(copy, "reference")]

    deadline = time.monotonic() + 300
    while not (len(saved()) == 2 and set.intersection(*saved())):
        assert time.monotonic() < deadline, said(copy)
        time.sleep(0.01)
    for process in crowd:
        kill(process)
    common = max(set.intersection(*saved()))
    for path in attempted(copy, "reference"):
        for proof in path.glob("checkpoints/[0-9]*.json"):
            if int(proof.stem) != common:
                proof.unlink()
    code, text = workers(copy)
    assert code == 0, text
    assert any(
        line.count("reference-") == 2 and f"continuing from step {common} " in line for line in text.splitlines()
    )
    assert_same(copy, undisturbed)


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_one_command_starts_several_workers_of_a_machine(workers, copy):
    wanted = [name for name in nodes(copy) if name.startswith("relearn")]
    remove(copy, "relearn-undo-0.2", "relearn-undo-0.9", "relearn-reference")
    code, text = workers(copy, "--workers", "2")
    assert code == 0, text
    lines = [line for line in text.splitlines() if "[" in line]
    assert {line[:3] for line in lines} == {"0| ", "1| "}
    assert sorted(computed([line[3:] + "\n" for line in lines])) == sorted(wanted)
    assert text.splitlines()[-1] == f"report: {copy}/report/index.html"


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_unpacked_the_sweep_comes_to_the_same(workers, undisturbed, copy):
    remove(copy, "undo-0.2", "undo-0.9", "maxent")
    code, text = workers(copy, "--pack=1")
    assert code == 0, text
    together = [line for line in "".join(said(undisturbed)).splitlines() if "undo-0.2" in line and "undo-0.9" in line]
    assert together and not any("undo-0.2" in line and "undo-0.9" in line for line in text.splitlines() if "[" in line)
    assert_same(copy, undisturbed)


@pytest.mark.end_to_end
def test_what_is_spoilt_is_named_and_never_used(copy, capsys):
    """A model with a bit turned over or cut short, and every record of an attack cut short."""

    def assert_refused(spoil: Callable[[Path], None], *files: Path) -> None:
        whole = {file: file.read_bytes() for file in files}
        for file in files:
            spoil(file)
        code = main(["distill-jax", *harness.command(copy)])  # nothing is computed: no process of its own
        text = "".join(capsys.readouterr())
        refusals = [f"remove {copy / 'nodes' / file.relative_to(copy).parts[1]}" for file in files]
        assert code == 2 and "Traceback" not in text, text
        assert any(refusal in text.splitlines()[-1] for refusal in refusals), text
        for file, data in whole.items():
            file.write_bytes(data)

    models = [path for name, path in nodes(copy).items() if name.startswith("undo-0.2")]
    attacks = [path for name, path in nodes(copy).items() if name.startswith(("relearn-undo-0.9", "relearn-reference"))]
    for path, name in zip(attacks, ("metrics.jsonl", "result.json", "ledger.json", "DONE"), strict=True):
        assert_refused(cut, path / name)
    remove(copy, "relearn-undo-0.2")  # to be computed from the models, of which none is whole
    for spoil in (flip, cut):
        assert_refused(spoil, *(largest(path / "checkpoints/final") for path in models))


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_a_disk_that_fills_up_in_the_middle_of_a_checkpoint(workers, undisturbed, tmp_path):
    """One message, nothing lost that was finished, and room is all it takes to go on."""
    with small_disk(tmp_path / "disk", "64m") as disk:
        shutil.copytree(undisturbed, disk / "sweep")
        workdir = tmp_path / "sweep"
        workdir.symlink_to(disk / "sweep")  # so that what workers say is written elsewhere
        remove(workdir, "undo-0.2", "relearn-undo-0.2")
        before = {name for name, path in nodes(workdir).items() if (path / "DONE").exists()}
        fill(disk, 100)
        code, text = workers(workdir)
        assert code == 2 and "No space left on device" in text and "Traceback" not in text, text
        assert before == {name for name, path in nodes(workdir).items() if (path / "DONE").exists()}
        (disk / "filler").unlink()
        code, text = workers(workdir)
        assert code == 0, text
        assert_same(workdir, undisturbed)


@pytest.mark.end_to_end
def test_workers_with_another_config_or_code_are_refused(workers, copy, capsys):
    """The first is a process of its own; those after it are refused before they compute, in this one."""

    def refusal(*more: str) -> str:
        assert main(["distill-jax", *harness.command(copy), *more]) == 2
        return "".join(capsys.readouterr())

    remove(copy, "relearn-reference")
    first = workers.start(copy)
    try:
        deadline = time.monotonic() + 300
        while "[" not in said(copy)[0]:
            assert first.poll() is None and time.monotonic() < deadline, said(copy)
            time.sleep(0.1)
        os.kill(first.pid, signal.SIGSTOP)  # it stays where it is
        text = refusal("--config.relearn.seeds=3")
        assert "points" in text and "workers there" in text
        marker = read_sealed(copy / "experiment.json")
        write_sealed(copy / "experiment.json", marker | {"code": "0123456789ab"})
        assert "code '0123456789ab'" in refusal()
    finally:
        kill(first)


@pytest.mark.end_to_end
def test_an_attacker_that_diverges_is_marked_and_the_others_go_on(workers, undisturbed, tmp_path):
    workdir = tmp_path / "nan"
    shutil.copytree(undisturbed / "nodes", workdir / "nodes")  # the models that it attacks
    remove(workdir, "relearn-undo-0.2", "relearn-undo-0.9", "relearn-reference")
    code, text = workers(workdir, "--index=4", "--config.relearn.learning_rates=(1e-2,1e30)")
    assert code == 0, text
    (run,) = json.loads((workdir / "report/sweep.json").read_text())["runs"]
    assert run["attack"]["members"] == 4 and run["attack"]["diverged"] == 2
    assert run["attack"]["counted"] == [4, 2, 2]
    attack = next(path for name, path in nodes(workdir).items() if name.startswith("relearn"))
    rows = [json.loads(line) for line in (attack / "metrics.jsonl").read_text().splitlines()]
    last = {row["member"]: row["step"] for row in rows if row["kind"] == "train"}
    assert last == {f"lr={rate},seed={seed}": step for rate, step in (("0.01", 20), ("1e+30", 0)) for seed in (0, 1)}
