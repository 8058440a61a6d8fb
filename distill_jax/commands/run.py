"""`distill-jax run`: compute what is missing of an experiment, then draw its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distill_jax import api
from distill_jax.commands import config_line
from distill_jax.commands.cluster import ClusterFlags
from distill_jax.commands.command_line import flag


@dataclasses.dataclass(frozen=True)
class Flags(ClusterFlags):
    """Flags of run, audit and prepare."""

    workdir: str = flag("", "DIR: where everything is written", required=config_line.WORKDIR, path=True)


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    return config_line.usage("run", Flags, arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed, named = config_line.read("run", Flags, arguments)
    run = api.open_run(named, parsed.flags.workdir)
    parsed.flags.join()
    page = run.compute()
    if page:
        print(f"report: {page}")
    return 0
