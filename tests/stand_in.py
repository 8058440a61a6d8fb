"""Stand-ins for the clusters' tools, imported by small scripts first on PATH that have the tools' names.

They refuse what the tools refuse (unknown, missing and malformed flags: exit code 2), record their calls, and keep a
little cloud in the directory $CLOUD: `script.json` says what goes wrong and when, the rest is its state.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CLOUD = Path(os.environ.get("CLOUD", "."))
WORKERS = 2

NAME, NUMBER, ANY, ZONE = r"[a-z]([-a-z0-9]*[a-z0-9])?", r"\d+", r"(?s:.+)", r"[a-z]+-[a-z]+\d+-[a-z]"
REGION, BUCKET, ACCOUNT = r"[a-z]+-[a-z]+\d+", r"gs://[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]", r"[^@\s:]+@[^@\s:]+"
MEMBER = rf"serviceAccount:{ACCOUNT}|principal://iam\.googleapis\.com/projects/\d+/locations/global/" + (
    r"workloadIdentityPools/[-a-z0-9]+\.svc\.id\.goog/subject/ns/[-a-z0-9]+/sa/[-a-z0-9]+"
)
IMAGE = r"[a-z0-9][-._a-z0-9/]*:[-._a-zA-Z0-9]+"
# XPK 1.13: names of src/xpk/parser/validators.py, flags of parser/workload.py, types of core/system_characteristics.py.
XPK_NAME = r"(?=.{1,40}$)" + NAME
XPK_TYPE = r"v5litepod-(8|16|32|64|128|256)|v6e-(1|4|8|16|32|64|128|256)|(v4|v5p|tpu7x)-\d+(x\d+x\d+)?"
WHERE = {"--zone!": ZONE, "--project": NAME}

# Command: (arguments, flags). A flag with ! must be there, one without a pattern takes no value.
COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "gcloud compute tpus queued-resources describe": ([NAME], {**WHERE, "--format!": r"value\(state\.state\)"}),
    "gcloud compute tpus queued-resources create": (
        [NAME],
        {
            **WHERE,
            "--node-id!": NAME,
            "--accelerator-type!": r"(v4|v5litepod|v5p|v6e)-\d+",
            "--runtime-version!": r"[-.a-z0-9]+",
            "--service-account": r"[^@\s]+@[^@\s]+",
            "--scopes": r"[-.,a-z]+",
            "--spot": "",
        },
    ),
    "gcloud compute tpus queued-resources delete": ([NAME], {**WHERE, "--force!": "", "--quiet!": ""}),
    "gcloud compute tpus tpu-vm scp": ([ANY, ANY, NAME + ":"], {**WHERE, "--worker!": "all"}),
    "gcloud compute tpus tpu-vm ssh": ([NAME], {**WHERE, "--worker!": r"all|\d+", "--command!": ANY}),
    # What docs/launching.md has besides: named and shaped as in gcloud's, XPK's, Docker's and kubectl's own references.
    "gcloud auth login": ([], {}),
    "gcloud auth application-default login": ([], {}),
    "gcloud auth configure-docker": ([r"[a-z0-9-]+-docker\.pkg\.dev"], {"--quiet": ""}),
    "gcloud config set": (["project", NAME], {}),
    "gcloud projects describe": ([NAME], {"--format!": r"value\(projectNumber\)"}),
    "gcloud services enable": ([r"[a-z]+\.googleapis\.com"] * 4, {}),
    "gcloud services enable container.googleapis.com": ([r"[a-z]+\.googleapis\.com"], {}),
    "gcloud storage buckets create": ([BUCKET], {"--location!": REGION, "--uniform-bucket-level-access": ""}),
    "gcloud storage buckets add-iam-policy-binding": ([BUCKET], {"--member!": MEMBER, "--role!": r"roles/[a-zA-Z.]+"}),
    "gcloud storage cp": ([BUCKET + "/.+", BUCKET + "/.+", r"\."], {}),
    "gcloud storage rm": ([BUCKET], {"--recursive!": ""}),
    "gcloud iam service-accounts create": ([r"[a-z][-a-z0-9]{4,28}[a-z0-9]"], {"--display-name": ANY}),
    "gcloud iam service-accounts delete": ([ACCOUNT], {"--quiet!": ""}),
    "gcloud compute tpus accelerator-types list": ([], {**WHERE}),
    "gcloud artifacts repositories create": ([NAME], {"--repository-format!": "docker", "--location!": REGION}),
    "gcloud artifacts repositories delete": ([NAME], {"--location!": REGION, "--quiet!": ""}),
    "gcloud container clusters get-credentials": ([NAME], {"--location!": REGION}),
    "docker build": ([r"\."], {"--file!": r"\S+", "--build-arg!": r"(EXTRA|UID)=\w+", "--tag!": IMAGE}),
    "docker push": ([IMAGE], {}),
    "xpk cluster create": (
        [],
        {
            "--cluster!": XPK_NAME,
            "--tpu-type!": XPK_TYPE,
            "--num-slices": NUMBER,
            "--spot": "",
            "--enable-workload-identity": "",
            "--zone": ZONE,
            "--project": NAME,
        },
    ),
    "xpk cluster delete": ([], {"--cluster!": XPK_NAME, "--zone": ZONE, "--project": NAME, "--force": ""}),
    "xpk workload list": ([], {"--cluster!": XPK_NAME, "--zone": ZONE, "--project": NAME}),
    "xpk workload delete": ([], {"--workload!": XPK_NAME, "--cluster!": XPK_NAME, "--zone": ZONE, "--project": NAME}),
    "kubectl get": (["jobset", NAME], {}),
    "kubectl logs": (
        [],
        {"--selector!": r"jobset\.sigs\.k8s\.io/jobset-name=" + NAME, "--prefix": "", "--tail": NUMBER},
    ),
    "kubectl delete": (["jobset", NAME], {}),
    "xpk workload create": (
        [],
        {
            "--workload!": XPK_NAME,
            "--cluster!": XPK_NAME,
            "--zone": ZONE,
            "--project": NAME,
            "--tpu-type!": XPK_TYPE,
            "--num-slices": NUMBER,
            "--docker-image!": r"\S+",
            "--storage": NAME,
            "--max-restarts!": NUMBER,
            "--restart-on-exit-codes!": r"\d+(,\d+)*",
            "--termination-grace-period-seconds!": NUMBER,
            "--command!": ANY,
        },
    ),
    "kubectl apply": ([], {"--namespace!": NAME, "--context": NAME, "--filename!": "-"}),
    "sbatch": (
        [],
        {
            "--job-name!": NAME,
            "--chdir!": "/.+",
            "--nodes!": NUMBER,
            "--ntasks-per-node!": NUMBER,
            "--gpus-per-node!": NUMBER,
            "--cpus-per-task": NUMBER,
            "--time": r"[-:\d]+",
            "--partition": NAME,
            "--account": NAME,
            "--qos": NAME,
            "--array": r"\d+(-\d+)?(,\d+(-\d+)?)*(%\d+)?",
            "--dependency": r"afterok(:\d+)+",
        },
    ),
    "srun": ([], {"--kill-on-bad-exit": "[01]"}),
    "scancel": ([NUMBER], {"--signal!": "TERM"}),
    "scontrol": (["show", "job", NUMBER], {"--oneliner!": ""}),
    "scontrol requeue": ([NUMBER], {}),
}
WITH_A_COMMAND = ("sbatch", "srun")  # their flags end where the command begins
SBATCH_LINES = {
    "--requeue": "",
    "--signal": r"([BR]+:)?SIG[A-Z]+@\d+",
    "--open-mode": "append|truncate",
    "--output": ANY,
}


def parse(argv: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """Return (command, arguments, flags), or leave with 2 and what is wrong."""
    command = max((c for c in COMMANDS if argv[: len(c.split())] == c.split()), key=len, default="")
    if not command:
        sys.exit(refuse(f"unknown command {argv}"))
    patterns, known = COMMANDS[command]
    known = {flag.rstrip("!"): (pattern, flag.endswith("!")) for flag, pattern in known.items()}
    rest, arguments, flags = argv[len(command.split()) :], [], {}
    for i, word in enumerate(rest):
        flag, has_value, value = word.partition("=")
        if not word.startswith("--"):
            if command in WITH_A_COMMAND:
                arguments = rest[i:]
                break
            arguments.append(word)
        elif flag not in known or (flag in flags and flag != "--build-arg"):
            sys.exit(refuse(f"{command}: unknown or repeated {flag}"))
        elif bool(has_value) != bool(known[flag][0]) or not re.fullmatch(known[flag][0], value):
            sys.exit(refuse(f"{command}: bad value {word}"))
        else:
            flags[flag] = value
    if missing := [flag for flag, (_, required) in known.items() if required and flag not in flags]:
        sys.exit(refuse(f"{command}: missing {missing}"))
    if command not in WITH_A_COMMAND and (
        len(arguments) != len(patterns) or not all(map(re.fullmatch, patterns, arguments))
    ):
        sys.exit(refuse(f"{command}: bad arguments {arguments}"))
    return command, arguments, flags


def refuse(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def record(file: str, words: list[str]) -> None:
    with (CLOUD / file).open("a") as f:
        f.write(json.dumps(words) + "\n")


@contextlib.contextmanager
def script() -> Iterator[dict]:
    """Yield what is yet to happen; what is taken out of it has happened."""
    with (CLOUD / "script.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan = json.loads((CLOUD / "script.json").read_text())
        yield plan
        # Whoever is killed in the middle leaves the old one whole.
        new = CLOUD / f"script-{os.getpid()}"
        new.write_text(json.dumps(plan))
        new.replace(CLOUD / "script.json")


def take(key: str, default=None):
    with script() as plan:
        return plan[key].pop(0) if plan.get(key) else default


# The cloud: `states` holds what the next looks at the queued resource see; the last stays.


def states(new: list[str] | None = None) -> list[str]:
    file = CLOUD / "states"
    if new is not None:
        file.write_text(json.dumps(new))
    return json.loads(file.read_text()) if file.exists() else []


def gcloud(command: str, arguments: list[str], flags: dict[str, str]) -> int:
    if not command.startswith(("gcloud compute tpus queued-resources", "gcloud compute tpus tpu-vm")):
        print("123456789012" if "projects describe" in command else "")
        return 0
    verb, life = command.split()[-1], states()
    if error := take(verb):
        print(f"ERROR: (gcloud) {error}", file=sys.stderr)
        return 1
    if verb == "create":
        if life:
            return refuse("ALREADY_EXISTS") and 1
        states(take("lives", ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]))
    elif not life:
        print("ERROR: (gcloud) NOT_FOUND: Resource was not found", file=sys.stderr)
        return 1
    elif verb == "describe":
        print(life[0])
        states(life[1:] or life)
    elif verb == "delete":
        import shutil  # slow to import, and most calls do without

        (CLOUD / "states").unlink()
        for home in CLOUD.glob("worker-*"):
            shutil.rmtree(home)
    elif life[0] != "ACTIVE":
        return 255 if verb == "ssh" else 1
    elif verb == "scp":
        import shutil

        for worker in range(WORKERS):
            home = CLOUD / f"worker-{worker}"
            home.mkdir(exist_ok=True)
            for file in arguments[:-1]:
                shutil.copy(file, home)
    else:
        return ssh(flags["--command"], flags["--worker"])
    return 0


def ssh(command: str, which: str) -> int:
    """Run a command on all workers or one, as sshd does: by the login shell, in the home directory."""
    path = f"{CLOUD}/worker-bin:{os.environ['WORKER_PATH']}"
    workers = [
        subprocess.Popen(
            ["bash", "-c", command],
            cwd=(home := CLOUD / f"worker-{worker}"),
            env={"HOME": str(home), "PATH": path, "CLOUD": str(CLOUD), "WORKER": str(worker)},
            start_new_session=True,
        )
        for worker in (range(WORKERS) if which == "all" else [int(which)])
    ]
    event = take("connections") if " run " in command else None
    if event:
        wait_for_programs(WORKERS)
        for process in workers:  # the connection ends; what was put into a session of its own lives on
            os.killpg(process.pid, signal.SIGKILL)
        if event == "preempt":
            stop_programs(signal.SIGKILL)
            states(["ACTIVE", "SUSPENDING", "SUSPENDED"])  # the state is late
        return 255
    return next(filter(None, [process.wait() for process in workers]), 0)


def program(arguments: list[str]) -> int:
    """Stand in for distill-jax: leave with the next code of the script, or run until told otherwise."""
    worker = os.environ.get("WORKER", os.environ.get("SLURM_PROCID", "0"))

    def stop(*_):
        time.sleep(0.3)  # saving
        os._exit(42)

    signal.signal(signal.SIGTERM, stop)
    (CLOUD / f"pid-{worker}").write_text(str(os.getpid()))
    record("programs", [worker, *arguments])
    print(f"worker {worker} begins", flush=True)
    code = take(f"codes-{worker}", 0)
    deadline = time.monotonic() + 20
    while code == "until released" and not (CLOUD / "release").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    (CLOUD / f"pid-{worker}").unlink(missing_ok=True)
    print(f"worker {worker} ends", flush=True)
    return 0 if code == "until released" else code


def wait_for_programs(number: int) -> None:
    deadline = time.monotonic() + 20
    while len(list(CLOUD.glob("pid-*"))) < number and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.05)


def stop_programs(signum: int) -> None:
    for file in CLOUD.glob("pid-*"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(int(file.read_text()), signum)
        if signum == signal.SIGKILL:
            file.unlink()


def expand(text: str) -> str:
    """Substitute as Kubernetes does in a container's command and args, before any shell."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda m: "$" if m[0] == "$$" else f"<variable {m[1]}>", text)


