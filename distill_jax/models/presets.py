"""Model shapes by name.

The first four are the random-init models of "Distillation Robustifies Unlearning" (arXiv 2506.06278): Gemma 2 scaled
down, its 256,000-token vocabulary kept. They divide attention logits by sqrt(256) whatever their head width, as the
authors' code does. "cpu" is for tests and for a first look on a laptop: bytes for tokens, seconds per run.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from distill_jax.models.transformer_config import TransformerConfig

PRESETS: dict[str, TransformerConfig] = {
    "gemma-0.1b": TransformerConfig(
        vocab=256_000, layers=14, hidden=320, mlp=1280, heads=8, kv_heads=4, head_dim=128, query_scale=256.0
    ),
    "gemma-0.3b": TransformerConfig(
        vocab=256_000, layers=14, hidden=768, mlp=3072, heads=8, kv_heads=4, head_dim=128, query_scale=256.0
    ),
    "gemma-0.6b": TransformerConfig(
        vocab=256_000, layers=18, hidden=1024, mlp=4096, heads=8, kv_heads=4, head_dim=256, query_scale=256.0
    ),
    "gemma-0.9b": TransformerConfig(
        vocab=256_000, layers=22, hidden=1280, mlp=5120, heads=8, kv_heads=4, head_dim=256, query_scale=256.0
    ),
    "gemma-2-2b": TransformerConfig(
        vocab=256_000, layers=26, hidden=2304, mlp=9216, heads=8, kv_heads=4, head_dim=256, query_scale=256.0
    ),
    "gemma-2-9b": TransformerConfig(
        vocab=256_000, layers=42, hidden=3584, mlp=14_336, heads=16, kv_heads=8, head_dim=256, query_scale=256.0
    ),
    "llama-3.3-70b": TransformerConfig(
        vocab=128_256,
        layers=80,
        hidden=8192,
        mlp=28_672,
        heads=64,
        kv_heads=8,
        head_dim=128,
        query_scale=128.0,
        attention_softcap=0.0,
        final_softcap=0.0,
        sliding_window=0,
        rope_theta=500_000.0,
        rope_scaling=(8.0, 1.0, 4.0, 8192.0),
        activation="silu",
        post_norms=False,
        scale_embedding=False,
        tied=False,
        norm_eps=1e-5,
    ),
    "qwen3-14b": TransformerConfig(
        vocab=151_936,
        layers=40,
        hidden=5120,
        mlp=17_408,
        heads=40,
        kv_heads=8,
        head_dim=128,
        query_scale=128.0,
        attention_softcap=0.0,
        final_softcap=0.0,
        sliding_window=0,
        rope_theta=1_000_000.0,
        qk_norm=True,
        activation="silu",
        post_norms=False,
        scale_embedding=False,
        tied=False,
    ),
    "smollm2-135m": TransformerConfig(
        vocab=49_152,
        layers=30,
        hidden=576,
        mlp=1536,
        heads=9,
        kv_heads=3,
        head_dim=64,
        query_scale=64.0,
        attention_softcap=0.0,
        final_softcap=0.0,
        sliding_window=0,
        rope_theta=100_000.0,
        activation="silu",
        post_norms=False,
        scale_embedding=False,
        norm_eps=1e-5,
    ),
    # 1/sqrt(D) rather than 0.02: at this width the smaller one needs several times the steps to learn anything.
    "cpu": TransformerConfig(
        vocab=256,
        layers=2,
        hidden=64,
        mlp=256,
        heads=4,
        kv_heads=2,
        head_dim=16,
        query_scale=16.0,
        unroll=2,
        init_std=0.125,
    ),
}


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"unknown {kind} {name!r}: did you mean {near!r}? Known: {', '.join(known)}"


def preset(name: str, **overrides: Any) -> TransformerConfig:
    """Return the model called `name` with some fields replaced.

    Raises:
      ValueError: for an unknown model or field, naming the nearest known one.
    """
    if name not in PRESETS:
        raise ValueError(_unknown("model preset", name, PRESETS))
    fields = [field.name for field in dataclasses.fields(TransformerConfig)]
    for key in overrides:
        if key not in fields:
            raise ValueError(_unknown("model field", f"model.{key}", [f"model.{field}" for field in fields]))
    return dataclasses.replace(PRESETS[name], **overrides)
