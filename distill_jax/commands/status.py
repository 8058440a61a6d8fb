"""`distill-jax status`: what a run or sweep has done, does, waits for and failed at."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from distill_jax.commands import command_line
from distill_jax.commands.command_line import flag
from distill_jax.config import check
from distill_jax.io.storage import check_access, is_local, location

ABOUT = """It reads files and writes none, takes no lease, and needs no --config; a run's own line may be used again.
Running is what a worker says that it computes; of another machine's it is known a minute late that it was killed."""
WORKDIR = "name the directory of a run or sweep"
EVERY = 2.0  # seconds, of --watch alone


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of status."""

    workdir: str = flag("", "DIR: of a run, audit or sweep", required=f"--workdir=DIR is missing: {WORKDIR}", path=True)
    watch: float = flag(
        0.0, f"[SECONDS]: say it again and again, every {EVERY:g} s, until all is done", bounds=(0, None)
    )
    json: bool = flag(False, "as JSON")


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    return command_line.usage("status", Flags, "--workdir=DIR [--watch[=SECONDS]] [--json]", ABOUT)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    own = [f"--watch={EVERY}" if argument == "--watch" else argument for argument in arguments]
    own = [one for one in own if not one.startswith(("--config", "--sweep", "-config"))]
    flags = command_line.read("status", Flags, own).flags
    directory = location(flags.workdir)
    check_access(directory, "--workdir")
    check(not (is_local(directory) and directory.is_file()), f"--workdir={directory}: is a file; {WORKDIR}")
    while _show(flags, directory) and flags.watch:
        time.sleep(flags.watch)
    return 0


def _show(flags: Flags, workdir: Path) -> bool:
    """Print the status once; return whether something may still change."""
    from distill_jax.experiment.workdir_status import as_json, lines, read_status

    status = read_status(workdir)
    text = json.dumps(as_json(status)) if flags.json else "\n".join(lines(status, time.time()))
    clear = "\x1b[H\x1b[2J" if flags.watch and not flags.json and sys.stdout.isatty() else ""
    print(f"{clear}{text}", flush=True)
    return not status.nodes or any(node.state != "done" for node in status.nodes)
