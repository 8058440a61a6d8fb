"""`distill-jax run`: compute what is missing of an experiment, then draw its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distill_jax import api
from distill_jax.commands import config_line
from distill_jax.commands.cluster import ClusterFlags, computed
from distill_jax.commands.command_line import flag


@dataclasses.dataclass(frozen=True)
class WorkdirFlags(ClusterFlags):
    """Flags of run, audit and prepare."""

    workdir: str = flag("", "DIR: where everything is written", required=config_line.WORKDIR, path=True)


@dataclasses.dataclass(frozen=True)
class Flags(WorkdirFlags):
    """Flags of run."""

    dry_run: bool = flag(False, "say which stages there are and what they take; run nothing")


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    return config_line.usage("run", Flags, arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed, named = config_line.read("run", Flags, arguments)
    run = api.open_run(named, parsed.flags.workdir)
    page = computed(run, parsed.flags, parsed.flags.dry_run)
    if page:
        print(f"report: {page}")
    return 0
