"""Prepare: make the experiment's data, in a process of its own, the only one that imports TensorFlow."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill_jax.config import ConfigError, Interrupted
from distill_jax.data.records import load_manifest, verify
from distill_jax.io.files import write_json
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.distributed import chief
from distill_jax.stages.context import Context, Node


def run(ctx: Context, nodes: Sequence[Node]) -> None:
    """Generate, tokenise and pack every data set of the experiment."""
    (node,) = nodes
    if chief():
        _prepare(ctx, node)


def _prepare(ctx: Context, node: Node) -> None:
    began, rows = time.monotonic(), node.directory / "rows"
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        write_json(Path(file.name), dataclasses.asdict(node.settings))
        command = [sys.executable, "-m", node.settings.PREPARE, f"--config={file.name}"]
        command.append(f"--output={rows}")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout and process.stderr
            for line in process.stdout:
                ctx.progress.say(f"[{ctx.progress.stage}/{ctx.progress.stages}] {node.name}  {line.rstrip()}")
            problems = process.stderr.read()
    if process.returncode == -signal.SIGTERM:  # the signal went to the whole group
        raise Interrupted("stopped while preparing the data")
    if process.returncode:
        last = [line for line in problems.splitlines() if line.strip()][-1:] or ["no message"]
        if "No space left on device" in last[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(rows))
        raise ConfigError(f"preparing the data failed: {last[0]}")
    verify(rows)
    tokens = sum(entry["tokens"] for entry in load_manifest(rows)["sets"].values())
    node.finish({}, ledger({}, {"data": tokens}, {"data": time.monotonic() - began}))


def plan(ctx: Context, settings: Any) -> float:
    """Return no FLOPs: preparing data runs no model."""
    return 0.0
