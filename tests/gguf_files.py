"""GGUF files as llama.cpp's converter writes them, by the gguf package's own writer and its own names of tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

QuantType = gguf.GGMLQuantizationType
GEMMA = ("gemma2", "gemma3")
ARCHITECTURE = {"gemma3_text": "gemma3"}  # model_type -> llama.cpp's, where it differs


def permuted(w: np.ndarray, heads: int) -> np.ndarray:
    """Return query or key rows as llama.cpp wants them: neighbours turn together, not halves of a head."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def unpermuted(w: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows as they were."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def convert(directory: Path, to: Path, kind: QuantType = QuantType.F32, **metadata: Any) -> Path:
    """Convert a model in the Hugging Face layout.

    Args:
      kind: of its matrices.
      metadata: more keys (their dots as __), or others' values: a number or a text; None leaves it out.
    """
    config = json.loads((directory / "config.json").read_text())
    tensors = {k: np.float32(w) for file in directory.glob("*.safetensors") for k, w in load_file(file).items()}
    name = ARCHITECTURE.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(to, name)
    keys = described(config, name, metadata)
    for key, value in keys.items():
        add(writer, key, value)
    if name in GEMMA:
        scale_queries(tensors, config)
    factors = llama3_factors(config)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, name.upper()), config["num_hidden_layers"])
    for key, w in tensors.items():
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        if name == "llama" and key.split(".")[-2] in heads:
            w = permuted(w, heads[key.split(".")[-2]])
        if name in GEMMA and key.endswith("norm.weight"):
            w = w + 1
        put(writer, names.get_name(key, try_suffixes=(".weight", ".bias")), w, kind if w.ndim > 1 else QuantType.F32)
    return written(writer)


def written(writer: gguf.GGUFWriter) -> Path:
    """Write a file, and return its path."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return writer.path


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a value by its type in Python; None adds nothing."""
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if value is not None:
        kinds.get(type(value), writer.add_array)(key, value)


def put(writer: gguf.GGUFWriter, name: str, w: np.ndarray, kind: QuantType) -> None:
    """Add a tensor, quantised as the package does it or, where it cannot, of random numbers of that type."""
    try:
        writer.add_tensor(name, gguf.quantize(w, kind), raw_dtype=kind)
    except NotImplementedError:
        writer.add_tensor(name, random_blocks(w.shape, kind), raw_dtype=kind)


def random_blocks(shape: tuple[int, ...], kind: QuantType) -> np.ndarray:
    """Return random bytes of a type whose scales are small: a block holds them in its first or last bytes."""
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // numbers, size), np.uint8)
    scale = np.array([0.01], np.float16).view(np.uint8)
    places = {QuantType.Q6_K: [slice(-2, None)]}.get(kind, [slice(0, 2), slice(2, 4)])
    for place in places:
        blocks[..., place] = scale
    return blocks.reshape(*shape[:-1], -1)


def described(config: dict[str, Any], name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a model, with these changes."""
    rope = config.get("rope_parameters") or {}
    rope, local = (rope.get("full_attention", rope), rope.get("sliding_attention", {}))
    keys = gguf.Keys
    out = {
        keys.LLM.BLOCK_COUNT: config["num_hidden_layers"],
        keys.LLM.CONTEXT_LENGTH: config["max_position_embeddings"],
        keys.LLM.EMBEDDING_LENGTH: config["hidden_size"],
        keys.LLM.FEED_FORWARD_LENGTH: config["intermediate_size"],
        keys.Attention.HEAD_COUNT: config["num_attention_heads"],
        keys.Attention.HEAD_COUNT_KV: config["num_key_value_heads"],
        keys.Attention.LAYERNORM_RMS_EPS: float(config["rms_norm_eps"]),
        keys.Attention.KEY_LENGTH: config.get("head_dim"),
        keys.Attention.SLIDING_WINDOW: config.get("sliding_window") if name in GEMMA else None,
        keys.LLM.ATTN_LOGIT_SOFTCAPPING: config.get("attn_logit_softcapping"),
        keys.LLM.FINAL_LOGIT_SOFTCAPPING: config.get("final_logit_softcapping"),
        keys.Rope.FREQ_BASE: float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
        keys.Rope.FREQ_BASE_SWA: local.get("rope_theta"),
        keys.Rope.SCALING_TYPE: "linear" if rope.get("rope_type") == "linear" else None,
        keys.Rope.SCALING_FACTOR: rope.get("factor") if rope.get("rope_type") == "linear" else None,
    }
    return {key.format(arch=name): value for key, value in out.items()} | {
        key.replace("__", "."): value for key, value in changes.items()
    }


def scale_queries(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    """Fold into the weights what a file has no key for: queries scaled by another number than a head's width."""
    factor = np.float32(math.sqrt(config["head_dim"] / config["query_pre_attn_scalar"]))
    for key, w in tensors.items():
        if key.endswith("q_norm.weight"):
            tensors[key] = (1 + w) * factor - 1
        elif key.endswith("q_proj.weight") and config["model_type"] == "gemma2":
            tensors[key] = w * factor


def llama3_factors(config: dict[str, Any]) -> np.ndarray | None:
    """Return what llama.cpp divides each frequency by, as its converter computes it."""
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") != "llama3":
        return None
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    low, high, old = (rope[f"{k}"] for k in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    out = []
    for i in range(0, width, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / width)
        if wave < old / high:
            out.append(1.0)
        elif wave > old / low:
            out.append(rope["factor"])
        else:
            smooth = (old / wave - low) / (high - low)
            out.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(out, np.float32)
