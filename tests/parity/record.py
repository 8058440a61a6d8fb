"""Record the logits of Hugging Face's models on random weights, for tests/test_model.py to hold this model against.

    python -m tests.parity.record [NAME ...]    # from the repository root; needs the [parity] extra

Weights are drawn from a seed with NumPy, so a recording holds only a config, tokens and logits. Run this again after
changing `CASES` or `draw`. Everything up to "Hugging Face" below works without torch.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from distill_jax.interop.families import FAMILIES, family_of, to_json
from distill_jax.interop.hugging_face import tensors
from distill_jax.models import transformer
from distill_jax.models.transformer_config import TransformerConfig

RECORDINGS = pathlib.Path(__file__).parents[1] / "recordings"

# Head width differs from hidden / heads everywhere.
GROUPED = TransformerConfig(
    vocab=67, layers=3, hidden=48, mlp=80, heads=4, kv_heads=2, head_dim=16, query_scale=16, sliding_window=4096
)
WIDE = dataclasses.replace(GROUPED, layers=2, hidden=32, heads=8, kv_heads=4, head_dim=6, query_scale=8, rope_theta=500)
WINDOW = dataclasses.replace(GROUPED, layers=4, sliding_window=5)
LLAMA = TransformerConfig(
    vocab=71,
    layers=3,
    hidden=48,
    mlp=80,
    heads=6,
    kv_heads=2,
    head_dim=8,
    query_scale=8,
    attention_softcap=0.0,
    final_softcap=0.0,
    sliding_window=0,
    rope_theta=5000.0,
    rope_scaling=(8.0, 1.0, 4.0, 12.0),  # the three bands of frequencies within a width of 8
    activation="silu",
    post_norms=False,
    scale_embedding=False,
    tied=False,
    norm_eps=1e-5,
)
GEMMA3 = dataclasses.replace(
    WINDOW,
    layers=7,  # five local, one global, one local
    query_scale=20,
    attention_softcap=0.0,
    final_softcap=0.0,
    global_every=6,
    rope_theta=5000.0,
    rope_scaling=(3.0,),
    local_rope_theta=100.0,
    qk_norm=True,
)
QWEN3 = dataclasses.replace(LLAMA, head_dim=12, query_scale=12, rope_scaling=(), tied=True, norm_eps=1e-6, qk_norm=True)
QWEN2 = dataclasses.replace(LLAMA, rope_scaling=(), norm_eps=1e-6, qkv_bias=True)
QWEN2_WINDOW = dataclasses.replace(QWEN2, layers=4, sliding_window=5, global_every=0, global_first=2)
MISTRAL = dataclasses.replace(LLAMA, rope_scaling=(), sliding_window=5, global_every=0)
ONE_KEY_VALUE_HEAD = {"kv_heads": 1, "tied": False}

# name: (config, the segments of each row as (number, length) runs); number 0 is padding.
CASES: dict[str, tuple[TransformerConfig, list[list[tuple[int, int]]]]] = {
    "gemma2_grouped_4_2": (GROUPED, [[(1, 14)], [(1, 14)]]),
    "gemma2_grouped_8_4": (WIDE, [[(1, 14)], [(1, 14)]]),
    "gemma2_window": (WINDOW, [[(1, 16)], [(1, 16)]]),
    "gemma2_left_padded": (WINDOW, [[(0, 7), (1, 9)], [(0, 2), (1, 14)]]),
    "gemma2_right_padded": (WINDOW, [[(1, 9), (0, 7)], [(1, 14), (0, 2)]]),
    "gemma2_packed": (WINDOW, [[(1, 7), (2, 9)], [(1, 10), (2, 4), (0, 2)]]),
    "llama3_untied": (LLAMA, [[(1, 40)], [(1, 40)]]),
    "llama3_tied": (dataclasses.replace(LLAMA, tied=True, rope_scaling=(), kv_heads=1), [[(0, 5), (1, 9)], [(1, 14)]]),
    "llama3_packed": (LLAMA, [[(1, 7), (2, 9)], [(1, 10), (2, 4), (0, 2)]]),
    "gemma2_untied": (dataclasses.replace(WINDOW, **ONE_KEY_VALUE_HEAD), [[(1, 16)], [(1, 9), (0, 7)]]),
    "gemma3_grouped": (GEMMA3, [[(1, 16)], [(1, 16)]]),
    "gemma3_untied": (dataclasses.replace(GEMMA3, **ONE_KEY_VALUE_HEAD), [[(0, 7), (1, 9)], [(1, 14), (0, 2)]]),
    "gemma3_packed": (GEMMA3, [[(1, 7), (2, 9)], [(1, 10), (2, 4), (0, 2)]]),
    "qwen3_tied": (QWEN3, [[(1, 14)], [(1, 14)]]),
    "qwen3_untied": (dataclasses.replace(QWEN3, **ONE_KEY_VALUE_HEAD), [[(0, 7), (1, 9)], [(1, 14), (0, 2)]]),
    "qwen3_packed": (QWEN3, [[(1, 7), (2, 9)], [(1, 10), (2, 4), (0, 2)]]),
    "qwen2_tied": (dataclasses.replace(QWEN2, tied=True), [[(1, 14)], [(1, 14)]]),
    "qwen2_untied": (dataclasses.replace(QWEN2, **ONE_KEY_VALUE_HEAD), [[(0, 7), (1, 9)], [(1, 14), (0, 2)]]),
    "qwen2_packed": (QWEN2, [[(1, 7), (2, 9)], [(1, 10), (2, 4), (0, 2)]]),
    "qwen2_window": (QWEN2_WINDOW, [[(0, 3), (1, 13)], [(1, 14), (0, 2)]]),
    "mistral_window": (MISTRAL, [[(1, 16)], [(1, 16)]]),
    "mistral_padded": (dataclasses.replace(MISTRAL, **ONE_KEY_VALUE_HEAD), [[(0, 3), (1, 13)], [(1, 14), (0, 2)]]),
    "mistral_packed": (MISTRAL, [[(1, 7), (2, 9)], [(1, 10), (2, 4), (0, 2)]]),
    "gemma2_unwindowed": (dataclasses.replace(GROUPED, sliding_window=0), [[(0, 3), (1, 13)], [(1, 14), (0, 2)]]),
    "gemma3_unwindowed": (dataclasses.replace(GEMMA3, layers=3, sliding_window=0), [[(1, 14)], [(1, 14)]]),
}


def draw(cfg: TransformerConfig, seed: int) -> Any:
    """Return fp32 weights [the tree of `transformer.init`] wide enough for softcaps to bite, narrower without them.

    RandomState, unlike Generator, promises the same stream in every version of NumPy.
    """
    rng = np.random.RandomState(seed)
    std = {"query": 0.6, "key_value": 0.6, "embedding": 2.5} if cfg.final_softcap else {"unembedding": 0.5}
    shapes = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))

    def leaf(path, shape):
        return (std.get(path[-1].key, 0.3) * rng.standard_normal(shape.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def lay_out(rows: list[list[tuple[int, int]]], vocab: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random tokens [B, T], at padding too, and segments [B, T] from each row's (number, length) runs."""
    segments = np.array([np.concatenate([[number] * length for number, length in row]) for row in rows])
    return np.random.RandomState(seed).randint(0, vocab, segments.shape), segments