def xpk(command: str, arguments: list[str], flags: dict[str, str]) -> int:
    """Run the command as XPK's container does, and what SIGTERM to that container does if the script says so."""
    if command != "xpk workload create":
        return 0
    if error := take("xpk"):
        return refuse(error) and 1
    text = f"""trap 'kill -SIGTERM $! 2>/dev/null' SIGTERM
({expand(flags["--command"])}) & PID=$!
while kill -0 $PID 2>/dev/null; do sleep 0.1; done
wait $PID"""
    pod = subprocess.Popen(["bash", "-c", text])
    if take("terminate"):
        wait_for_programs(1)
        pod.terminate()
    (CLOUD / "pod").write_text(str(pod.wait()))
    return 0


def docker(command: str, arguments: list[str], flags: dict[str, str]) -> int:
    return 0


def kubectl(command: str, arguments: list[str], flags: dict[str, str]) -> int:
    if command != "kubectl apply":
        return 0
    if error := take("kubectl"):
        return refuse(error) and 1
    (CLOUD / "applied").write_text(sys.stdin.read())
    return 0


def sbatch(command: str, arguments: list[str], flags: dict[str, str]) -> int:
    """Submit, and at once run the job until it is not requeued any more."""
    if error := take("sbatch"):
        return refuse(error) and 1
    import shutil

    tasks = int(flags["--nodes"]) * int(flags["--ntasks-per-node"])
    lines = [line.split()[1:] for line in Path(arguments[0]).read_text().splitlines() if line.startswith("#SBATCH")]
    for flag, _, value in (words[0].partition("=") for words in lines if len(words) == 1 or sys.exit(2)):
        if flag not in SBATCH_LINES or not re.fullmatch(SBATCH_LINES[flag], value):
            return refuse(f"#SBATCH {flag}={value}")
    spooled = shutil.copy(arguments[0], CLOUD / "slurm_script")  # Slurm runs a copy
    wanted = flags.get("--dependency", "afterok").split(":")[1:]
    ended = json.loads((CLOUD / "ended").read_text()) if (CLOUD / "ended").exists() else {}
    if not ended.keys() >= set(wanted):
        return refuse("Job dependency problem") and 1
    job, codes = str(len(ended) + 7), []
    never = any(ended[before] for before in wanted)  # it stays in the queue, for the reason DependencyNeverSatisfied
    for index in [] if never else elements(flags["--array"]) if "--array" in flags else [None]:
        task = {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_JOB_ID": job} if index is not None else {}
        codes.append(run_job(["bash", spooled, *arguments[1:]], flags["--chdir"], tasks, {"SLURM_JOB_ID": "7", **task}))
    (CLOUD / "ended").write_text(json.dumps({**ended, job: 1 if never else max(codes)}))
    print(f"Submitted batch job {job}")
    return 0


def elements(array: str) -> list[int]:
    """Return the numbers of a job array."""
    numbers: list[int] = []
    for part in array.partition("%")[0].split(","):
        low, _, high = part.partition("-")
        numbers += range(int(low), int(high or low) + 1)
    return numbers


def run_job(command: list[str], directory: str, tasks: int, variables: dict[str, str]) -> int:
    """Run a job, and again as often as it is put back into the queue; return its last exit code."""
    for restarts in range(10):
        (CLOUD / "job-state").write_text("RUNNING")
        environment = {**variables, "SLURM_NTASKS": str(tasks), "SLURM_RESTART_COUNT": str(restarts)}
        if not restarts:
            del environment["SLURM_RESTART_COUNT"]
        job = subprocess.Popen(command, cwd=directory, env={**os.environ, **environment})
        if event := take("events"):
            wait_for_programs(tasks)
            if event == "cancel":
                (CLOUD / "job-state").write_text("CANCELLED")
            if event == "signal to the batch shell":
                job.terminate()
            else:
                stop_programs(signal.SIGTERM)
        (CLOUD / "job").write_text(str(job.wait()))
        if not (CLOUD / "requeued").exists():
            break
        (CLOUD / "requeued").unlink()
    return int((CLOUD / "job").read_text())


def srun(command: str, arguments: list[str], flags: dict[str, str]) -> int:
    """Run the tasks. SIGTERM to srun kills them, as it does in Slurm; so does one bad exit, unless forbidden."""
    tasks = [
        subprocess.Popen(arguments, env={**os.environ, "SLURM_PROCID": str(rank)})
        for rank in range(int(os.environ["SLURM_NTASKS"]))
    ]

    def kill(*_):
        for task in tasks:
            task.kill()

    signal.signal(signal.SIGTERM, kill)
    while any(task.poll() is None for task in tasks):
        if flags.get("--kill-on-bad-exit") != "0" and any(task.poll() for task in tasks):
            kill()
        time.sleep(0.02)
    for file in CLOUD.glob("pid-*"):
        file.unlink()
    return max(128 - code if (code := task.wait()) < 0 else code for task in tasks)


def scancel(command: str, arguments: list[str], flags: dict[str, str]) -> int:
    stop_programs(signal.SIGTERM)
    return 0


def scontrol(command: str, arguments: list[str], flags: dict[str, str]) -> int:
    if command == "scontrol requeue":
        (CLOUD / "requeued").touch()
    else:
        print(f"JobId=7 JobName=run1 JobState={(CLOUD / 'job-state').read_text()} Reason=None Requeue=1")
    return 0


def main() -> int:
    tool, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    if tool == "distill-jax":
        return program(arguments)
    record("calls", [tool, *arguments])
    command, words, flags = parse([tool, *arguments])
    return globals()[tool](command, words, flags)
