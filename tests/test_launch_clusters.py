"""The launchers for clusters, run for real against stand-ins for the clusters' tools (tests/stand_in.py)."""

import copy
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import stand_in
import yaml

from distill_jax.perf.slices import SLICES
from tests.jobset_rules import check_jobset

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parent.parent
STAND_IN = f"""#!{sys.executable} -SE
import sys
sys.path.insert(0, "{ROOT}/tests")
import stand_in
sys.exit(stand_in.main())
"""

# Records a call and goes on to the real tool.
RECORD = """{ printf '["%s"' "${0##*/}"; printf ', "%s"' "$@"; echo ]; } >>"$CLOUD/calls"
"""

# Leaves an installed program where launch/environment.sh would, and tells of itself when it is a command.
ENVIRONMENT = f"""
environment() {{
  local root; root=$(cd "$(dirname "${{BASH_SOURCE[0]}}")/.." && pwd)
  [[ -z ${{NO_ENVIRONMENT:-}} ]] || return 1
  command -p mkdir -p "$root/.venv/bin"
  cp "$CLOUD/distill-jax" "$root/.venv/bin"
  export PATH="$root/.venv/bin:$PATH"
}}
if [[ ${{BASH_SOURCE[0]}} == "$0" ]]; then
  [[ ${{WORKER:-}} ]] || {RECORD}
  environment "$@"
fi
"""

# What a shell, YAML, JSON, XPK and Kubernetes would each take for their own.
AWKWARD = [
    "--config=configs/a b.py:cpu,full",
    "--workdir=/mnt/shared/it's $HOME",
    '--config.x="$(USER)" $$ `id` \\n & * ? é',
]
PLAIN = ["--config=configs/arithmetic.py", "--workdir=/mnt/shared/run1"]
S3 = ["--config=configs/c.py", "--workdir=s3://bucket/run1"]

FLAGS = {
    "tpu_vm.sh": {
        "name": "run1",
        "zone": "us-east5-b",
        "accelerator-type": "v6e-16",
        "runtime-version": "v2-alpha-tpuv6e",
        "poll": "0",
    },
    "xpk.sh": {"name": "run1", "cluster": "c1", "tpu-type": "v6e-16", "image": "repo/distill:1", "storage": "nfs"},
    "jobset.sh": {
        "name": "run1",
        "queue": "tpu-queue",
        "accelerator": "tpu-v6e-slice",
        "topology": "4x4",
        "image": "repo/distill:1",
        "claim": "work",
    },
    "slurm.sh": {"name": "run1", "nodes": "1", "gpus-per-node": "2"},
}
LAUNCHERS = sorted(FLAGS)


