"""`distill-jax report`: draw the report again from a work directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distill_jax.commands import command_line, config_line
from distill_jax.commands.command_line import flag


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of report."""

    workdir: str = flag("", "DIR: of a finished run or sweep", required=config_line.WORKDIR, path=True)


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    return command_line.usage("report", Flags, "--workdir=DIR", "It needs no --config, and heeds none.")


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    _, rest = config_line.take(arguments, "config")  # so that a run's own line can be used again
    parsed = command_line.read("report", Flags, [a for a in rest if not a.startswith("--config.")])
    from distill_jax.reports import run_summary

    print(f"report: {run_summary.redraw(config_line.workdir(parsed.flags.workdir))}")
    return 0
