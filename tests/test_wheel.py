"""The wheel holds all that it needs: unpacked elsewhere, the package finds its configs, models, texts and templates."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("distill_jax", "configs", "pyproject.toml", "README.md", "LICENSE")
USE = """
import pathlib, sys
from importlib.resources import files

import distill_jax

assert pathlib.Path(distill_jax.__file__).parents[1] == pathlib.Path(sys.argv[1])
for name in ("arithmetic:smoke", "auditbench:smoke", "language:smoke", "wmdp:smoke"):
    run = distill_jax.open_run(name, "run")
    assert run.nodes and not any(node.done for node in run.nodes.values()), name
reports = files("distill_jax.reports")
assert (reports / "templates" / "run.html.j2").is_file() and (reports / "static" / "run.js").is_file()
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """What `pip install` would put into site-packages; built without a network, from a copy that a build may litter."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("pip")
    home = tmp_path_factory.mktemp("wheel")
    source = home / "source"
    source.mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    line = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={home}"]
    done = subprocess.run([sys.executable, "-m", *line, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = home.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home / "site")
    return home / "site"


@pytest.mark.end_to_end
def test_an_installed_wheel_finds_its_configs_models_and_pages(unpacked, tmp_path):
    """From an empty directory, where nothing of the checkout is on the path; data files are named and hashed."""
    env = os.environ | {"PYTHONPATH": str(unpacked)}
    line = [sys.executable, "-c", USE, str(unpacked)]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (unpacked / "tests").exists()