# Hugging Face


def to_hugging_face(cfg: TransformerConfig, params: Any, gradients: bool = False) -> dict[str, np.ndarray]:
    """Rename and reshape our parameters (or their gradients) to theirs."""
    above = FAMILIES[family_of(cfg)].norm_offset if gradients else 0  # what is added to a norm's weight has no gradient
    return {name: np.array(w - above if name.endswith("norm.weight") else w) for name, w in tensors(cfg, params)}


def hugging_face(cfg: TransformerConfig, params: Any):
    """Return the model of transformers that has our config and weights, in fp32 and with eager attention."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    # With a padding token torch drops the gradient of that token's embedding.
    config = AutoConfig.for_model(**to_json(cfg), pad_token_id=None)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    state = {name: torch.from_numpy(w) for name, w in to_hugging_face(cfg, params).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if cfg.tied else set()), (missing, unexpected)
    return model


def hugging_face_logits(model, tokens: np.ndarray, segments: np.ndarray):
    """Return torch logits [B, T, V], zero at padding.

    Padded rows go through `attention_mask`; each segment of a packed row is run by itself.
    """
    import torch

    ids, mask = torch.from_numpy(tokens), torch.from_numpy(segments)
    if segments.max() == 1:
        return model(ids, attention_mask=mask, use_cache=False).logits * mask[..., None]
    logits = torch.zeros(*tokens.shape, model.config.vocab_size)
    for row in range(len(tokens)):
        for number in range(1, segments[row].max() + 1):
            here = mask[row] == number
            logits[row, here] = model(ids[row, here][None], use_cache=False).logits[0]
    return logits


def main() -> None:
    """Write a recording of every case, or of those that are named."""
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    for seed, (name, (cfg, rows)) in enumerate(CASES.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        params = draw(cfg, seed)
        tokens, segments = lay_out(rows, cfg.vocab, seed)
        with torch.no_grad():
            logits = hugging_face_logits(hugging_face(cfg, params), tokens, segments).numpy()
        np.savez_compressed(
            RECORDINGS / f"{name}.npz",
            config=json.dumps(dataclasses.asdict(cfg)),
            versions=json.dumps(versions),
            seed=seed,
            tokens=tokens.astype(np.uint8),
            segments=segments.astype(np.uint8),
            logits=logits,
        )
        error = np.abs(np.asarray(transformer.apply(cfg, params, tokens, segments)) - logits)[segments > 0].max()
        print(f"{name:20} logits up to {np.abs(logits).max():.2f}, max |ours - theirs| = {error:.1e}")


if __name__ == "__main__":
    main()
