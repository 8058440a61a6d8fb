"""Every command has its own flags and help, configs are found by name, and starting costs no JAX."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import itertools
import shlex
import subprocess
import sys

import pytest

from distill_jax import shipped
from distill_jax.commands import COMMANDS, module_name
from distill_jax.main import main

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_flag_of_the_command(command, capsys):
    assert main(["distill-jax", command, "--help"]) == 0
    out, err = capsys.readouterr()
    fields = dataclasses.fields(importlib.import_module(module_name(command)).Flags)
    assert out.startswith(f"usage: distill-jax {command} ") and COMMANDS[command] in out and err == ""
    assert [f.name for f in fields if f"--{f.name.rstrip('_')} " not in out] == []


def test_the_usage_names_every_command(capsys):
    assert main(["distill-jax", "help"]) == 0
    out = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " not in out] == []


def test_help_with_a_config_lists_its_settings_as_they_are_changed(capsys, tmp_path):
    """Any listed line, given back to the program, is taken: here all of them at once."""
    assert main(["distill-jax", "run", "--config=arithmetic:smoke", "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    settings = [shlex.split(line)[0] for line in lines if line.startswith(("--config.", "'--config."))]
    assert {"--config.relearn.steps=8", "--config.relearn.learning_rates=(0.01, 0.001)"} <= set(settings)
    assert main(["distill-jax", "run", "--config=arithmetic:smoke", *settings, "--config.distill.steps=0",
                 f"--workdir={tmp_path}"]) == 2  # fmt: skip
    assert "distill" in (err := capsys.readouterr().err) or "student" in err
    assert "steps = 0" in err


def test_help_with_a_config_says_what_each_setting_means(capsys):
    """The sentence is that of the dataclass, also where a class inherits it or one entry describes two attributes."""
    assert main(["distill-jax", "run", "--config=arithmetic:smoke", "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    meaning = dict(itertools.pairwise(lines))
    assert meaning["--config.relearn.steps=8"] == "optimiser steps at most."
    assert meaning["--config.relearn.beta2=0.95"] == "AdamW's; of others the decay and the momenta."
    assert meaning["--config.relearn.seeds=2"].startswith("how many attackers;")
    sections = ("model", "data", "run", "reference", "relearn", "rmu", "distill", "cache")
    settings = [line for line in meaning if line.strip("'").startswith(tuple(f"--config.{name}." for name in sections))]
    assert len(settings) > 100 and [line for line in settings if meaning[line].strip("'").startswith("--config.")] == []


def test_version(capsys):
    assert main(["distill-jax", "--version"]) == 0
    assert capsys.readouterr().out == f"distill-jax {importlib.metadata.version('distill-jax')}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--config=arithmetik:cpu"], ["no file arithmetik", "did you mean 'arithmetic'", "wmdp"]),
        (["run", "--config=nowhere/arithmetik.py"], ["no file nowhere/arithmetik.py", "did you mean 'arithmetic'"]),
        (["sweep", "--sweep=undo_arithmetics"], ["did you mean 'undo_arithmetic'"]),
        (
            ["run", "--slice=v5e-16"],
            [
                "--slice: run has no such flag",
                "only `distill-jax protect`, `distill-jax sweep` and `distill-jax plan` have it",
            ],
        ),
        (["report", "--to=x"], ["--to: report has no such flag; only `distill-jax export` has it"]),
        (["plan", "--config=arithmetic:smoke", "--slice=v5e-4", "--stages="], ["--stages=", "names none"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_what_is_not_there_is_named(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["distill-jax", *arguments, *(["--workdir=x"] if arguments[0] != "plan" else [])]) == 2
    err = capsys.readouterr().err
    assert [word for word in words if word not in err] == [] and len(err.splitlines()) == 1, err
    assert list(tmp_path.iterdir()) == []


def test_a_shipped_config_and_sweep_are_found_from_anywhere(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["distill-jax", "sweep", "--sweep=undo_arithmetic:smoke", "--count"]) == 0
    assert int(capsys.readouterr().out) > 0
    assert main(["distill-jax", "run", "--config=arithmetic:smoke", "--config.undo.alphas=(2.0,)", "--workdir=x"]) == 2
    assert "undo.alphas = (2.0,)" in capsys.readouterr().err


def test_a_file_that_exists_comes_before_a_shipped_one(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arithmetic").write_text("")
    assert main(["distill-jax", "run", "--config=arithmetic", "--workdir=x"]) == 2
    assert "arithmetic is no Python file" in capsys.readouterr().err


def test_shipped_configs_are_those_that_users_see():
    assert (shipped.CONFIGS / "arithmetic.py").samefile(shipped.CONFIGS.parents[1] / "configs/arithmetic.py")


def test_starting_imports_what_the_command_needs_and_no_more():
    """Neither `import distill_jax` nor a command that is refused brings JAX."""
    code = (
        "import sys, distill_jax; first = len(sys.modules); import distill_jax.main as m; "
        "m.main(['', 'score', '--modle=x']); m.main(['', 'run', '--help']); distill_jax.axis('a', 1); "
        "print([name for name in ('jax', 'tensorflow', 'scipy', 'flax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr
