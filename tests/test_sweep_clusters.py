"""A sweep as job arrays of Slurm and as a JobSet: the graph as it is submitted, against strict stand-ins."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import stand_in
import yaml

from distill_jax import main
from distill_jax.experiment.engines import cluster_engine
from distill_jax.experiment.unit_plan import Fit, UnitPlanner
from distill_jax.perf import slices
from tests.jobset_rules import check_jobset
from tests.test_launch_clusters import Site

pytestmark = pytest.mark.end_to_end

SWEEP = """
from distill_jax import axis, chain, product, select_stages

def get_sweep(arg=""):
    return "arithmetic:smoke", select_stages(axis("seed", 0, 1), "relearn-reference")
"""
LEVELS = {0: 1, 1: 2, 2: 2}  # data; two references, each a unit by --pack=1; an attack on each
JOBSET = "--queue=q --accelerator=tpu-v6e-slice --topology=2x2 --image=repo/distill:1 --claim=work"


@pytest.fixture
def site(tmp_path: Path, monkeypatch) -> Site:
    """A checkout of the launch scripts, from which the sweep is submitted, and the cluster behind it."""
    site = Site(tmp_path)
    (site.root / "configs/sweep.py").write_text(SWEEP)
    monkeypatch.chdir(site.root)
    monkeypatch.setattr(cluster_engine, "LAUNCH", site.root / "launch")
    for name, value in site.env.items():
        monkeypatch.setenv(name, value)
    return site


def sweep(workdir: str, *flags: str) -> int:
    return main.main(["distill-jax", "sweep", "--sweep=configs/sweep.py", f"--workdir={workdir}", "--pack=1", *flags])


def test_slurm_gets_an_array_a_level_each_after_the_last(site, capfd):
    code = sweep("runs/x", "--gpus=2", "--cpus=4", "--slurm=--partition=gpu --time=4:00:00", "--config.relearn.seeds=1")
    assert code == 0, capfd.readouterr().err
    calls = [stand_in.parse(call)[2] for call in site.lines("calls") if call[0] == "sbatch"]
    assert [call["--array"] for call in calls] == ["0", "0,1", "0,1"]
    assert [call.get("--dependency") for call in calls] == [None, "afterok:7", "afterok:8"]
    assert [call["--gpus-per-node"] for call in calls] == ["1", "2", "2"]  # data ask for none, and Slurm gives one
    assert {(call["--ntasks-per-node"], call["--partition"]) for call in calls} == {("1", "gpu")}
    assert {call["--cpus-per-task"] for call in calls} == {"4"}
    common = ["sweep", "--sweep=configs/sweep.py", "--workdir=runs/x", "--pack=1", "--config.relearn.seeds=1"]
    units = [f"--unit={level}.{index}" for level, count in LEVELS.items() for index in range(count)]
    assert site.programs() == [[*common, unit] for unit in units]


def test_slurm_starts_no_level_after_one_that_failed(site):
    site.plan(**{"codes-0": [0, 0, 2]})
    assert sweep("runs/x", "--slurm=") == 0
    assert [words[-1] for words in site.programs()] == ["--unit=0.0", "--unit=1.0", "--unit=1.1"]


def test_a_preempted_unit_is_put_back_into_the_queue_by_itself(site):
    site.plan(**{"codes-0": [0, 42]})
    assert sweep("runs/x", "--slurm=") == 0
    units = [words[-1] for words in site.programs()]
    assert units == [f"--unit={unit}" for unit in ("0.0", "1.0", "1.0", "1.1", "2.0", "2.1")]


def test_a_dry_run_prints_all_submissions_and_makes_none(site, capfd):
    assert sweep("runs/x", "--slurm=", "--dry-run") == 0
    lines = capfd.readouterr().out.splitlines()
    submissions = [shlex.split(line) for line in lines if line.startswith("sbatch ")]
    assert [words[-1] for words in submissions] == [f"--unit={level}.@index@" for level in LEVELS]
    assert "--dependency=afterok:LEVEL_1" in submissions[2]
    assert sweep("/mnt/shared/x", f"--jobset={JOBSET}", "--dry-run") == 0
    assert "kind: JobSet" in capfd.readouterr().out
    assert site.lines("calls") == []


def test_a_jobset_has_a_replicated_job_a_level_each_after_the_last(site, capfd):
    assert sweep("/mnt/shared/x", f"--jobset={JOBSET}", "--config.arg='@job@ $(x)'") == 2  # no such setting
    assert sweep("/mnt/shared/x", f"--jobset={JOBSET}") == 0, capfd.readouterr().err
    jobset = yaml.safe_load((site.cloud / "applied").read_text())
    check_jobset(jobset)
    jobs = jobset["spec"]["replicatedJobs"]
    assert {job["name"]: job["replicas"] for job in jobs} == {f"level-{level}": n for level, n in LEVELS.items()}
    assert [job.get("dependsOn") for job in jobs] == [
        None,
        [{"name": "level-0", "status": "Complete"}],
        [{"name": "level-1", "status": "Complete"}],
    ]
    for level, job in enumerate(jobs):
        (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
        ((name, field),) = [(v["name"], v["valueFrom"]["fieldRef"]["fieldPath"]) for v in container["env"]]
        assert field == "metadata.labels['jobset.sigs.k8s.io/job-index']"
        assert container["args"] == ["sweep", *ARGUMENTS, f"--unit={level}.$({name})"]
        assert job["template"]["spec"]["completions"] == 1


ARGUMENTS = ["--sweep=configs/sweep.py", "--workdir=/mnt/shared/x", "--pack=1"]


@pytest.mark.parametrize(
    ("workdir", "flags", "says"),
    [
        ("/mnt/shared/x", f"--jobset={JOBSET} --topology=4x5", "v6e has none such"),
        ("runs/x", "--slurm=--nodes=0", "--nodes=0: a number from 1"),
        ("runs/x", "--slurm=--nmae=2", "unknown flag --nmae=2"),
        ("runs/x", "--slurm=--partition='gpu", "--slurm=--partition='gpu: No closing quotation"),
    ],
)
def test_what_a_unit_cannot_have_is_refused(site, capfd, workdir, flags, says):
    assert sweep(workdir, flags) == 2
    assert says in capfd.readouterr().err and site.programs() == []


def test_slurm_gives_a_unit_several_nodes_and_a_process_a_gpu(site, capfd):
    assert sweep("runs/x", "--gpus=2", "--slurm=--nodes=3") == 0, capfd.readouterr().err
    calls = [stand_in.parse(call)[2] for call in site.lines("calls") if call[0] == "sbatch"]
    assert [(call["--nodes"], call["--ntasks-per-node"]) for call in calls] == [("1", "1"), ("3", "2"), ("3", "2")]
    started = [words for words in site.lines("programs") if words[-1] == "--unit=2.1"]
    assert sorted(int(rank) for rank, *_ in started) == list(range(6))
    assert all(words[:2] == ["sweep", "--distributed"] for _, *words in started)


def test_a_jobset_gives_a_unit_a_process_on_every_host_of_its_slice(site, capfd):
    assert sweep("/mnt/shared/x", f"--jobset={JOBSET} --topology=4x4") == 0, capfd.readouterr().err
    jobset = yaml.safe_load((site.cloud / "applied").read_text())
    check_jobset(jobset)
    for level, job in enumerate(jobset["spec"]["replicatedJobs"]):
        spec = job["template"]["spec"]
        assert (job["replicas"], spec["completions"], spec["parallelism"]) == (LEVELS[level], 4, 4)
        arguments = spec["template"]["spec"]["containers"][0]["args"]
        assert arguments[:3] == ["sweep", "--distributed", "--coordinator_port=8482"]
        assert arguments[-1] == f"--unit={level}.$(JOB_INDEX)"


def test_a_jobset_asks_for_the_largest_slice_that_a_unit_needs(site, monkeypatch, capfd):
    """Its nodes come from the plan: of one unit v5e-4, of another v5e-16; a flag of jobset.sh overrules it."""
    sizes = iter(["v5e-4", "v5e-16", "v5e-4", "v5e-4"] * 2)
    monkeypatch.setattr(UnitPlanner, "fit", lambda *_: Fit("of the plan", slices.find(next(sizes))))
    rest = "--jobset=--queue=q --image=repo/distill:1 --claim=work"
    for more, topology, hosts in (("", "4x4", 4), (" --topology=2x2", "2x2", 1)):
        assert sweep("/mnt/shared/x", "--slice=v5e", f"{rest}{more}") == 0, capfd.readouterr().err
        jobset = yaml.safe_load((site.cloud / "applied").read_text())
        check_jobset(jobset)
        for job in jobset["spec"]["replicatedJobs"]:
            spec = job["template"]["spec"]
            nodes = spec["template"]["spec"]["nodeSelector"]
            assert nodes["cloud.google.com/gke-tpu-topology"] == topology and spec["completions"] == hosts
            assert nodes["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
    assert sweep("/mnt/shared/x", "--slice=v5e") == 2 and "only --ray and --jobset read it" in capfd.readouterr().err


@pytest.mark.parametrize("launcher", ["tpu_vm.sh", "xpk.sh"])
def test_launchers_of_one_program_on_all_hosts_take_no_sweep(site, launcher):
    done = site.run(launcher, program=["--sweep=configs/sweep.py", "--workdir=/mnt/shared/x"])
    assert done.returncode == 2 and "needs --config=FILE" in done.stderr and site.lines("calls") == []
