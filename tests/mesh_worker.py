"""Run every stage's own step for a few steps on one layout of devices and write the numbers as JSON.

One process of one run; `tests/test_sharding.py` starts it with different devices, meshes and hosts.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from distill_jax.data.data_config import DataConfig
from distill_jax.data.records import write_rows
from distill_jax.io.metrics import Progress
from distill_jax.models import lora
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import hlo
from distill_jax.perf.collectives import KINDS, replica_groups
from distill_jax.perf.compile_for import compile_for, topology
from distill_jax.perf.slices import find
from distill_jax.sharding import distributed
from distill_jax.stages import Distill, Prepare, Pretrain, Relearn, Unlearn
from distill_jax.stages.context import PARTS, Context, Node, RunSettings
from distill_jax.train.step import of_active

# Heads and MLP divide by 2, 4 and 8 or by some of them; 30 words divide by 2 only, so that fallbacks happen too.
MODEL = TransformerConfig(
    vocab=30, layers=2, hidden=16, mlp=24, heads=4, kv_heads=2, head_dim=4, query_scale=4.0, init_std=0.25
)
LENGTH, STEPS = 12, 5
COMMON: dict[str, Any] = {"steps": STEPS, "batch": 16, "warmup": 2, "learning_rate": 1e-2, "loss_on": "answer"}
ATTACK: dict[str, Any] = {"learning_rates": (1e-2, 1e-3), "seeds": 2, "evaluate_steps": (0,)}


@dataclasses.dataclass(frozen=True)
class Data(DataConfig):
    """What a stage asks of the data's settings."""

    row_length: int = LENGTH
    MEASURE: ClassVar[str] = "exact_match"


