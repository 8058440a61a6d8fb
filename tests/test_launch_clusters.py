"""The launchers for clusters, run for real against stand-ins for the clusters' tools (tests/stand_in.py)."""

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

import pytest
import stand_in
import yaml

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

FLAGS = {
    "tpu_vm.sh": {
        "name": "run1",
        "zone": "us-east5-b",
        "accelerator-type": "v6e-16",
        "runtime-version": "v2-alpha-tpuv6e",
        "poll": "0",
    },
    "xpk.sh": {"name": "run1", "cluster": "c1", "tpu-type": "v6e-16", "image": "repo/distill:1"},
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
        for name in ("distill_jax", "configs"):
            (self.root / name).mkdir()
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
        ([], None, {"name": "a" * 40}, "at most 39"),
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
        ("tpu_vm.sh", {"spot": "yes"}, None, "--spot is a switch"),
        ("tpu_vm.sh", {}, ["--config=c.py", "--workdir=gs://bucket/x"], "must be an absolute path"),
        ("xpk.sh", {}, ["--config=c.py", "--workdir=runs/x"], "must be an absolute path"),
        ("xpk.sh", {"cluster": None}, None, "--cluster is missing"),
        ("jobset.sh", {}, ["--config=c.py", "--workdir=/elsewhere/x"], "is not under --mount=/mnt/shared"),
        ("jobset.sh", {"topology": "2x3"}, None, "6 chips; --chips-per-host=4 does not divide them"),
        ("jobset.sh", {"image": 'a"b'}, None, '--image=a"b'),
        ("slurm.sh", {"time": "soon"}, None, "--time=soon"),
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
    for line in process.stdout:
        if "is running already: this follows it" in line:
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
    site.plan(describe=["PERMISSION_DENIED"] * 9)
    done = site.run("tpu_vm.sh")
    assert done.returncode == 1 and "cannot be read" in done.stderr
    assert site.verbs() == []


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


# JobSet: the part of the published schema that is used, and unknown keys refused. A ? marks what may be missing.

LABEL, QUANTITY = r"[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?", int
DNS = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
POD = {
    "restartPolicy": {"Never", "OnFailure"},
    "terminationGracePeriodSeconds": int,
    "nodeSelector": {
        "cloud.google.com/gke-tpu-accelerator": LABEL,
        "cloud.google.com/gke-tpu-topology": r"\d+x\d+(x\d+)?",
        "cloud.google.com/gke-spot?": "true",
    },
    "containers": [
        {
            "name": DNS,
            "image": r"\S+",
            "securityContext": {"runAsUser": int, "capabilities": {"add": ["SYS_RESOURCE"]}},
            "command": [str],
            "args": [str],
            "ports": [{"containerPort": int}],
            "resources": {"requests": {"google.com/tpu": QUANTITY}, "limits": {"google.com/tpu": QUANTITY}},
            "volumeMounts": [{"name": DNS, "mountPath": "/.*"}],
        }
    ],
    "volumes": [{"name": DNS, "persistentVolumeClaim": {"claimName": r"[a-z0-9][-.a-z0-9]*"}}],
}
JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": {"Indexed", "NonIndexed"},
    "backoffLimit": int,
    "podFailurePolicy": {
        "rules": [
            {
                "action": {"FailJob", "FailIndex", "Ignore", "Count"},
                "onExitCodes": {"containerName?": DNS, "operator": {"In", "NotIn"}, "values": [int]},
            }
        ]
    },
    "template": {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true|false"}}, "spec": POD},
}
JOBSET = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"},
    "kind": {"JobSet"},
    "metadata": {
        "name": DNS,
        "labels": {"kueue.x-k8s.io/queue-name": LABEL},
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
    },
    "spec": {
        "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool, "subdomain?": DNS},
        "coordinator": {"replicatedJob": DNS, "jobIndex": int, "podIndex": int},
        "failurePolicy": {
            "maxRestarts": int,
            "restartStrategy?": {"Recreate", "BlockingRecreate", "InPlaceRestart"},
            "rules": [
                {
                    "name": r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
                    "action": {
                        "FailJobSet",
                        "RestartJobSet",
                        "RestartJobSetAndIgnoreMaxRestarts",
                        "RestartJob",
                        "RestartJobAndIgnoreMaxRestarts",
                    },
                    "onJobFailureReasons": [
                        "BackoffLimitExceeded|DeadlineExceeded|FailedIndexes|MaxFailedIndexesExceeded|PodFailurePolicy"
                    ],
                    "targetReplicatedJobs?": [DNS],
                }
            ],
        },
        "replicatedJobs": [{"name": DNS, "replicas": int, "template": {"spec": JOB}}],
    },
}


def conform(value: Any, schema: Any, where: str = "") -> None:
    if isinstance(schema, dict):
        assert type(value) is dict, where
        known = {key.rstrip("?"): (key, part) for key, part in schema.items()}
        assert value.keys() <= known.keys(), f"{where}: unknown {value.keys() - known.keys()}"
        for name, (key, part) in known.items():
            assert name in value or key.endswith("?"), f"{where}.{name} is missing"
            if name in value:
                conform(value[name], part, f"{where}.{name}")
    elif isinstance(schema, list):
        assert type(value) is list and value, where
        for i, item in enumerate(value):
            conform(item, schema[0], f"{where}[{i}]")
    elif isinstance(schema, type):
        assert type(value) is schema, f"{where}: {value!r}"
        assert schema is not int or value >= 0, f"{where}: {value!r}"
    elif isinstance(schema, set):
        assert value in schema, f"{where}: {value!r}"
    else:
        assert type(value) is str and re.fullmatch(schema, value), f"{where}: {value!r}"


def check_jobset(jobset: dict) -> dict:
    """Hold a JobSet against the schema and the rules between its fields, and return its pod."""
    conform(jobset, JOBSET)
    spec = jobset["spec"]
    (replicated,) = spec["replicatedJobs"]
    job, names = replicated["template"]["spec"], {replicated["name"]}
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["coordinator"]["replicatedJob"] in names
    assert job["parallelism"] == job["completions"] >= 1 and replicated["replicas"] >= 1
    longest = f"{jobset['metadata']['name']}-{replicated['name']}-{replicated['replicas']}-{job['completions']}-abcde"
    assert len(longest) <= 63
    assert pod["restartPolicy"] == "Never"  # onExitCodes asks for it
    assert all(rule["onExitCodes"]["containerName"] == container["name"] for rule in job["podFailurePolicy"]["rules"])
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {v["name"] for v in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    return pod


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


def test_the_schema_can_refuse(site):
    for change in (
        lambda s: s["spec"].update(replicas=1),
        lambda s: s["spec"]["failurePolicy"]["rules"][0].update(action="Restart"),
        lambda s: s["spec"]["replicatedJobs"][0]["template"]["spec"].update(parallelism=3),
        lambda s: s["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"].update(
            restartPolicy="OnFailure"
        ),
        lambda s: s["metadata"].update(name="Run_1"),
    ):
        jobset = rendered(site)
        change(jobset)
        with pytest.raises(AssertionError):
            check_jobset(jobset)


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


@pytest.mark.parametrize(("extra", "package"), [("tpu", ".[tpu]"), ("cuda", ".[cuda]"), ("none", "."), ("gpu", None)])
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
