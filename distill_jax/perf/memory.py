"""What a compiled program needs of memory, by the compiler's own account; nothing is allocated or run."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distill_jax.losses.chunked import over_tokens
from distill_jax.losses.distill import Divergence
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