def write_data(directory: Path) -> None:
    """Write small sets of ragged rows: documents of one to five tokens, tails of padding, some without any target."""
    rng = np.random.default_rng(7)
    for name in ("all", "retain", "forget", "forget_shown"):
        rows = np.zeros((40, 3, LENGTH), np.int32)
        for row in rows:
            end = rng.integers(1, LENGTH + 1)
            row[0, :end] = rng.integers(1, MODEL.vocab, end)
            row[1, :end] = np.cumsum(rng.random(end) < 0.3) + 1
            row[2, :end] = rng.random(end) < 0.5
        write_rows(directory / f"{name}.array_record", rows)
    items = []
    for i in range(20):
        prompt = rng.integers(1, MODEL.vocab, rng.integers(2, 6)).tolist()
        group = {"operation": "add", "form": "equation", "part": PARTS[i % 3], "fact": f"fact {i}"}
        items.append({"prompt_ids": prompt, "answer_ids": rng.integers(1, MODEL.vocab, 2).tolist(), **group})
    (directory / "evaluation.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def stages(microbatches: int) -> dict[str, list[Any]]:
    """Return the settings of the nodes that train together, by name."""
    common = {**COMMON, "microbatches": microbatches}
    return {
        "pretrain": [Pretrain(data="all", **common)],
        "maxent": [Unlearn(start="origin", method="maxent", **common)],
        "rmu": [Unlearn(start="origin", method="rmu", layer=2, **common)],
        "distill": [Distill(teacher="origin", start=f"damaged-{i}", **common) for i in range(3)],
        "relearn": [Relearn(start="origin", **ATTACK, **common)],
        "adapters": [Relearn(start="origin", lora_rank=2, **ATTACK, **common)],
    }


def numbers(
    data: Path,
    which: str,
    microbatches: int,
    devices: int,
    fsdp: int,
    tensor: int,
    attention: str = "auto",
    slices: int = 0,
) -> dict[str, Any]:
    """Train one stage and return its losses, its last weights' norms, and what its greedy decoding got right."""
    model = dataclasses.replace(MODEL, attention=attention, remat="none" if attention == "auto" else "full")
    settings = stages(microbatches)[which]
    verb = settings[0].kind
    nodes = {
        f"{which}-{i}": Node(
            f"{which}-{i}", verb, s, {"teacher": "origin", "start": "origin"}, "", data, peers=len(settings)
        )
        for i, s in enumerate(settings)
    }
    nodes["data"] = Node("data", "prepare", Prepare(Data()), {}, "", data)
    run = RunSettings(fsdp=fsdp, tensor=tensor, slices=slices, loss_chunk=7)
    ctx = Context(model, nodes, data, Progress(1, 0.0, out=io.StringIO()), run)
    owners = [node for node in nodes.values() if node.verb == verb]
    job = owners[0].settings.train_job(ctx, owners)
    mesh = job.mesh(ctx, jax.devices()[:devices])
    starts = job.adapters(ctx, mesh) if job.base else [ctx.fresh(node, mesh) for node in owners]
    state = job.state(ctx, mesh, starts)
    frozen = job.teacher or job.base
    origin = ctx.fresh(dataclasses.replace(owners[0], name="origin", stage="origin"), mesh) if frozen else None
    teacher = origin if job.teacher else None
    base = lora.base(origin, settings[0].lora_rank, settings[0].lora_alpha) if job.base else None
    step, feed = job.build(mesh), job.batches(ctx, mesh)
    losses: list[list[float]] = []
    for s in range(STEPS):
        state, metrics = step(state, teacher, feed(s), base)
        losses += [v[: len(job.members)].tolist() for _, v in sorted(of_active(metrics).items())]
    norm = jax.jit(lambda tree: [abs(x).sum(axis=range(1, x.ndim)) for x in jax.tree.leaves(tree)])
    whole = jax.jit(norm, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    correct = None
    if verb == "relearn":
        correct = ctx.evaluator(mesh, *PARTS)(state.params, base)[: len(job.members)].tolist()
    placed = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves((state.params, state.opt)))
    return {
        "losses": losses,
        "weights": [np.asarray(x)[: len(job.members)].tolist() for x in whole(state.params)],
        "correct": correct,
        "mesh": dict(mesh.shape),
        "bytes_on_first_device": placed,
    }


def lowered(which: str, run: RunSettings, devices: Any = None) -> tuple[Any, Any, int]:
    """Return one stage's lowered step, its mesh, and the bytes of a device's part of the gradient."""
    here = Path()
    settings = stages(1)[which]
    owners = [Node(f"{which}-{i}", s.kind, s, {}, "", here, peers=len(settings)) for i, s in enumerate(settings)]
    nodes = {node.name: node for node in owners} | {"data": Node("data", "prepare", Prepare(Data()), {}, "", here)}
    ctx = Context(MODEL, nodes, here, Progress(1, 0.0, out=io.StringIO()), run)
    job = owners[0].settings.train_job(ctx, owners)
    mesh = job.mesh(ctx, devices)
    shapes = job.shapes(ctx, mesh)
    parts = [x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(shapes[0].params)]
    return job.build(mesh).lower(*shapes), mesh, 4 * int(sum(map(np.prod, parts)))


def program(which: str, fsdp: int, tensor: int) -> dict[str, Any]:
    """Return the collectives of one stage's step on all devices as two slices, and the bytes of a device's gradient."""
    step, mesh, gradient_bytes = lowered(which, RunSettings(fsdp=fsdp, tensor=tensor, slices=2))
    module, _ = hlo.parse(step.compile().as_text())
    found = [
        {"kind": one.opcode, "groups": replica_groups(one.rest, mesh.size), "bytes": sum(hlo.sizes(one.result))}
        for computation in module.values()
        for one in computation
        if one.opcode in KINDS
    ]
    return {"collectives": found, "gradient_bytes": gradient_bytes}


def planned(where: str) -> dict[str, Any]:
    """Return what a TPU's compiler says of one step on slices that are not there, all devices of one in fsdp."""
    step, mesh, gradient_bytes = lowered("pretrain", RunSettings(fsdp=-1), topology(find(where)))
    analysis = compile_for(step, mesh)
    return {"network": analysis.network, "inside": analysis.collectives, "gradient_bytes": gradient_bytes}


def main() -> None:
    """Read the command line, run, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--jobs", required=True, help="JSON: [[stage, microbatches, devices, fsdp, tensor, (attention, slices)], ...]"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--programs", help="JSON: [[stage, fsdp, tensor], ...], whose collectives come last")
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    given = parser.parse_args()
    if given.coordinator:
        distributed.join(given.coordinator, given.processes, given.process)
    out: list[Any] = [numbers(given.data, *job) for job in json.loads(given.jobs)]
    if given.programs:
        out.append([program(*which) for which in json.loads(given.programs)])
    if distributed.is_primary():
        given.out.write_text(json.dumps(out))
    distributed.barrier("end")


if __name__ == "__main__":
    main()
