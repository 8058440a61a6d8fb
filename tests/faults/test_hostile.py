"""Whatever is typed, written and set: a code of the table, a line or two, no traceback, and nothing lying about."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill_jax.exit_codes import ExitCode
from tests.programs import ROOT

LINES = 4  # of standard error at most, unless it is the usage


def outcomes(scratch: Path, first: int, count: int) -> Iterator[dict[str, Any]]:
    command = [
        sys.executable,
        "-m",
        "tests.faults.hostile",
        f"--first={first}",
        f"--cases={count}",
        f"--scratch={scratch}",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    yield from map(json.loads, done.stdout.splitlines())


def faults(outcome: dict[str, Any]) -> list[str]:
    err = outcome["stderr"]
    return [
        *([f"ended with {outcome['code']}"] if outcome["code"] not in set(ExitCode) - {ExitCode.BUG} else []),
        *(["a traceback"] if "Traceback" in err else []),
        *(["many lines"] if len(err.splitlines()) > LINES and "usage:" not in err else []),
        *(["refused without a word"] if outcome["code"] == ExitCode.REFUSED and not err.strip() else []),
        *([f"wrote or removed {outcome['written']}"] if outcome["written"] else []),
    ]


def assert_right(found: list[dict[str, Any]], count: int) -> None:
    assert len(found) == count
    wrong = [(outcome["case"], faults(outcome), outcome) for outcome in found if faults(outcome)]
    assert not wrong, json.dumps(wrong, indent=1)
    assert {ExitCode.DONE, ExitCode.REFUSED} <= {outcome["code"] for outcome in found}  # both doors were tried


@pytest.mark.end_to_end
def test_hostile_cases_end_in_a_line_and_a_code_of_the_table(tmp_path):
    assert_right(list(outcomes(tmp_path, 0, 12)), 12)


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_many_hostile_cases_do(tmp_path):
    assert_right(list(outcomes(tmp_path, 12, 388)), 388)


@pytest.mark.unit
def test_the_docs_have_the_table_of_exit_codes():
    page = (ROOT / "docs" / "launching.md").read_text()
    table = page[page.index("## Exit codes") :]
    assert sorted(map(int, re.findall(r"^\| (\d+) \|", table, re.M))) == sorted(ExitCode)
