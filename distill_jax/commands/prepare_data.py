"""`distill-jax prepare`: make an experiment's data only."""

from __future__ import annotations

from collections.abc import Sequence

from distill_jax import api
from distill_jax.commands import config_line
from distill_jax.commands.run import WorkdirFlags as Flags


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    return config_line.usage("prepare", Flags, arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed, named = config_line.read("prepare", Flags, arguments)
    run = api.open_run(named, parsed.flags.workdir)
    parsed.flags.join()
    run.prepare()
    return 0
