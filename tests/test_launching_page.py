"""Every command of docs/launching.md, run in its order against stand-ins that refuse what the tools refuse."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import stand_in
import yaml
from test_launch_clusters import STAND_IN, Site

from distill_jax.commands import COMMANDS, module_name
from distill_jax.experiment import forecast
from distill_jax.main import main
from tests.jobset_rules import check_jobset

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/launching.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
WORKDIR = "--workdir=gs://my-project-distill/run1"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    """The site after the whole page."""
    site = Site(tmp_path_factory.mktemp("page"))
    tools = site.root.parent / "bin"
    site.tool(tools / "docker", STAND_IN)
    for name in ("sleep", "distill-jax"):  # nobody waits here; the program's own flags are held below
        site.tool(tools / name, "#!/bin/sh\n" if name == "sleep" else (tools / name).read_text())
    script = "set -euo pipefail\n" + "\n".join(text for language, text in BLOCKS if language == "bash")
    done = subprocess.run(
        ["bash", "-c", script], cwd=site.root, env=site.env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(scope="module")
def calls(site) -> list[tuple[str, list[str], dict[str, str]]]:
    """What the tools were asked for; each call was taken."""
    ours = ("environment.sh", "tar", "mkdir", "srun", "scontrol")
    return [stand_in.parse(call) for call in site.lines("calls") if call[0] not in ours]


@pytest.fixture(scope="module")
def runs(site) -> list[list[str]]:
    """The arguments of every run that was started."""
    return [words for words in site.programs() if words[0] == "run"]


def test_every_block_is_run_or_plainly_no_command():
    assert {language for language, _ in BLOCKS} == {"bash", "text"}
    assert all("…" in line for language, text in BLOCKS if language == "text" for line in text.splitlines())
    assert sum(language == "bash" for language, _ in BLOCKS) >= 10


def test_the_page_makes_what_it_needs_and_deletes_what_it_made(calls):
    commands = [command for command, _, _ in calls]
    for made, deleted in [
        ("gcloud storage buckets create", "gcloud storage rm"),
        ("gcloud iam service-accounts create", "gcloud iam service-accounts delete"),
        ("gcloud compute tpus queued-resources create", "gcloud compute tpus queued-resources delete"),
        ("gcloud artifacts repositories create", "gcloud artifacts repositories delete"),
        ("xpk cluster create", "xpk cluster delete"),
        ("xpk workload create", "xpk workload delete"),
        ("kubectl apply", "kubectl delete"),
    ]:
        assert commands.count(made) == commands.count(deleted) == 1 and commands.index(made) < commands.index(deleted)
    assert commands[-1].startswith("gcloud iam")


def test_the_page_runs_on_v5e_16_with_the_bucket(runs, calls):
    create = next(flags for command, _, flags in calls if command.endswith("queued-resources create"))
    assert create["--accelerator-type"] == "v5litepod-16" and create["--runtime-version"] == "v2-alpha-tpuv5-lite"
    account = create["--service-account"]
    members = [flags["--member"] for command, _, flags in calls if command.endswith("add-iam-policy-binding")]
    assert f"serviceAccount:{account}" in members and len(members) == 2
    assert all(words[1] == "--distributed" for words in runs)
    assert [words[-1] for words in runs] == [WORKDIR, WORKDIR, "--workdir=runs/run1"]  # TPU VM, XPK, Slurm


def test_the_program_takes_what_the_page_and_the_launchers_start(runs, tmp_path, monkeypatch, capsys):
    """Nothing that the program would miss on a machine that was waited for, such as a text that nobody named."""
    monkeypatch.setattr(forecast, "_speed", lambda dtype: 1e12)
    monkeypatch.chdir(ROOT)
    line = ["bash", "launch/slurm.sh", "--name=run1", "--dry-run"]
    default = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[1]
    configs = {tuple(word for word in words if word.startswith("--config")) for words in (*runs, shlex.split(default))}
    assert len(runs) >= 3 and all(configs)
    for words in configs:
        assert main(["distill-jax", "run", *words, f"--workdir={tmp_path}/run", "--dry-run"]) == 0, capsys.readouterr()


def test_the_pages_jobset_is_two_slices(site):
    jobset = yaml.safe_load((site.cloud / "applied").read_text())
    pod = check_jobset(jobset)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 2 and replicated["template"]["spec"]["completions"] == 4
    assert pod["volumes"] == [] and WORKDIR in pod["containers"][0]["args"]


def program_lines() -> list[list[str]]:
    lines = "\n".join(text for _, text in BLOCKS).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("distill-jax ")]


@pytest.mark.parametrize("words", program_lines(), ids=" ".join)
def test_the_programs_flags_are_its_own(words):
    command = words[1]
    assert command in COMMANDS
    known = importlib.import_module(module_name(command)).usage([])
    for word in words[2:]:
        name = word.partition("=")[0].removeprefix("--")
        assert word == "…" or name.startswith("config") or f"--{name} " in known, f"{word}: {command} has no such flag"
