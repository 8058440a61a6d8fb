"""Record the logits of Hugging Face's models on random weights, for tests/test_model.py to hold this model against.

    python -m tests.parity.record    # from the repository root; needs the [parity] extra

Weights are drawn from a seed with NumPy, so a recording holds only a config, tokens and logits. Run this again after
changing `CASES` or `draw`. Everything up to "Hugging Face" below works without torch.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import pathlib
from typing import Any

import jax
import numpy as np

from distill_jax.models import transformer
from distill_jax.models.transformer import TransformerConfig

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
    """Rename and reshape our parameters (or their gradients) to theirs, whose matrices are [out, in]."""

    def wide(w):  # [D, N, H] -> [NH, D]
        return w.reshape(cfg.hidden, -1).T

    def norm(group):  # Llama's norms multiply with w, Gemma's and ours with 1 + w
        return group["scale"] + (not cfg.post_norms and not gradients)

    named = {"model.embed_tokens.weight": params["embedding"], "model.norm.weight": norm(params["final_norm"])}
    if not cfg.tied:
        named["lm_head.weight"] = params["unembedding"]
    for i in range(cfg.layers):
        layer = jax.tree.map(operator.itemgetter(i), params["layers"])
        attention, mlp = layer["attention"], layer["mlp"]
        here = {
            "self_attn.q_proj": wide(attention["query"]),
            "self_attn.k_proj": wide(attention["key_value"][0]),
            "self_attn.v_proj": wide(attention["key_value"][1]),
            "self_attn.o_proj": attention["output"].reshape(-1, cfg.hidden).T,
            "mlp.gate_proj": mlp["gate_up"][0].T,
            "mlp.up_proj": mlp["gate_up"][1].T,
            "mlp.down_proj": mlp["down"].T,
            "input_layernorm": norm(layer["pre_attention_norm"]),
        }
        if cfg.post_norms:
            here["post_attention_layernorm"] = norm(layer["post_attention_norm"])
            here["pre_feedforward_layernorm"] = norm(layer["pre_mlp_norm"])
            here["post_feedforward_layernorm"] = norm(layer["post_mlp_norm"])
        else:
            here["post_attention_layernorm"] = norm(layer["pre_mlp_norm"])
        named |= {f"model.layers.{i}.{name}.weight": w for name, w in here.items()}
    return {name: np.array(w) for name, w in named.items()}


def hugging_face(cfg: TransformerConfig, params: Any):
    """Return a Gemma2ForCausalLM or a LlamaForCausalLM with our weights, in fp32 and with eager attention."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": "default", "rope_theta": float(cfg.rope_theta)}
    if cfg.rope_scaling:
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        rope |= {"rope_type": "llama3", **dict(zip(names, cfg.rope_scaling, strict=True))}
        rope["original_max_position_embeddings"] = int(cfg.rope_scaling[3])
    common = dict(
        vocab_size=cfg.vocab,
        hidden_size=cfg.hidden,
        intermediate_size=cfg.mlp,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.kv_heads,
        head_dim=cfg.head_dim,
        rms_norm_eps=cfg.norm_eps,
        rope_parameters=rope,
        pad_token_id=None,  # otherwise torch drops the gradient of that token's embedding
        attn_implementation="eager",
        tie_word_embeddings=cfg.tied,
    )
    if cfg.post_norms:
        capped = {"attn_logit_softcapping": cfg.attention_softcap, "final_logit_softcapping": cfg.final_softcap}
        attention = {"query_pre_attn_scalar": int(cfg.query_scale), "sliding_window": cfg.sliding_window}
        model = Gemma2ForCausalLM(Gemma2Config(**common, **capped, **attention))
    else:
        assert cfg.query_scale == cfg.head_dim
        model = LlamaForCausalLM(LlamaConfig(**common))
    model = model.float().eval()
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
    """Write one recording a case."""
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    for seed, (name, (cfg, rows)) in enumerate(CASES.items()):
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
