"""`distill-jax data`: show what a model will see of the data: decoded rows, shares, counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distill_jax import api
from distill_jax.commands import config_line
from distill_jax.commands.command_line import flag
from distill_jax.config import check


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of data."""

    workdir: str = flag("", "DIR: where the data are, or are made", required=config_line.WORKDIR, path=True)
    examples: int = flag(2, "decoded rows of each set", bounds=(0, None))


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    return config_line.usage("data", Flags, arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed, named = config_line.read("data", Flags, arguments)
    run = api.open_run(named, parsed.flags.workdir)
    data = run.experiment.data
    check(bool(data.MEASURE), f"{run.experiment.name}: its data are images, and `distill-jax data` shows text")
    ctx = run.prepare()
    from distill_jax.data import show_rows
    from distill_jax.experiment import graph

    graph.verify_data(run.nodes[graph.DATA])
    print(*show_rows.describe(ctx.data, data.vocabulary, parsed.flags.examples), sep="\n")
    return 0
