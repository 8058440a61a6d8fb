"""What a run will take, before anything runs: its stages, their memory and time, and what to expect of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.experiment import graph
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.io.metrics import Progress
from distill_jax.io.node import Node
from distill_jax.perf import memory
from distill_jax.stages.context import Context
from distill_jax.units import size_text, span

SIDE, TRIES = 1024, 3  # of the product by which speed is taken
SHARE = 0.4  # of that product's speed, what a training step comes to
EXPECT = """What to expect: the suppressed model hides what it forgot, and attacks bring much of it back. The protected
one gives less back the more it was damaged (damage.alpha), if it regains what it is to keep: it stops there, or takes
all steps of distill and the card says that it fell short. More text to retain and more steps allow for more damage."""


def forecast(experiment: CheckedExperiment, nodes: Mapping[str, Node]) -> str:
    """Return a line a stage: its steps, FLOPs, the least memory, and about how long; and what to expect."""
    progress = Progress(len(nodes), 0.0, 0.0, None)
    ctx = Context(experiment.model, dict(nodes), nodes[graph.DATA].directory / "rows", progress, experiment.run)
    speed = _speed(experiment.model.dtype)
    rows, total = [], 0.0
    for node in nodes.values():
        flops = graph.planned_flops(ctx, node)
        total += 0.0 if node.done else flops
        rows.append((node.name, _what(ctx, node), "done" if node.done else _about(flops / speed)))
    names, whats = (max(map(len, column)) for column in list(zip(*rows, strict=True))[:2])
    lines = [f"  {name:{names}}  {what:{whats}}  {takes}" for name, what, takes in rows]
    there = memory.installed(jax.local_devices()[0]) * jax.device_count()
    free = f"on {jax.device_count()} × {jax.devices()[0].device_kind}, {size_text(there)}"
    rest = "preparing data, compiling and, before there are data, measuring are not in it"
    verbs = {node.verb for node in nodes.values()}
    expect = [EXPECT] if verbs >= {"perturb", "knowledge"} else []  # of one that ends in a card
    expect += [f"What is to be retained: {how}"] if (how := experiment.data.how_measured()) else []
    return "\n".join(
        [f"{len(nodes)} stages {free}:", *lines, f"all: {_about(total / speed)} at most; {rest}.", *expect]
    )


def _what(ctx: Context, node: Node) -> str:
    job = node.settings.train_job(ctx, [node])
    if job is None:
        return node.verb
    least = graph.least_memory(ctx, job)
    members = f" × {len(job.members)} attackers" if len(job.members) > 1 else ""
    return (
        f"{node.verb}, {job.settings.steps:,} steps of {job.settings.batch} rows{members}, at least {size_text(least)}"
    )


def _about(seconds: float) -> str:
    return "seconds" if seconds < 20 else f"about {span(seconds)}"


def _speed(dtype: str) -> float:
    """Return FLOP/s of a training step, taken from a product of matrices on all devices."""
    x = jnp.ones((SIDE, SIDE), dtype)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    best = min(_timed(product, x) for _ in range(TRIES))
    devices = jax.device_count() if jax.default_backend() != "cpu" else 1  # a CPU's devices share its cores
    return SHARE * devices * 2 * SIDE**3 / best


def _timed(product: Any, x: jax.Array) -> float:
    began = time.perf_counter()
    product(x).block_until_ready()
    return time.perf_counter() - began
