"""A stage's training step, traced for any devices without a file of data or weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages import Prepare, Stage
from distill_jax.stages.context import Context, Node, RunSettings
from distill_jax.stages.train_job import TrainJob
from distill_jax.types import PyTree
from tests import mesh_worker

TINY = {"vocab": 2048, "layers": 2, "hidden": 64, "mlp": 128, "heads": 4, "kv_heads": 2, "head_dim": 16}


def traced_step(
    cfg: TransformerConfig, settings: Stage, devices: Sequence[jax.Device], length: int = 64, **run: object
) -> tuple[TrainJob, PyTree, jax.stages.Traced]:
    """Return the job of a stage whose teacher and start are one node, what its step takes, and the traced step."""
    nowhere = Path("/nonexistent")
    data = Node("data", "prepare", Prepare(mesh_worker.Data(row_length=length)), {}, "", nowhere)
    node = Node("it", settings.kind, settings, {"teacher": "t", "start": "t"}, "", nowhere)
    ctx = Context(cfg, {"data": data, "it": node}, nowhere, None, RunSettings(**run))
    job = settings.train_job(ctx, [node])
    mesh = job.mesh(ctx, devices)
    shapes = job.shapes(ctx, mesh)
    return job, shapes, job.build(mesh).trace(*shapes)
