"""What a program needs of memory, by the compiler's own account, and what a device has; nothing is allocated or run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Var, jaxprs_in_params

from distill_jax.losses.cross_entropy import Sum
from distill_jax.losses.distillation import Divergence
from distill_jax.losses.head_loss import Head, HeadInputs, from_teacher
from distill_jax.models.head import head_loss
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class HeadShape:
    """Sizes of what a loss over the vocabulary reads: hidden states [batch, length, hidden] and [vocab, hidden]."""

    batch: int = 4
    length: int = 2048
    vocab: int = 256_000
    hidden: int = 320


def kl_memory(
    chunk: int, shape: HeadShape | None = None, divergence: Divergence | None = None, way: str = "chunked"
) -> dict[str, Any]:
    """Return the bytes of a distillation loss and its gradients by the student's hidden states and embedding.

    Both models have a hidden state, an embedding and a softcapped head. "temporary" is what the program holds besides
    its "arguments" and its "outputs".

    Args:
      chunk: tokens whose logits exist at a time; 0 for all.
      shape: Gemma 2's vocabulary, if None.
      divergence: the forward KL if None.
      way: how the loss is computed, a `model.loss_head`.

    Raises:
      RuntimeError: if the backend's compiler does not tell.
    """
    shape, divergence = shape or HeadShape(), divergence or Divergence()
    cfg = TransformerConfig(
        shape.vocab, layers=1, hidden=shape.hidden, mlp=1, heads=1, kv_heads=1, head_dim=2, loss_head=way
    )

    def loss(
        student: jax.Array, student_table: jax.Array, teacher: jax.Array, teacher_table: jax.Array, mask: jax.Array
    ) -> Sum:
        heads = Head(student, student_table), Head(teacher, teacher_table)
        return head_loss(cfg, chunk, from_teacher(divergence), HeadInputs(*heads, mask))

    state = jax.ShapeDtypeStruct((shape.batch, shape.length, shape.hidden), jnp.float32)
    table = jax.ShapeDtypeStruct((shape.vocab, shape.hidden), jnp.float32)
    mask = jax.ShapeDtypeStruct((shape.batch, shape.length), jnp.float32)
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    analysis = program.lower(state, table, state, table, mask).compile().memory_analysis()
    if analysis is None:
        raise RuntimeError(f"the {jax.default_backend()} compiler gives no account of memory; ask on the CPU")
    return {
        "way": way,
        "chunk": chunk,
        "temporary": analysis.temp_size_in_bytes,
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
    }


def needed_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Return arguments, outputs and temporaries of a compiled program on a device together, what is donated once."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    total = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
    return int(total - analysis.alias_size_in_bytes)


def saving_bytes(state: PyTree, members: int, platform: str) -> int:
    """Return the bytes of a device that saving a population takes while it goes on training.

    Of each of its nodes in turn the members are copied, and then written from the host's memory. Where that is the
    device's own, all copies wait there beside what is being encoded.
    """
    whole = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))
    return 2 * whole if platform == "cpu" else whole // members


FILL = 0.9  # of a device's memory, at most, by the compiler's account


def stacked_bytes(jaxpr: Jaxpr, devices: int) -> float:
    """Return the bytes of a device that the results of loops' turns take while most of them are there together.

    What the layers' backward passes read is such a result of their forward pass, and is there until the last of them
    has read it: of two forward passes before the first backward one, both. Operations are taken in the order in which
    they were traced.

    Args:
      devices: over which each result is divided at most.
    """
    return _live_stacks(jaxpr, devices)[0]


def _live_stacks(jaxpr: Jaxpr, devices: int) -> tuple[float, list[float]]:
    """Return the most bytes of stacked results that are live at a time, and those of each of the outputs."""
    last = {var: i for i, one in enumerate(jaxpr.eqns) for var in one.invars if isinstance(var, Var)}
    last |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if isinstance(var, Var)}
    live: dict[Any, float] = {}
    most = 0.0
    for i, one in enumerate(jaxpr.eqns):
        within = 1 if one.primitive.name == "shard_map" else devices  # what is inside is a device's already
        inner = [_live_stacks(j, within) for j in jaxprs_in_params(one.params)]
        most = max(most, sum(live.values()) + max((peak for peak, _ in inner), default=0.0))
        made = _stacked(one, devices) if one.primitive.name == "scan" else inner[0][1] if len(inner) == 1 else []
        if len(made) == len(one.outvars):
            live |= {var: size for var, size in zip(one.outvars, made, strict=True) if size and var in last}
        most = max(most, sum(live.values()))
        live = {var: size for var, size in live.items() if last[var] > i}
    return most, [live.get(var, 0.0) if isinstance(var, Var) else 0.0 for var in jaxpr.outvars]


def _stacked(loop: JaxprEqn, devices: int) -> list[float]:
    """Return the bytes of a device that each of a scan's results takes if it has an axis more than what a turn gives.

    JAX's versions name a scan's parameters differently, so that it is told from the shapes.
    """
    (body,) = jaxprs_in_params(loop.params)
    results = [cast(ShapedArray, var.aval) for var in loop.outvars]
    turns = [cast(ShapedArray, var.aval) for var in body.outvars]
    return [
        x.size * x.dtype.itemsize / devices if x.ndim > turn.ndim else 0.0
        for x, turn in zip(results, turns, strict=True)
    ]


def least_bytes(state: PyTree, *rest: PyTree, stacked: float = 0.0) -> float:
    """Return the bytes of a device without which a step cannot run: what it takes, and the gradients.

    Args:
      stacked: what its loops' results take together, the layers' gradients among them (`stacked_bytes`).
    """
    return _shard_bytes((state, rest)) + max(_shard_bytes(state.params), stacked)


def _shard_bytes(tree: PyTree) -> int:
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.ShapeDtypeStruct | jax.Array)]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


@dataclasses.dataclass(frozen=True)
class TrainingShape:
    """What the memory of a training depends on besides its model.

    Attributes:
      tokens: of a microbatch.
      members: of the population.
      rank: of the adapters that train in place of the matrices, which are there once then; 0 for none.
      width: bytes of a number that trains.
      logits: tokens whose logits exist at a time.
    """

    tokens: int
    members: int
    rank: int = 0
    width: int = 4
    logits: int = 0


def least_training(cfg: TransformerConfig, shape: TrainingShape) -> int:
    """Return bytes, of all devices together, without which a transformer cannot train; from sizes alone.

    Counted are the matrices with their two moments and gradients, and of one member the tokens, one layer's input and
    the logits.
    """
    layer = 2 * cfg.hidden * cfg.head_dim * (cfg.heads + cfg.kv_heads) + 3 * cfg.hidden * cfg.mlp
    matrices = cfg.layers * layer + cfg.vocab * cfg.hidden
    trained = 2 * matrices if shape.rank else 4 * shape.width * shape.members * matrices
    return trained + shape.tokens * (12 + 2 * cfg.hidden) + 2 * shape.logits * cfg.vocab


def installed(device: jax.Device) -> int:
    """Return the bytes that a device has, free or not; on a CPU, its part of the host's."""
    return _bytes(device, "MemTotal")


def capacity(device: jax.Device) -> int:
    """Return the bytes that programs may take on a device; on a CPU, its part of what the host has free."""
    return _bytes(device, "MemAvailable")


def _bytes(device: jax.Device, host_key: str) -> int:
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(host_key))
    return int(line.split()[1]) * 1024 // jax.local_device_count()
