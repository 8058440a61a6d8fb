"""Slurm and JobSet place the units of a sweep: a job array or a replicated job for each level, one after the other.

The submissions are those of launch/slurm.sh and launch/jobset.sh, which fill in and check what a cluster is given.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill_jax.config import ConfigError, check
from distill_jax.exit_codes import ExitCode
from distill_jax.experiment.work_units import WorkUnit

LAUNCH = Path(__file__).parents[3] / "launch"  # of a checkout, from which the scripts are run
INDEX = "@index@"  # what the scripts put the number of a job in place of


def slurm(units: Sequence[WorkUnit], command: Sequence[str], flags: str, name: str, dry_run: bool) -> int:
    """Submit a job array a level, each of which starts once the one before it has ended well.

    Args:
      command: of a worker, without --unit.
      flags: more of launch/slurm.sh, as a shell would read them.
    """
    after: list[str] = []
    several = bool(re.search(r"--nodes=[1-9]", flags))
    for level, group in _levels(units):
        array = ",".join(str(unit.index) for unit in group)
        cpus, gpus = (max(1, *(getattr(unit.resources, of) for unit in group)) for of in ("cpus", "gpus"))
        given = [
            f"--name={_name(name)}-{level}",
            f"--gpus-per-node={gpus}",
            *[f"--cpus-per-task={cpus}"] * (cpus > 1),  # of one, the cluster knows better
            *_split(flags, "--slurm"),
            *["--nodes=1"] * (several and level == 0),  # for the data; of two flags the last counts
            f"--array={array}",
        ]
        printed, code = _launched("slurm.sh", [*given, *after], [*command, f"--unit={level}.{INDEX}"], dry_run)
        if code:
            return code
        job = re.search(r"Submitted batch job (\d+)", printed)
        check(bool(job) or dry_run, f"sbatch printed no job number: {printed.strip()[-80:]!r}; see what became of it")
        after = [f"--dependency=afterok:{job[1] if job else f'LEVEL_{level}'}"]
    return ExitCode.DONE


def jobset(units: Sequence[WorkUnit], command: Sequence[str], flags: str, name: str, dry_run: bool) -> int:
    """Apply one JobSet with a replicated job a level, each of which starts once the one before it is complete.

    Args:
      command: of a worker, without --unit.
      flags: more of launch/jobset.sh, as a shell would read them; they overrule what the units need.
    """
    sizes = ",".join(str(len(group)) for _, group in _levels(units))
    given = [f"--name={_name(name)}", *_nodes(units), *_split(flags, "--jobset"), f"--levels={sizes}"]
    return _launched("jobset.sh", given, command, dry_run)[1]


def _nodes(units: Sequence[WorkUnit]) -> list[str]:
    """Return the flags for nodes of the largest slice that a unit needs, of which every unit gets one."""
    needed = [unit.resources.slice for unit in units if unit.resources.slice]
    if not needed:
        return []
    largest = max(needed, key=lambda where: where.chips)
    shape = "x".join(map(str, largest.shape))
    return [f"--accelerator={largest.gke_label}", f"--topology={shape}"]


def _split(flags: str, name: str) -> list[str]:
    """Return the words of a flag's value, as a shell would read them."""
    try:
        return shlex.split(flags)
    except ValueError as error:
        raise ConfigError(f"{name}={flags}: {error}; close the quotation, or escape it") from error


def _levels(units: Sequence[WorkUnit]) -> Iterator[tuple[int, list[WorkUnit]]]:
    """Yield each level and its units, finished ones too: their jobs find that and end, and no number changes."""
    for level in range(1 + max(unit.level for unit in units)):
        yield level, [unit for unit in units if unit.level == level]


def _launched(script: str, flags: Sequence[str], command: Sequence[str], dry_run: bool) -> tuple[str, int]:
    """Run a launch script, pass on what it prints, and return that and its exit code."""
    path = LAUNCH / script
    check(path.is_file(), f"{path} is not there: run this from a checkout, which has the launch scripts")
    fix_hint = "run this there: paths are from the checkout, as in the launch scripts"
    check(Path.cwd() == LAUNCH.parent, f"{Path.cwd()} is not {LAUNCH.parent}; {fix_hint}")
    _, *arguments = command  # without the command's name, which the script knows by --sweep
    line = ["bash", str(path), *flags, *["--dry-run"] * dry_run, "--", *arguments]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    return done.stdout, done.returncode


def _name(name: str) -> str:
    """Return a sweep's name as clusters take one."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:20].rstrip("-")
