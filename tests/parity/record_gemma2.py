"""Record the logits of Hugging Face's Gemma 2 on random weights, for tests/test_model.py to hold this model against.

    python -m tests.parity.record_gemma2    # from the repository root; needs the [parity] extra

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

# name: (config, the segments of each row as (number, length) runs); number 0 is padding.
CASES: dict[str, tuple[TransformerConfig, list[list[tuple[int, int]]]]] = {
    "grouped_4_2": (GROUPED, [[(1, 14)], [(1, 14)]]),
    "grouped_8_4": (WIDE, [[(1, 14)], [(1, 14)]]),
    "window": (WINDOW, [[(1, 16)], [(1, 16)]]),
    "left_padded": (WINDOW, [[(0, 7), (1, 9)], [(0, 2), (1, 14)]]),
    "right_padded": (WINDOW, [[(1, 9), (0, 7)], [(1, 14), (0, 2)]]),
    "packed": (WINDOW, [[(1, 7), (2, 9)], [(1, 10), (2, 4), (0, 2)]]),
}


def draw(cfg: TransformerConfig, seed: int) -> Any:
    """Return fp32 weights [the tree of `transformer.init`] wide enough for both softcaps to bite.

    RandomState, unlike Generator, promises the same stream in every version of NumPy.
    """
    rng = np.random.RandomState(seed)
    std = {"query": 0.6, "key_value": 0.6, "embedding": 2.5}
    shapes = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))

    def leaf(path, shape):
        return (std.get(path[-1].key, 0.3) * rng.standard_normal(shape.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def lay_out(rows: list[list[tuple[int, int]]], vocab: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random tokens [B, T], at padding too, and segments [B, T] from each row's (number, length) runs."""
    segments = np.array([np.concatenate([[number] * length for number, length in row]) for row in rows])
    return np.random.RandomState(seed).randint(0, vocab, segments.shape), segments


# Hugging Face


def to_hugging_face(cfg: TransformerConfig, params: Any) -> dict[str, np.ndarray]:
    """Rename and reshape our parameters (or their gradients) to Gemma2ForCausalLM's, whose matrices are [out, in]."""

    def wide(w):  # [D, N, H] -> [NH, D]
        return w.reshape(cfg.hidden, -1).T

    named = {"model.embed_tokens.weight": params["embedding"], "model.norm.weight": params["final_norm"]["scale"]}
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
            "input_layernorm": layer["pre_attention_norm"]["scale"],
            "post_attention_layernorm": layer["post_attention_norm"]["scale"],
            "pre_feedforward_layernorm": layer["pre_mlp_norm"]["scale"],
            "post_feedforward_layernorm": layer["post_mlp_norm"]["scale"],
        }
        named |= {f"model.layers.{i}.{name}.weight": w for name, w in here.items()}
    return {name: np.array(w) for name, w in named.items()}


def hugging_face(cfg: TransformerConfig, params: Any):
    """Return a Gemma2ForCausalLM with our weights, in fp32 and with eager attention."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=cfg.vocab,
        hidden_size=cfg.hidden,
        intermediate_size=cfg.mlp,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.kv_heads,
        head_dim=cfg.head_dim,
        query_pre_attn_scalar=int(cfg.query_scale),
        attn_logit_softcapping=cfg.attention_softcap,
        final_logit_softcapping=cfg.final_softcap,
        sliding_window=cfg.sliding_window,
        rms_norm_eps=cfg.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": float(cfg.rope_theta)},
        pad_token_id=None,  # otherwise torch drops the gradient of that token's embedding
        attn_implementation="eager",
    )
    model = Gemma2ForCausalLM(config).float().eval()
    state = {name: torch.from_numpy(w) for name, w in to_hugging_face(cfg, params).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)  # the head is tied
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
            RECORDINGS / f"gemma2_{name}.npz",
            config=json.dumps(dataclasses.asdict(cfg)),
            versions=json.dumps(versions),
            seed=seed,
            tokens=tokens.astype(np.uint8),
            segments=segments.astype(np.uint8),
            logits=logits,
        )
        error = np.abs(np.asarray(transformer.apply(cfg, params, tokens, segments)) - logits)[segments > 0].max()
        print(f"{name:14} logits up to {np.abs(logits).max():.2f}, max |ours - theirs| = {error:.1e}")


if __name__ == "__main__":
    main()
