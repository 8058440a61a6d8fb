"""What random damage, and power that goes at random moments, make of a run: its own numbers or a refusal."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.programs import ROOT, environment
from tests.spoil import shared
from tests.test_run import finished_run


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return shared(tmp_path_factory, "runs")


def cases(base: Path, scratch: Path, **counts: int) -> list[dict[str, Any]]:
    """Run a campaign in a process whose programs are those that the finished run has compiled."""
    line = [sys.executable, "-m", "tests.faults.campaign", str(finished_run(base)[0]), str(scratch)]
    line += [f"--{name}={count}" for name, count in counts.items()]
    done = subprocess.run(line, cwd=ROOT, env=environment(base / "compiled"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(case) for case in done.stdout.splitlines()]


def assert_right_or_refused(found: list[dict[str, Any]], count: int) -> None:
    assert [case for case in found if case["ending"] not in ("same", "warned", "refused")] == []
    assert len(found) == count
    print(collections.Counter(case["ending"] for case in found))


@pytest.mark.kill
def test_damage_and_power_cuts_change_no_number(base, tmp_path):
    found = cases(base, tmp_path, finished=12, cuts=1, seed=3)
    assert_right_or_refused(found, 13)
    assert {"same", "refused"} <= {case["ending"] for case in found}  # some of it mattered, and not all


@pytest.mark.thorough
@pytest.mark.kill
@pytest.mark.parametrize("seed", [11, 12])
def test_five_hundred_damages_and_power_cuts_change_no_number(base, tmp_path, seed):
    assert_right_or_refused(cases(base, tmp_path, finished=200, interrupted=30, cuts=20, seed=seed), 250)