class Site:
    """A copy of what the launchers send, the stand-ins first on PATH, and the cloud behind them."""

    def __init__(self, path: Path):
        self.root, self.cloud, tools = path / "a checkout", path / "cloud", path / "bin"
        for directory in (self.root, self.cloud, tools, self.cloud / "worker-bin"):
            directory.mkdir()
        (self.root / "configs").mkdir()
        for name in ("arithmetic.py", "a b.py", "c.py"):
            (self.root / "configs" / name).touch()
        (self.root / "distill_jax/perf").mkdir(parents=True)
        shutil.copy(ROOT / "distill_jax/perf/slices.tsv", self.root / "distill_jax/perf")
        for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.root)
        shutil.copytree(ROOT / "launch", self.root / "launch")
        (self.root / "launch/environment.sh").write_text(ENVIRONMENT)
        for tool in ("gcloud", "xpk", "kubectl", "sbatch", "srun", "scancel", "scontrol"):
            self.tool(tools / tool, STAND_IN)
        self.tool(self.cloud / "distill-jax", STAND_IN)
        shutil.copy(self.cloud / "distill-jax", tools)  # as in the image
        for tool in ("tar", "mkdir"):
            self.tool(tools / tool, f'#!/bin/sh\n{RECORD}exec {shutil.which(tool)} "$@"\n')
        self.tool(self.cloud / "worker-bin/python3.11", "#!/bin/sh\n")
        self.env = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "WORKER_PATH": os.environ["PATH"],
            "CLOUD": str(self.cloud),
            "HOME": str(path),
            "LC_ALL": "C.UTF-8",
        }
        self.plan()

    def tool(self, file: Path, body: str) -> None:
        file.write_text(body)
        file.chmod(0o755)

    def plan(self, **script: list) -> None:
        (self.cloud / "script.json").write_text(json.dumps(script))

    def command(
        self, launcher: str, *switches: str, program: list[str] | None = None, **flags: str | None
    ) -> list[str]:
        merged: dict[str, Any] = FLAGS[launcher] | {name.replace("_", "-"): value for name, value in flags.items()}
        given = [f"--{name}={value}" for name, value in merged.items() if value is not None]
        rest = ["--", *program] if program is not None else []
        return ["bash", str(self.root / "launch" / launcher), *given, *switches, *rest]

    def run(self, *args, env: dict | None = None, **kwargs) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args, **kwargs),
            env=self.env | (env or {}),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
        )

    def lines(self, file: str) -> list[list[str]]:
        """Return what was recorded since this was last asked."""
        path = self.cloud / file
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def verbs(self) -> list[str]:
        """Return what gcloud was asked to change or to run."""
        return [call[4] for call in self.lines("calls") if call[0] == "gcloud" and call[4] != "describe"]

    def programs(self) -> list[list[str]]:
        """Return the arguments of every start of the program on the first host."""
        return [words[1:] for words in self.lines("programs") if words[0] == "0"]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# Every launcher


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("program", [None, AWKWARD], ids=["default", "awkward"])
def test_a_dry_run_prints_the_calls_of_the_run_and_makes_none(site, launcher, program):
    switches = ["--delete", "--spot", "--setup=test \"$HOME\" != 'a  b'"] if launcher == "tpu_vm.sh" else []
    dry = site.run(launcher, "--dry-run", *switches, program=program)
    assert dry.returncode == 0 and dry.stderr == ""
    assert site.lines("calls") == [] and not (site.root / ".cache").exists()
    commands, _, document = dry.stdout.partition("---\n")
    printed = [shlex.split(line) for line in commands.splitlines()]

    done = site.run(launcher, *switches, program=program)
    assert done.returncode == 0, done.stderr
    calls = [
        ["bash", "launch/environment.sh", *call[1:]] if call[0] == "environment.sh" else call
        for call in site.lines("calls")
    ]
    calls = [call for call in calls if call[0] not in ("srun", "scontrol")]  # made by the job, not by the launcher
    waiting = [i for i in range(1, len(calls)) if "describe" in calls[i] and calls[i] == calls[i - 1]]
    assert printed == [call for i, call in enumerate(calls) if i not in waiting]
    assert (
        document.strip()
        == {
            "jobset.sh": lambda: (site.cloud / "applied").read_text().strip(),
            "slurm.sh": lambda: (ROOT / "launch/slurm.sbatch").read_text().strip(),
        }.get(launcher, lambda: "")()
    )


@pytest.mark.parametrize("launcher", ["tpu_vm.sh", "xpk.sh", "slurm.sh"])
def test_arguments_reach_the_program_as_they_were_given(site, launcher):
    assert site.run(launcher, program=AWKWARD).returncode == 0
    assert site.programs() == [["run", "--distributed", *AWKWARD]]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_help_names_every_flag_and_runs_nothing(site, launcher):
    done = site.run(launcher, "--help")
    assert done.returncode == 0 and done.stdout.startswith(("Runs", "Submits"))
    assert all(f"--{flag} " in done.stdout for flag in FLAGS[launcher])
    assert site.lines("calls") == []


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("switches", "program", "flags", "message"),
    [
        (["--nmae=x"], None, {}, "unknown flag --nmae=x; there are --name"),
        (["--=x"], None, {}, "unknown flag --=x"),
        (["--name"], None, {}, "--name has no value"),
        (["--dry-run=1"], None, {}, "unknown flag --dry-run=1"),
        ([], None, {"name": None}, "--name is missing"),
        ([], None, {"name": "a" * 40}, "lower-case letters, digits and -, at most"),
        ([], None, {"max_restarts": "many"}, "--max-restarts=many: "),
        ([], ["--config.seed=1"], {}, "needs --config=FILE and --workdir=DIR"),
        ([], [*PLAIN, "a\nb"], {}, "line break"),
    ],
)
def test_bad_flags_are_refused_before_any_call(site, launcher, switches, program, flags, message):
    done = site.run(launcher, *switches, program=program, **flags)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert site.lines("calls") == []


