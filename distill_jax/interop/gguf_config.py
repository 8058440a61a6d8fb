"""Metadata of a GGUF file -> the config.json that the model had, by a table of architectures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distill_jax.config import check
from distill_jax.interop.values import brief
from distill_jax.io.gguf_header import Header, StoredTensor
from distill_jax.types import JsonObject

# Keys of config.json <- of the metadata, behind the architecture's name.
KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}
OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
}
GEMMA_KEYS = {**KEYS, "head_dim": "attention.key_length", "sliding_window": "attention.sliding_window"}
ENDS = ("eos", "eot", "eom")  # of a text, a turn, a message
HEAD = "output.weight"
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
GEMMA_LAYER = {
    **LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GLOBAL_EVERY = 6  # of Gemma 3, where its file does not say
# Llama 3's scaling of frequencies lies in the file as one factor a frequency; two of its settings never differ.
LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR = 1.0, 4.0


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures.

    Attributes:
      family: the same in transformers' words, a key of FAMILIES.
      layer: the tensors of a layer, by their names in the file.
      keys: keys of config.json that the metadata must have.
      optional: those that it may have.
      permuted: whether rows of queries and keys are reordered, for rotary embeddings of neighbouring pairs.
      norms_from_one: whether norms are stored as what they multiply with, 1 + w, where Hugging Face has w.
      mean_scaled: layers of the one model whose queries are scaled by the mean width of a head, hidden / heads, which
        no metadata say.
    """

    family: str
    layer: Mapping[str, str]
    keys: Mapping[str, str] = dataclasses.field(default_factory=lambda: KEYS)
    optional: Mapping[str, str] = dataclasses.field(default_factory=lambda: OPTIONAL)
    permuted: bool = False
    norms_from_one: bool = False
    mean_scaled: int = 0


ARCHITECTURES = {
    "llama": Architecture("llama", LAYER, permuted=True),
    "gemma2": Architecture(
        "gemma2",
        GEMMA_LAYER,
        {
            **GEMMA_KEYS,
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        norms_from_one=True,
        mean_scaled=46,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        {**GEMMA_LAYER, **QK_NORMS},
        GEMMA_KEYS,
        {
            **OPTIONAL,
            "rope_local_base_freq": "rope.freq_base_swa",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        norms_from_one=True,
        mean_scaled=62,
    ),
    "qwen2": Architecture("qwen2", LAYER),
    "qwen3": Architecture("qwen3", {**LAYER, **QK_NORMS}),
}


def config_json(path: Path, header: Header, architecture: Architecture, factors: np.ndarray | None) -> JsonObject:
    """Return the config.json of a model.

    Args:
      path: the file, for errors.
      factors: what Llama 3's rotary frequencies are divided by, if the file has that.

    Raises:
      ConfigError: naming what the metadata lack, or say that is not supported.
    """
    metadata, name = header.metadata, str(header.metadata["general.architecture"])
    config: JsonObject = {"model_type": architecture.family, "use_sliding_window": False}
    for key, theirs in architecture.keys.items():
        check(f"{name}.{theirs}" in metadata, f"{path}: {name}.{theirs} is missing; convert the model again")
        config[key] = metadata[f"{name}.{theirs}"]
    optional = {key: f"{name}.{theirs}" for key, theirs in architecture.optional.items()}
    config |= {key: metadata[theirs] for key, theirs in optional.items() if theirs in metadata}
    config |= _special_tokens(metadata)
    config |= {"vocab_size": _entries(path, header.tensors), "tie_word_embeddings": HEAD not in header.tensors}
    for key, supported in {"expert_count": 0, "split.count": 1}.items():
        key = key if "." in key else f"{name}.{key}"
        given = metadata.get(key, supported)
        check(given in (0, supported), f"{path}: {key} = {brief(given)}: only {supported} is supported")
    if architecture.norms_from_one:
        config |= _gemma(config, metadata, name, architecture)
    return config | _scaling(path, metadata, name, factors)


def _entries(path: Path, tensors: Mapping[str, StoredTensor]) -> int:
    check("token_embd.weight" in tensors, f"{path}: has no tensor token_embd.weight; name a file of a whole model")
    return tensors["token_embd.weight"].shape[0]


def _special_tokens(metadata: JsonObject) -> JsonObject:
    """Return the special tokens; several may end a text."""
    by_name = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "padding", *ENDS)}
    ends = list(dict.fromkeys(by_name[name] for name in ENDS if by_name[name] is not None))
    eos = ends if len(ends) > 1 else by_name["eos"]
    return {"bos_token_id": by_name["bos"], "eos_token_id": eos, "pad_token_id": by_name["padding"]}


def _gemma(config: JsonObject, metadata: JsonObject, name: str, architecture: Architecture) -> JsonObject:
    """Return which layers see a window, and how queries are scaled."""
    period = metadata.get(f"{name}.attention.sliding_window_pattern", GLOBAL_EVERY)
    kinds = {True: "sliding_attention", False: "full_attention"}
    pattern = {"layer_types": [kinds[bool(each)] for each in period]} if isinstance(period, list) else {}
    scalar = config["head_dim"]
    if config["num_hidden_layers"] == architecture.mean_scaled:
        scalar = config["hidden_size"] // config["num_attention_heads"]
    every = {"sliding_window_pattern": period} if name == "gemma3" and not pattern else {}
    return {"query_pre_attn_scalar": scalar, **pattern, **every}


def _scaling(path: Path, metadata: JsonObject, name: str, factors: np.ndarray | None) -> JsonObject:
    """Return how rotary frequencies are scaled."""
    kind = metadata.get(f"{name}.rope.scaling.type", "none")
    check(kind in ("none", "linear"), f"{path}: {name}.rope.scaling.type = {brief(kind)}: only linear is supported")
    if factors is not None:
        theta = metadata.get(f"{name}.rope.freq_base", 10_000.0)
        return {"rope_scaling": llama3_scaling(factors, float(theta), str(path))}
    if kind == "none":
        return {}
    return {"rope_scaling": {"rope_type": "linear", "factor": metadata.get(f"{name}.rope.scaling.factor")}}


def llama3_scaling(factors: np.ndarray, theta: float, where: str) -> JsonObject:
    """Return the settings of Llama 3's scaling that give these factors, [head_dim / 2].

    A frequency whose wave is longer than original / low is divided by `factor`, one shorter than original / high stays,
    and between them the factor is 1 / ((1 - s) / factor + s), s = (original / wave - low) / (high - low).
    """
    low, high, factor = LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR, float(factors.max())
    waves = 2 * math.pi * theta ** (np.arange(len(factors)) / len(factors))
    between = (factors > 1) & (factors < factor)
    if between.any():
        smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
        original = np.median(waves[between] * (smooth * (high - low) + low))
    else:
        original = low * waves[factors >= factor].min() if factor > 1 else waves.max()
    context = int(np.rint(original))
    given = _factors(waves, factor, low, high, context)
    unknown = "are not Llama 3's scaling, the only one that is supported"
    check(bool(np.allclose(given, factors, rtol=1e-3)), f"{where}: the factors of rope_freqs.weight {unknown}")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {"rope_type": "llama3", **dict(zip(names, (factor, low, high, context), strict=True))}


def _factors(waves: np.ndarray, factor: float, low: float, high: float, original: float) -> np.ndarray:
    smooth = np.clip((original / waves - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)
