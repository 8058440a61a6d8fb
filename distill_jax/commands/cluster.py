"""Flags of commands that several processes run together, how those find each other, and what they then compute."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from distill_jax.commands.command_line import flag
from distill_jax.config import check

if TYPE_CHECKING:
    from distill_jax.api import Run


@dataclasses.dataclass(frozen=True)
class ClusterFlags:
    """How the processes of one run find each other; alone when nothing is said."""

    distributed: bool = flag(False, "join the cluster that JAX detects, as on a TPU pod or under Slurm")
    coordinator: str | None = flag(None, "HOST:PORT of process 0, where JAX detects no cluster")
    coordinator_port: int = flag(8476, "port of process 0 with --distributed")
    processes: int = flag(1, "how many processes run this command")
    process: int = flag(0, "which of them this is")
    heartbeat: int = flag(100, "seconds of silence until a process counts as dead", bounds=(1, None))
    patience: int = flag(1800, "seconds to wait for the others at the start; then leave with 42", bounds=(1, None))

    def __post_init__(self) -> None:
        mend = "also give --coordinator=HOST:PORT and --process, or --distributed alone"
        check(bool(self.coordinator) or self.processes == 1, f"--processes={self.processes}: {mend}")

    @property
    def several(self) -> bool:
        """Whether this process is one of several that run one command together."""
        return self.distributed or bool(self.coordinator)

    def join(self) -> None:
        """Join the other processes, if there are any, and heed SIGTERM from now on."""
        from distill_jax.sharding import distributed

        distributed.heed_signals()
        if self.distributed:
            distributed.join_detected(self.coordinator_port, self.heartbeat, self.patience)
        elif self.coordinator:
            distributed.join(self.coordinator, self.processes, self.process, self.heartbeat, self.patience)


def computed(run: Run, cluster: ClusterFlags, dry_run: bool) -> Path | None:
    """Compute a run and return its page, on the first of several processes; dry, print what it would take instead."""
    if dry_run:
        from distill_jax.experiment.forecast import forecast

        print(forecast(run.experiment, run.nodes))
        return None
    cluster.join()
    return run.compute()