@pytest.mark.parametrize(
    ("launcher", "flags", "program", "message"),
    [
        ("tpu_vm.sh", {"zone": None}, None, "--zone is missing"),
        ("tpu_vm.sh", {"accelerator_type": "v6e"}, None, "such as v6e-16"),
        ("tpu_vm.sh", {"accelerator_type": "v6e-20"}, None, "v6e-20: no such slice; there are v6e-1 v6e-4 v6e-8"),
        ("tpu_vm.sh", {"accelerator_type": "v7-8"}, None, "there is no TPU v7; there are v4,v5e,v5p,v6e,tpu7x"),
        ("tpu_vm.sh", {"accelerator_type": "tpu7x-128"}, None, "on GKE only; use jobset.sh or xpk.sh"),
        ("tpu_vm.sh", {"service_account": "me"}, None, "an e-mail address"),
        ("tpu_vm.sh", {"spot": "yes"}, None, "--spot is a switch"),
        ("tpu_vm.sh", {}, ["--config=configs/c.py", "--workdir=gs://bucket"], "must be gs://BUCKET/DIRECTORY"),
        ("jobset.sh", {}, ["--config=configs/c.py", "--workdir=az://bucket/x"], "must be gs://BUCKET/DIRECTORY"),
        ("jobset.sh", {}, S3, "--workdir=s3://bucket/run1: 4 processes cannot write training states to s3:// together"),
        ("jobset.sh", {"topology": "2x2", "slices": "2"}, S3, "2 processes cannot write"),
        ("xpk.sh", {"tpu_type": "v6e-4", "num_slices": "2"}, S3, "2 processes cannot write"),
        ("tpu_vm.sh", {"accelerator_type": "v5p-16"}, S3, "2 processes cannot write"),
        ("slurm.sh", {"nodes": "2"}, S3, "4 processes cannot write"),
        ("xpk.sh", {}, ["--config=configs/c.py", "--workdir=runs/x"], "must be an absolute path"),
        ("xpk.sh", {"cluster": None}, None, "--cluster is missing"),
        ("xpk.sh", {"tpu_type": "v6e-4x5"}, None, "--tpu-type=v6e-4x5: no such slice"),
        ("jobset.sh", {}, ["--config=configs/c.py", "--workdir=/elsewhere/x"], "is not under --mount=/mnt/shared"),
        ("jobset.sh", {"claim": None}, None, "--claim is missing"),
        ("jobset.sh", {"topology": "4x5"}, None, "--topology=4x5: v6e has none such; there are 1x1, 2x2, 2x4"),
        ("jobset.sh", {"accelerator": "tpu-v6-slice"}, None, "there are tpu-v4-podslice tpu-v5-lite-podslice"),
        ("jobset.sh", {"chips_per_host": "8"}, None, "hosts of v6e 4x4 have 4"),
        ("jobset.sh", {"name": "a" * 27}, None, "at most 26"),
        ("jobset.sh", {"coordinator_port": "8471"}, None, "--coordinator-port=8471: "),
        ("jobset.sh", {"coordinator_port": "65536"}, None, "--coordinator-port=65536: "),
        ("jobset.sh", {"image": 'a"b'}, None, '--image=a"b'),
        ("slurm.sh", {"time": "soon"}, None, "--time=soon"),
        ("xpk.sh", {"storage": None}, PLAIN, "every pod has a disk of its own; name the --storage"),
        ("slurm.sh", {"array": "0-3"}, None, "--array=0-3: is of a sweep"),
    ],
)
def test_each_launcher_refuses_what_its_service_would(site, launcher, flags, program, message):
    done = site.run(launcher, program=program, **flags)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert site.lines("calls") == []


def test_the_environment_gives_defaults(site):
    env = {"CLOUDSDK_COMPUTE_ZONE": "eu-west4-a", "CLOUDSDK_CORE_PROJECT": "p1"}
    done = site.run("tpu_vm.sh", "--dry-run", zone=None, env=env)
    assert "--zone=eu-west4-a --project=p1" in done.stdout


@pytest.mark.parametrize(("launcher", "tool"), [("xpk.sh", "xpk"), ("jobset.sh", "kubectl"), ("slurm.sh", "sbatch")])
def test_a_refused_submission_fails(site, launcher, tool):
    site.plan(**{tool: ["forbidden: quota exceeded"]})
    done = site.run(launcher)
    assert done.returncode == 1 and "quota exceeded" in done.stderr


@pytest.mark.skipif(bool(shutil.which("xpk", path="/usr/bin:/bin")), reason="xpk is among the system's own programs")
def test_a_tool_that_is_not_installed_is_named(site):
    done = site.run("xpk.sh", env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 2 and done.stderr == "xpk.sh: xpk is not here: install it, or run this where it is\n"


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="there is no shellcheck")
def test_shellcheck():
    files = [*ROOT.glob("launch/*.sh"), ROOT / "launch/slurm.sbatch"]
    subprocess.run(["shellcheck", "-x", *files], cwd=ROOT, check=True)


# TPU VM

ONCE = ["scp", "ssh", "ssh"]  # send, install, run


