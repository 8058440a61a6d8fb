"""The launch scripts, with a stand-in for Python that records its calls: nothing is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parent.parent
SCRIPTS = [*sorted(ROOT.glob("launch/*.sh")), ROOT / ".ci/run"]

# Answers the version, makes venvs that hold itself, and writes venv and pip calls to $CALLS.
PYTHON = r"""#!/usr/bin/env bash
case "$*" in
  *sys.version_info*) echo "${FAKE_VERSION:-3.11}" ;;
  *_base_executable*) echo "$FAKE_PYTHON" ;;
  *ensurepip*) [[ -z ${FAKE_NO_VENV:-} ]] ;;
  "-m venv "*)
    echo "venv" >>"$CALLS"
    mkdir -p "$3/bin" && touch "$3/pyvenv.cfg" && cp "$FAKE_PYTHON" "$3/bin/python"
    printf '#!/usr/bin/env bash\nprintf "%%s\\n" "$PWD" "$@"\nexit "${FAKE_STATUS:-0}"\n' >"$3/bin/distill-jax"
    chmod +x "$3/bin/distill-jax" ;;
  "-m pip install "*)
    echo "pip begins $*" >>"$CALLS"
    [[ -z ${FAKE_KILL:-} ]] || kill -9 0
    sleep "${FAKE_SECONDS:-0}"
    [[ -z ${FAKE_PIP_ERROR:-} ]] || { echo "$FAKE_PIP_ERROR" >&2; exit 1; }
    echo "pip ends" >>"$CALLS" ;;
  "-m "*) echo "$*" >>"$CALLS"; [[ -z ${FAKE_FAIL:-} || $* != *"$FAKE_FAIL"* ]] ;;
  *) exit 99 ;;
