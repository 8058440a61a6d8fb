"""What a program needs of memory, by the compiler's own account, and what a device has; nothing is allocated or run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.losses.chunked import over_tokens
from distill_jax.losses.distillation import Divergence
from distill_jax.models import transformer


def kl_memory(
    chunk: int,
    batch: int = 4,
    length: int = 2048,
    vocab: int = 256_000,
    hidden: int = 320,
    divergence: Divergence | None = None,
) -> dict[str, int]:
    """Return the bytes of a distillation loss and its gradients by the student's hidden states and embedding.

    Both models have a hidden state, an embedding and a softcapped head. "temporary" is what the program holds besides
    its "arguments" and its "outputs".

    Args:
      chunk: tokens whose logits exist at a time; 0 for all.
      divergence: the forward KL if None.

    Raises:
      RuntimeError: if the backend's compiler does not tell.
    """
    divergence = divergence or Divergence()
    cfg = transformer.TransformerConfig(vocab, layers=1, hidden=hidden, mlp=1, heads=1, kv_heads=1, head_dim=2)

    def loss(mine, embedding, theirs, teacher, mask):
        def of_chunk(mine, theirs, mask):
            target = jax.lax.stop_gradient(transformer.unembed(cfg, {"embedding": teacher}, theirs))
            return divergence(transformer.unembed(cfg, {"embedding": embedding}, mine), target, mask)

        return over_tokens(of_chunk, chunk, mine, theirs, mask)

    state = jax.ShapeDtypeStruct((batch, length, hidden), jnp.float32)
    table = jax.ShapeDtypeStruct((vocab, hidden), jnp.float32)
    mask = jax.ShapeDtypeStruct((batch, length), jnp.float32)
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    found = program.lower(state, table, state, table, mask).compile().memory_analysis()
    if found is None:
        raise RuntimeError(f"the {jax.default_backend()} compiler gives no account of memory; ask on the CPU")
    return {
        "chunk": chunk,
        "temporary": found.temp_size_in_bytes,
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes,
    }


def needed_bytes(compiled: Any) -> int | None:
    """Return arguments, outputs and temporaries of a compiled program on a device together, what is donated once."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    whole = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return int(whole - found.alias_size_in_bytes)


def least_bytes(state: Any, *rest: Any) -> int:
    """Return the bytes of a device without which a step cannot run: what it takes, and the gradients."""
    leaves = [x for x in jax.tree.leaves((state, state.params, rest)) if hasattr(x, "sharding")]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def least_training(
    cfg: transformer.TransformerConfig, tokens: int, members: int, *, rank: int = 0, width: int = 4, logits: int = 0
) -> int:
    """Return bytes, of all devices together, without which a transformer cannot train; from sizes alone.

    Counted are the matrices with their two moments and gradients, and of one member the tokens, one layer's input and
    the logits.

    Args:
      tokens: of a microbatch; logits: tokens whose logits exist at a time.
      rank: of the adapters that train in place of the matrices, which are there once then; 0 for none.
      width: bytes of a number that trains.
    """
    layer = 2 * cfg.hidden * cfg.head_dim * (cfg.heads + cfg.kv_heads) + 3 * cfg.hidden * cfg.mlp
    matrices = cfg.layers * layer + cfg.vocab * cfg.hidden
    trained = 2 * matrices if rank else 4 * width * members * matrices
    return trained + tokens * (12 + 2 * cfg.hidden) + 2 * logits * cfg.vocab


def installed(device: Any) -> int:
    """Return the bytes that a device has, free or not; on a CPU, its part of the host's."""
    return _bytes(device, "MemTotal")


def capacity(device: Any) -> int:
    """Return the bytes that programs may take on a device; on a CPU, its part of what the host has free."""
    return _bytes(device, "MemAvailable")


def _bytes(device: Any, of_host: str) -> int:
    told = device.memory_stats() or {}
    if "bytes_limit" in told:
        return int(told["bytes_limit"])
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(of_host))
    return int(line.split()[1]) * 1024 // jax.local_device_count()