def test_tpu_vm_from_nothing_to_complete(site):
    done = site.run("tpu_vm.sh")
    assert done.returncode == 0, done.stderr
    assert "worker 0 ends" in done.stdout and "worker 1 ends" in done.stdout
    assert "PROVISIONING" in done.stderr and "queued-resources delete run1" in done.stderr
    assert site.verbs() == ["create", *ONCE]
    assert len(site.lines("programs")) == stand_in.WORKERS


def test_tpu_vm_starts_the_program_again_after_42(site):
    site.plan(**{"codes-0": [42, 42, 0], "codes-1": [42, 42, 0]})
    done = site.run("tpu_vm.sh", "--delete", program=PLAIN)
    assert done.returncode == 0 and "restart 2 of 20" in done.stderr
    assert site.verbs() == ["create", *ONCE * 3, "delete"]
    assert site.programs() == [["run", "--distributed", *PLAIN]] * 3  # the same idempotent call


@pytest.mark.parametrize("code", [2, 134])
def test_tpu_vm_stops_at_any_other_code(site, code):
    site.plan(**{"codes-1": [code]})  # one of the workers suffices
    done = site.run("tpu_vm.sh")
    assert done.returncode == code
    assert site.verbs() == ["create", *ONCE]


def test_tpu_vm_is_made_anew_after_preemption(site):
    site.plan(connections=["preempt"], **{f"codes-{w}": ["until released", 0] for w in range(2)})
    done = site.run("tpu_vm.sh", "--spot")
    assert done.returncode == 0, done.stderr
    assert "SUSPENDED" in done.stderr and "restart 1 of 20" in done.stderr
    assert site.verbs() == ["create", *ONCE, "delete", "create", *ONCE]
    assert len(site.programs()) == 2


