"""A node as a run of Weights & Biases; WANDB_PROJECT, WANDB_MODE and what else wandb reads of its environment holds."""

from __future__ import annotations

import os
from collections.abc import Mapping

import wandb

from distill_jax.io.storage import is_local, make_directory
from distill_jax.io.trackers import DIRECTORY, TrackedNode

INIT_SECONDS = 60.0


class WandbRun:
    """A run of Weights & Biases."""

    def __init__(self, run: wandb.Run) -> None:
        run.define_metric("*", step_metric="step")  # its own steps refuse a row of an earlier step
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by name."""
        self._run.log({**values, "step": step})

    def finish(self, summary: Mapping[str, float], *, failed: bool) -> None:
        """Write what the node cost, and end."""
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(failed))


def open_run(node: TrackedNode) -> WandbRun:
    """Begin a node's run, or go on with it.

    Raises:
      Exception: of wandb, if it cannot.
    """
    where = node.workdir / DIRECTORY
    settings = wandb.Settings(console="off", silent=True, save_code=False, disable_git=True, init_timeout=INIT_SECONDS)
    if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False, verify=False):
        raise RuntimeError(
            "there is no API key: run `wandb login`, or set WANDB_MODE=offline"
        )  # and it is not asked for
    make_directory(where)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "distill-jax"),
        group=node.workdir.name,
        name=node.run,
        id=node.identity,
        resume="allow",
        reinit="create_new",  # nodes that train together have a run each
        dir=str(where) if is_local(where) else None,
        config={**node.config(), "workdir": str(node.workdir)},
        settings=settings,
    )
    return WandbRun(run)
