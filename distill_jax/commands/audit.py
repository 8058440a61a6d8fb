"""`distill-jax audit`: run an experiment about teachers that are to be judged; its report ends in a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from distill_jax import api
from distill_jax.commands import config_line
from distill_jax.commands.run import WorkdirFlags as Flags
from distill_jax.config import check


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    return config_line.usage("audit", Flags, arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed, named = config_line.read("audit", Flags, arguments)
    mend = "it ends in no verdict; use `distill-jax run`"
    run = api.open_run(named, parsed.flags.workdir)
    check(run.experiment.audited, f"audit: {run.experiment.name}: {mend}")
    parsed.flags.join()
    page = run.compute()
    if page:
        print(f"report: {page}")
    return 0