def test_tpu_vm_follows_the_program_after_a_lost_connection(site):
    site.plan(connections=["lost"], **{f"codes-{w}": ["until released"] for w in range(2)})
    process = subprocess.Popen(
        site.command("tpu_vm.sh"), env=site.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    follows = 0  # a worker that has not looked yet when the program ends would rightly start it again
    for line in process.stdout:
        follows += "is running already: this follows it" in line
        if follows == 2:
            break
    (site.cloud / "release").touch()
    rest = process.stdout.read()
    assert process.wait(timeout=30) == 0
    assert "worker 0 ends" in rest and "worker 1 ends" in rest
    assert site.verbs() == ["create", *ONCE, *ONCE]
    assert len(site.programs()) == 1  # never two programs in one work directory


def test_tpu_vm_learns_of_42_when_a_shutdown_stops_the_shell_around_the_program_too(site):
    site.plan(**{f"codes-{w}": ["until released", 0] for w in range(2)})
    process = subprocess.Popen(site.command("tpu_vm.sh"), env=site.env, stdout=subprocess.DEVNULL)
    while len(pids := [file.read_text() for file in site.cloud.glob("pid-*")]) < 2 or not all(pids):
        assert process.poll() is None
        time.sleep(0.02)
    for pid in pids:
        os.killpg(os.getpgid(int(pid)), signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert len(site.programs()) == 2


def test_tpu_vm_tries_again_when_the_workers_do_not_answer(site):
    site.plan(scp=["connection refused"])
    assert site.run("tpu_vm.sh").returncode == 0
    assert site.verbs() == ["create", "scp", *ONCE]


def test_tpu_vm_attaches_to_what_exists(site):
    assert site.run("tpu_vm.sh").returncode == 0
    site.verbs()
    assert site.run("tpu_vm.sh").returncode == 0
    assert site.verbs() == ONCE


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_tpu_vm_replaces_what_cannot_be_used(site, state):
    (site.cloud / "states").write_text(json.dumps([state]))
    assert site.run("tpu_vm.sh").returncode == 0
    assert site.verbs() == ["delete", "create", *ONCE]


def test_tpu_vm_gives_up_after_so_many_recreations(site):
    site.plan(lives=[["ACCEPTED", "FAILED"]] * 9)
    done = site.run("tpu_vm.sh", max_restarts="2")
    assert done.returncode == 42 and "--max-restarts=2 are used up" in done.stderr
    assert site.verbs() == ["create", "delete"] * 3


def test_tpu_vm_gives_up_after_so_many_restarts(site):
    site.plan(**{"codes-0": [42] * 9})
    done = site.run("tpu_vm.sh", max_restarts="1")
    assert done.returncode == 42
    assert site.verbs() == ["create", *ONCE * 2]


def test_tpu_vm_stops_when_the_request_is_refused(site):
    site.plan(create=["Quota limit 'TPUV6EPerProject' has been exceeded"])
    done = site.run("tpu_vm.sh")
    assert done.returncode == 1 and "Quota limit" in done.stderr
    assert site.verbs() == ["create"]


def test_tpu_vm_takes_an_unreadable_state_for_neither_absent_nor_active(site):
    site.plan(describe=["UNAVAILABLE"] * 2)
    assert site.run("tpu_vm.sh").returncode == 0
    assert site.verbs() == ["create", *ONCE]
    site.plan(describe=["UNAVAILABLE"] * 9)
    done = site.run("tpu_vm.sh")
    assert done.returncode == 1 and "cannot be read" in done.stderr
    assert site.verbs() == []


@pytest.mark.parametrize("error", ["PERMISSION_DENIED: tpu.nodes.get", "argument --zone: Bad value [x]: must be one"])
@pytest.mark.parametrize("verb", ["describe", "scp"])
def test_tpu_vm_asks_once_for_what_is_refused_for_good(site, verb, error):
    site.plan(**{verb: [error] * 9})
    done = site.run("tpu_vm.sh")
    assert done.returncode == 2 and error in done.stderr and "see above" in done.stderr
    assert len([call for call in site.lines("calls") if call[0] == "gcloud" and call[4] == verb]) == 1
    assert site.programs() == []


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_config_that_the_machines_would_not_have_is_refused(site, launcher):
    def refused(config):
        done = site.run(launcher, program=[f"--config={config}", "--workdir=gs://bucket/run1"])
        assert done.returncode in (0, 2)
        return done.stderr if done.returncode else ""

    (site.root / "mine.py").touch()
    assert "there is no file configs/nonesuch.py" in refused("configs/nonesuch.py:cpu")
    assert "there is no file distill_jax/configs/nonesuch.py" in refused("nonesuch:cpu")
    assert refused("configs/a b.py:cpu,full") == "" == refused("gs://bucket/mine.py:cpu")
    assert ("the machines get configs distill_jax of this" in refused("mine.py")) == (launcher != "slurm.sh")


@pytest.mark.parametrize(("setup", "code"), [("false; true", 1), ("exit 3", 3)])
def test_tpu_vm_starts_nothing_when_the_setup_fails(site, setup, code):
    done = site.run("tpu_vm.sh", setup=setup)
    assert done.returncode == code and site.verbs() == ["create", "scp", "ssh"]
    assert site.lines("programs") == []


def test_tpu_vm_setup_may_leave_a_daemon_behind(site):
    done = site.run("tpu_vm.sh", setup="setsid sleep 5 >/dev/null 2>&1 </dev/null & echo $! >daemon")
    assert done.returncode == 0 and "running already" not in done.stdout
    assert site.run("tpu_vm.sh").returncode == 0
    assert len(site.programs()) == 2


# XPK


def test_xpk_restarts_on_42_and_passes_its_flags(site):
    assert site.run("xpk.sh", storage="filestore1", num_slices="2", zone="us-east5-b", max_restarts="7").returncode == 0
    _, _, flags = stand_in.parse(site.lines("calls")[0])
    wanted = {"--workload": "run1", "--num-slices": "2", "--storage": "filestore1", "--max-restarts": "7"}
    assert flags.items() >= {**wanted, "--restart-on-exit-codes": "42", "--tpu-type": "v6e-16"}.items()
    assert flags["--command"].startswith("exec distill-jax run --distributed ")


def test_xpk_sigterm_to_the_container_reaches_the_program(site):
    site.plan(terminate=[True], **{"codes-0": ["until released"]})
    assert site.run("xpk.sh").returncode == 0
    assert (site.cloud / "pod").read_text() == "42"


# JobSet


def rendered(site: Site, *switches: str, program: list[str] | None = None, **flags: str) -> dict:
    done = site.run("jobset.sh", *switches, program=program, **flags)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load((site.cloud / "applied").read_text())


def outcome(jobset: dict, code: int) -> str:
    """Return what becomes of the JobSet when a pod leaves with a code, by the published order of the rules."""
    spec = jobset["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    reason = "BackoffLimitExceeded" if job["backoffLimit"] == 0 else ""
    for rule in job["podFailurePolicy"]["rules"]:
        if (code in rule["onExitCodes"]["values"]) == (rule["onExitCodes"]["operator"] == "In"):
            reason = {"FailJob": "PodFailurePolicy"}.get(rule["action"], "")
            break
    for rule in spec["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet" if reason else "the pod alone"


def test_jobset_conforms_and_has_what_was_asked_for(site):
    jobset = rendered(
        site, "--spot", "--gcsfuse", slices="2", topology="4x8", max_restarts="7", grace="90", context="k1"
    )
    pod = check_jobset(jobset)
    assert site.lines("calls") == [["kubectl", "apply", "--namespace=default", "--context=k1", "--filename=-"]]
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "tpu-queue"
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 2 and replicated["template"]["spec"]["completions"] == 8
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert pod["terminationGracePeriodSeconds"] == 90
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert {"containerPort": 8482} in container["ports"]


def test_jobset_starts_again_after_42_and_a_crash_and_fails_at_once_on_2(site):
    jobset = rendered(site)
    assert [outcome(jobset, code) for code in (42, 1, 134, 137)] == ["RestartJobSet"] * 4
    assert outcome(jobset, 2) == "FailJobSet"
    assert jobset["spec"]["failurePolicy"]["restartStrategy"] == "BlockingRecreate"


@pytest.mark.parametrize("name", ["true", "run1"])
def test_jobset_arguments_and_names_survive_yaml_and_kubernetes(site, name):
    jobset = rendered(site, name=name, program=[*AWKWARD, "--config.y=@name@"], coordinator_port="9000")
    pod = check_jobset(jobset)
    assert jobset["metadata"]["name"] == name
    (container,) = pod["containers"]
    given = ["run", "--distributed", "--coordinator_port=9000", *AWKWARD, "--config.y=@name@"]
    assert [stand_in.expand(word) for word in container["args"]] == given
    # Started as Kubernetes does it: the shell raises the limit of locked memory and becomes the program.
    words = [stand_in.expand(word) for word in container["command"] + container["args"]]
    assert words[:2] == ["bash", "-c"] and words[2].startswith("ulimit -l 68719476736 && exec ")
    words[2] = words[2].replace("ulimit -l 68719476736", "true")
    subprocess.run(words, env=site.env, check=True)
    assert site.programs() == [given]


def job(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def container(jobset: dict) -> dict:
    return job(jobset)["template"]["spec"]["containers"][0]


def test_the_schema_and_the_rules_can_refuse(site):
    good = rendered(site)
    for change in (
        lambda s: s["spec"].update(replicas=1),
        lambda s: s["spec"]["failurePolicy"]["rules"][0].update(action="Restart"),
        lambda s: s["spec"]["failurePolicy"].update(maxRestarts="20"),
        lambda s: s["spec"]["coordinator"].update(podIndex=4),
        lambda s: s["metadata"].update(name="Run_1"),
        lambda s: s["metadata"].update(name="a" * 27),
        lambda s: s["metadata"]["labels"].update({"kueue.x-k8s.io/queue-name": "q" * 64}),
        lambda s: job(s).update(parallelism=3),
        lambda s: job(s)["template"]["spec"].update(restartPolicy="OnFailure"),
        lambda s: job(s)["template"]["spec"].update(terminationGracePeriod=30),
        lambda s: container(s)["resources"]["requests"].update({"google.com/tpu": 1}),
        lambda s: container(s)["ports"].append({"containerPort": 8471}),
        lambda s: container(s).update(volumeMounts=[]),
        lambda s: container(s).update(arguments=[]),
    ):
        jobset = copy.deepcopy(good)
        change(jobset)
        with pytest.raises((AssertionError, jsonschema.ValidationError)):
            check_jobset(jobset)


def test_a_bucket_needs_no_claim_but_an_account(site):
    workdir = "--workdir=gs://bucket/run1"
    jobset = rendered(site, claim=None, service_account="distill", program=["--config=configs/c.py", workdir])
    pod = check_jobset(jobset)
    assert pod["volumes"] == pod["containers"][0]["volumeMounts"] == []
    assert pod["serviceAccountName"] == "distill" and pod["containers"][0]["args"][-1] == workdir
    both = check_jobset(rendered(site, program=["--config=configs/c.py", workdir]))  # data may lie on the claim
    assert both["volumes"][0]["persistentVolumeClaim"] == {"claimName": "work"}


@pytest.mark.parametrize(
    ("launcher", "flags"),
    [
        ("tpu_vm.sh", {"accelerator_type": "v5e-8"}),
        ("xpk.sh", {"tpu_type": "v6e-8"}),
        ("jobset.sh", {"topology": "2x2", "claim": None}),
        ("slurm.sh", {"nodes": "1"}),
    ],
)
def test_one_process_works_on_s3_and_has_all_of_its_host(site, launcher, flags):
    done = site.run(launcher, program=S3, **flags)
    assert done.returncode == 0, done.stderr
    calls = site.lines("calls")
    if launcher == "slurm.sh":
        assert site.programs() == [["run", *S3]]
        assert ["environment.sh", "cuda", "s3"] in calls
    elif launcher == "tpu_vm.sh":
        assert any(words[-2:] == ["tpu", "s3"] for words in (shlex.split(call[-1]) for call in calls) if words)


@pytest.mark.parametrize(
    ("launcher", "extras"), [("tpu_vm.sh", ["tpu", "gcs"]), ("slurm.sh", ["cuda", "gcs"]), ("xpk.sh", None)]
)
def test_a_bucket_is_taken_and_what_reads_it_installed(site, launcher, extras):
    program = ["--config=configs/c.py", "--workdir=gs://bucket/run1"]
    assert site.run(launcher, program=program).returncode == 0
    assert site.programs() == [["run", "--distributed", *program]]
    calls = site.lines("calls")
    installed = [call[1:] for call in calls if call[0] == "environment.sh"]
    commands = [call[-1].removeprefix("--command=") for call in calls if call[0] == "gcloud"]
    installed += [shlex.split(command)[5:] for command in commands if "worker.sh install" in command]
    installed = [words for words in installed if words]
    assert installed == ([extras] if extras else [])


# TPU slices, as Google's pages and XPK list them

TYPES = {
    "v4-8": "v4-8",
    "v4-384": "v4-384",
    "v5e-16": "v5litepod-16",
    "v5litepod-256": "v5litepod-256",
    "v5p-8": "v5p-8",
    "v5p-12288": "v5p-12288",
    "v5p-4x4x24": "v5p-4x4x24",
    "v6e-1": "v6e-1",
    "v6e-256": "v6e-256",
    "tpu7x-8": "tpu7x-8",
    "tpu7x-18432": "tpu7x-18432",
}
NO_TYPES = "v4-4 v4-48 v4-8320 v5e-2 v5e-24 v5e-512 v5p-12 v5p-9 v5p-8576 v5p-12416 v6e-12 v6e-4x5 v6e-08 tpu7x-6"
NO_TYPES += " v5p-4x8x4 v5p-4x4x6 v5p-4x4 v6e-2x2x1 v5p-0 v6e-0x4 v6e-x tpu7x-4x4x260"


def common(site: Site, script: str, *words: str) -> str:
    """Run lines of bash with what the launchers share."""
    done = subprocess.run(
        ["bash", "-c", f"source launch/common.sh\n{script}", "it", *words],
        cwd=site.root,
        env=site.env,
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_types_that_exist_are_taken_by_the_names_of_the_services(site):
    script = (
        """for value; do flags[it]=$value; (check_slice it 2>/dev/null && echo "$value $type") || echo "$value"; done"""
    )
    answers = common(site, script, *TYPES, *NO_TYPES.split())
    assert answers.splitlines() == [*map(" ".join, TYPES.items()), *NO_TYPES.split()]


def test_the_launchers_know_what_plan_knows(site):
    script = 'for value; do flags[it]=$value; (check_slice it) || echo "$value"; done'
    script += '; while read -r g t; do find_generation generation $g && has_topology $t || echo "$g $t"; done'
    pairs = "".join(f"{s.generation} {'x'.join(map(str, s.shape))}\n" for s in SLICES.values())
    assert common(site, f"{script} <<<'{pairs.strip()}'", *SLICES) == ""


@pytest.mark.parametrize(
    ("accelerator", "topology", "hosts", "chips"),
    [
        ("tpu-v5-lite-podslice", "1x1", 1, 1),
        ("tpu-v5-lite-podslice", "2x4", 2, 4),
        ("tpu-v6e-slice", "16x16", 64, 4),
        ("tpu-v5p-slice", "2x2x1", 1, 4),
        ("tpu-v4-podslice", "4x4x8", 32, 4),
        ("tpu7x", "4x4x24", 96, 4),
    ],
)
def test_jobset_asks_for_each_hosts_chips(site, accelerator, topology, hosts, chips):
    jobset = rendered(site, accelerator=accelerator, topology=topology)
    check_jobset(jobset)
    assert job(jobset)["completions"] == hosts
    assert container(jobset)["resources"]["limits"] == {"google.com/tpu": chips}


def test_jobset_takes_the_large_host_of_eight_chips(site):
    jobset = rendered(site, topology="2x4", chips_per_host="8")
    assert job(jobset)["completions"] == 1 and container(jobset)["resources"]["limits"] == {"google.com/tpu": 8}


# Slurm


def test_slurm_submits_one_process_a_gpu(site):
    flags = {
        "nodes": "2",
        "gpus_per_node": "3",
        "time": "1-12:00:00",
        "partition": "gpu",
        "account": "a1",
        "qos": "high",
    }
    assert site.run("slurm.sh", program=AWKWARD, **flags).returncode == 0
    environment, submission, *_ = site.lines("calls")
    assert environment == ["environment.sh", "cuda"]
    _, _, given = stand_in.parse(submission)
    assert given["--ntasks-per-node"] == given["--gpus-per-node"] == "3" and given["--chdir"] == str(site.root)
    assert {words[0] for words in site.lines("programs")} == {str(rank) for rank in range(6)}


def test_slurm_batch_file_asks_for_the_signal_and_to_be_requeued():
    text = (ROOT / "launch/slurm.sbatch").read_text()
    lines = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    assert {"--requeue", "--signal=SIGTERM@120", "--open-mode=append"} <= set(lines)
    assert len(lines) == len(re.findall("#SBATCH", text))  # Slurm reads them only at the beginning of a line
    first_command = re.search(r"^[^#\n]", text, re.MULTILINE)
    assert first_command and text.rindex("#SBATCH") < first_command.start()  # and only before the first command


@pytest.mark.parametrize("event", ["signal to the step", "signal to the batch shell"])
def test_slurm_requeues_what_was_stopped_and_saved(site, event):
    site.plan(events=[event], **{f"codes-{rank}": ["until released", 0] for rank in range(2)})
    assert site.run("slurm.sh", program=PLAIN).returncode == 0
    assert (site.cloud / "job").read_text() == "0"
    calls = [call[:2] for call in site.lines("calls")]
    assert calls.count(["scontrol", "requeue"]) == 1
    assert calls.count(["scancel", "--signal=TERM"]) == (event == "signal to the batch shell")
    assert site.programs() == [["run", "--distributed", *PLAIN]] * 2


def test_slurm_lets_the_others_save_when_one_has_left_with_42(site):
    site.plan(**{"codes-0": [42], "codes-1": ["until released"]})
    process = subprocess.Popen(site.command("slurm.sh", max_restarts="0"), env=site.env, stderr=subprocess.DEVNULL)
    while not (site.cloud / "pid-1").exists() or (site.cloud / "pid-0").exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)  # in which process 1 would have been killed, and the code would be 137
    (site.cloud / "release").touch()
    process.wait(timeout=30)
    assert (site.cloud / "job").read_text() == "42"


@pytest.mark.parametrize("code", [2, 137])
def test_slurm_fails_on_any_other_code(site, code):
    site.plan(**{"codes-1": [code]})
    site.run("slurm.sh")
    assert (site.cloud / "job").read_text() == str(code)
    assert ["scontrol", "requeue", "7"] not in site.lines("calls")


def test_slurm_leaves_a_cancelled_job_cancelled(site):
    site.plan(events=["cancel"], **{f"codes-{rank}": ["until released"] for rank in range(2)})
    site.run("slurm.sh")
    assert (site.cloud / "job").read_text() == "42"
    assert ["scontrol", "requeue", "7"] not in site.lines("calls")


def test_slurm_gives_up_after_so_many_restarts(site):
    site.plan(**{"codes-0": [42] * 9})
    site.run("slurm.sh", max_restarts="2")
    assert (site.cloud / "job").read_text() == "42"
    assert site.lines("calls").count(["scontrol", "requeue", "7"]) == 2


def test_slurm_submits_nothing_without_an_environment(site):
    done = site.run("slurm.sh", env={"NO_ENVIRONMENT": "1"})
    assert done.returncode == 1
    assert [call[0] for call in site.lines("calls")] == ["environment.sh"]


# The image


def instructions() -> list[list[str]]:
    text = (ROOT / "launch/Containerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "")
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]


def test_the_image_runs_the_program_and_not_as_root():
    lines = instructions()
    assert lines[0] == ["FROM", "python:3.11-slim"]
    assert lines[-1] == ["ENTRYPOINT", '["distill-jax"]']  # no shell in between that would keep SIGTERM
    assert [what for word, what in lines if word == "USER"] == ["$UID"] and ["ARG", "UID=1000"] in lines
    for sources in (what.split()[:-1] for word, what in lines if word == "COPY"):
        assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize(
    ("extra", "package"), [("tpu", ".[tpu,gcs,s3]"), ("cuda", ".[cuda,gcs,s3]"), ("none", ".[gcs,s3]"), ("gpu", None)]
)
def test_the_image_installs_the_extra_with_the_constraints(tmp_path, extra, package):
    (tmp_path / "pip").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    (install,) = [what for word, what in instructions() if word == "RUN" and "pip install" in what]
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "EXTRA": extra}
    done = subprocess.run(["sh", "-c", install], env=env, capture_output=True, text=True)
    if package is None:
        assert done.returncode == 2 and "tpu, cuda and none" in done.stderr
    else:
        assert done.stdout.split() == ["install", "--no-cache-dir", package, "--constraint=constraints.txt"]
