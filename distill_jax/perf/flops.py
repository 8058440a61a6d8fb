"""Count floating-point operations from shapes: what a computation needs, not what a compiler made of it.

A multiply-add is 2 operations; norms, softmax, activations and the embedding's gather are not counted; a backward
pass costs twice its forward; rematerialisation is not counted. Attention is counted over all T × T pairs of a
row, as it is executed.
"""

from __future__ import annotations

from distill_jax.models.transformer import TransformerConfig


def forward(cfg: TransformerConfig, rows: int, length: int, *, layers: int | None = None, head: bool = True) -> float:
    """Return the FLOPs of a forward pass over [rows, length] tokens, up to `layers`, with the head or without."""
    tokens = rows * length
    depth = cfg.layers if layers is None else layers
    attention = 2 * cfg.hidden * cfg.head_dim * (2 * cfg.heads + 2 * cfg.kv_heads)
    pairs = 4 * length * cfg.heads * cfg.head_dim
    mlp = 6 * cfg.hidden * cfg.mlp
    return float(tokens * (depth * (attention + pairs + mlp) + head * 2 * cfg.hidden * cfg.vocab))


def train_step(cfg: TransformerConfig, rows: int, length: int, *, layers: int | None = None) -> float:
    """Return the FLOPs of a forward and a backward pass."""
    return 3 * forward(cfg, rows, length, layers=layers, head=layers is None)


def decode(cfg: TransformerConfig, prompts: int, width: int, new: int) -> float:
    """Return the FLOPs of a greedy decode: the prompts' prefill, then one token at a time from the cache."""
    prefill = forward(cfg, prompts, width, head=False) + 2.0 * prompts * cfg.hidden * cfg.vocab
    one = forward(cfg, prompts, 1) + prompts * cfg.layers * 4.0 * (width + new) * cfg.heads * cfg.head_dim
    return prefill + (new - 1) * one