esac
"""


class Checkout:
    """A copy of the scripts, the stand-in and the record of its calls."""

    def __init__(self, path: Path):
        self.root, self.log, python = path / "a checkout", path / "calls", path / "python3"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        python.write_text(PYTHON)
        python.chmod(0o755)
        self.env = {name: value for name, value in os.environ.items() if name != "DISTILL_JAX_VENV"}
        self.env |= {"PYTHON": str(python), "FAKE_PYTHON": str(python), "CALLS": str(self.log)}
        self.elsewhere = path

    def command(self, script: str, *arguments: str) -> list[str]:
        return ["bash", str(self.root / "launch" / script), *arguments]

    def run(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a script from another directory, as its own process group, with `env` added to the environment."""
        return subprocess.run(
            self.command(script, *arguments),
            cwd=self.elsewhere,
            env=self.env | env,
            capture_output=True,
            text=True,
            start_new_session=True,
        )

    def calls(self) -> list[str]:
        """Return the calls since the last time this was asked."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_executable(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


def installed(calls: list[str]) -> bool:
    return any(call.startswith("pip begins") for call in calls)


def test_what_is_installed_is_not_installed_again(checkout):
    assert checkout.run("environment.sh", "test").returncode == 0
    calls = checkout.calls()
    assert calls[0] == "venv"
    assert calls[1].endswith(f"-e {checkout.root}[test] -c {checkout.root}/constraints.txt")

    done = checkout.run("environment.sh", "test")
    assert done.returncode == 0
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "up to date" in done.stderr
    assert checkout.run("environment.sh").returncode == 0  # [test] holds what no extra asks for
    assert checkout.calls() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_change_is_installed_into_the_same_venv(checkout, name):
    checkout.run("environment.sh")
    checkout.calls()
    with (checkout.root / name).open("a") as file:
        file.write("# a change\n")
    assert checkout.run("environment.sh").returncode == 0
    calls = checkout.calls()
    assert installed(calls) and "venv" not in calls


def test_extras_add_up(checkout):
    checkout.run("environment.sh", "test")
    checkout.run("environment.sh", "parity")
    assert "[test,parity]" in checkout.calls()[-2]
    checkout.run("environment.sh", "test")
    assert checkout.calls() == []


def test_another_python_makes_the_venv_anew(checkout):
    checkout.run("environment.sh")
    (checkout.root / ".venv/bin/python").write_text("#!/bin/sh\necho 3.10\n")  # as if python3 was 3.10 then
    checkout.calls()
    assert checkout.run("environment.sh").returncode == 0
    assert "venv" in checkout.calls()


def test_a_killed_installation_begins_again(checkout):
    checkout.run("environment.sh", FAKE_KILL="1")
    assert "pip ends" not in checkout.calls()
    half_written = checkout.root / ".venv/lib"
    half_written.mkdir()
    assert checkout.run("environment.sh").returncode == 0
    calls = checkout.calls()
    assert "venv" in calls and installed(calls)
    assert not half_written.exists()


def test_pip_errors_are_shown_and_not_remembered_as_success(checkout):
    done = checkout.run("environment.sh", FAKE_PIP_ERROR="no such release")
    assert done.returncode == 1 and "no such release" in done.stderr
    checkout.calls()
    assert checkout.run("environment.sh").returncode == 0
    assert installed(checkout.calls())


def test_two_at_once_install_once(checkout):
    env = checkout.env | {"FAKE_SECONDS": "0.5"}
    both = [subprocess.Popen(checkout.command("environment.sh"), env=env) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    calls = checkout.calls()
    assert len(calls) == 3 and calls[0] == "venv" and calls[2] == "pip ends"


def test_a_venv_of_someone_else_is_never_wiped(checkout):
    venv = checkout.elsewhere / "mine"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").touch()
    shutil.copy(checkout.env["PYTHON"], venv / "bin/python")
    checkout.run("environment.sh", DISTILL_JAX_VENV=str(venv), FAKE_PIP_ERROR="full disk")
    assert checkout.run("environment.sh", DISTILL_JAX_VENV=str(venv)).returncode == 0
    assert "venv" not in checkout.calls()


def test_a_directory_that_is_no_venv_is_refused(checkout):
    home = checkout.elsewhere / "home"
    home.mkdir()
    (home / "thesis.tex").touch()
    done = checkout.run("environment.sh", DISTILL_JAX_VENV=str(home))
    assert done.returncode == 2 and "not a virtual environment" in done.stderr
    assert [path.name for path in home.iterdir()] == ["thesis.tex"]


def test_what_is_no_extra_is_refused_before_anything_is_made(checkout):
    done = checkout.run("environment.sh", "--help")
    assert done.returncode == 2 and "--help: not an extra" in done.stderr and not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("script", ["environment.sh", "local.sh", "test.sh"])
@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"FAKE_VERSION": "3.10"}, "Python 3.11 or newer is needed"),
        ({"PYTHON": "/no/such/python"}, "cannot run /no/such/python"),
        ({"FAKE_NO_VENV": "1"}, "has no venv module"),
    ],
)
def test_an_unfit_python_is_refused(checkout, script, env, message):
    done = checkout.run(script, **env)
    assert done.returncode == 2 and message in done.stderr
    assert checkout.calls() == []


@pytest.mark.parametrize(
    ("arguments", "defaults"),
    [
        ([], ["--config=configs/arithmetic.py:cpu", "--workdir=runs/arithmetic"]),
        (
            ["--config.seed=1", "--workdir=/tmp/a b"],
            ["--config=configs/arithmetic.py:cpu", "--workdir=runs/arithmetic"],
        ),
        (
            ["--workdir=/tmp/x", "--config=configs/arithmetic.py:cpu,full", "--config.seed=1"],
            ["--workdir=runs/arithmetic"],
        ),
    ],
)
def test_local_passes_arguments_and_status_through(checkout, arguments, defaults):
    done = checkout.run("local.sh", *arguments, FAKE_STATUS="7")
    assert done.returncode == 7
    assert done.stdout.splitlines() == [str(checkout.root), "run", *defaults, *arguments]


def test_test_runs_the_checks_and_then_pytest(checkout):
    assert checkout.run("test.sh", "-m", "unit").returncode == 0
    assert checkout.calls()[3:] == [
        "-m ruff check .",
        "-m ruff format --check .",
        "-m mypy distill_jax",
        "-m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder -m unit",
    ]


@pytest.mark.parametrize("tool", ["ruff check", "ruff format", "mypy", "pytest"])
def test_test_fails_if_any_step_fails(checkout, tool):
    assert checkout.run("test.sh", FAKE_FAIL=tool).returncode != 0
    assert tool in checkout.calls()[-1]
