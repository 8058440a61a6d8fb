"""The families of Hugging Face models that this decoder computes, as data: what tells them apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from distill_jax.types import JsonObject

# Our field <- key of config.json.
KEYS = {
    "vocab": "vocab_size",
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "mlp": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
    "tied": "tie_word_embeddings",
}
GEMMA_KEYS = {
    **KEYS,
    "query_scale": "query_pre_attn_scalar",
    "final_softcap": "final_logit_softcapping",
    "sliding_window": "sliding_window",
}
WINDOW_KEYS = {**KEYS, "sliding_window": "sliding_window"}
GEMMA: dict[str, str | float] = {"activation": "gelu", "post_norms": True, "scale_embedding": True, "qkv_bias": False}
PLAIN: dict[str, str | float] = {
    "activation": "silu",
    "post_norms": False,
    "scale_embedding": False,
    "attention_softcap": 0.0,
    "final_softcap": 0.0,
    "local_rope_theta": 0.0,
}
# Keys that may be left out, and what that means to transformers; None: it follows from other keys.
OPTIONAL = {
    "num_key_value_heads": None,
    "head_dim": None,
    "initializer_range": 0.02,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
GEMMA3_OPTIONAL = {  # inside a multimodal config, whatever is as in the 4B model
    **OPTIONAL,
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "final_logit_softcapping": None,
    "sliding_window": 4096,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "tie_word_embeddings": True,
}
# What is no part of a decoder but goes with it, and what it is to transformers where config.json does not say.
NO_FACTS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
GEMMA_FACTS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
LLAMA_FACTS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
WRAPPERS = {"gemma3": "gemma3_text"}  # multimodal models, and the family of their text part


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    Attributes:
      architecture: the class that config.json names.
      fixed: fields of TransformerConfig that all its models share.
      keys: our field <- key of config.json.
      optional: keys that may be left out, and what that means.
      only: keys that this decoder knows one value of; left out, they have it.
      facts: keys that are no part of the decoder, and what they are where config.json does not say.
      period: one layer in so many is global where config.json does not say; 0: it has other keys for that.
      names_period: whether config.json may name the period.
      all_alike: whether all layers see the window.
      norm_offset: what the weights of its norms are above ours, which act as 1 + scale.
    """

    architecture: str
    fixed: Mapping[str, str | float]
    keys: Mapping[str, str]
    optional: JsonObject
    only: JsonObject
    facts: JsonObject
    period: int = 0
    names_period: bool = False
    all_alike: bool = False
    norm_offset: int = 0


FAMILIES = {
    "gemma2": Family(
        "Gemma2ForCausalLM",
        fixed={**GEMMA, "qk_norm": False, "local_rope_theta": 0.0},
        keys={**GEMMA_KEYS, "attention_softcap": "attn_logit_softcapping"},
        optional={**OPTIONAL, "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True},
        only={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
        facts={**GEMMA_FACTS, "max_position_embeddings": 8192},
        period=2,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        fixed={**GEMMA, "qk_norm": True, "attention_softcap": 0.0},
        keys={**GEMMA_KEYS, "local_rope_theta": "rope_local_base_freq"},
        optional=GEMMA3_OPTIONAL,
        only={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "attn_logit_softcapping": None},
        facts={**GEMMA_FACTS, "max_position_embeddings": 131_072},
        period=6,
        names_period=True,
    ),
    "llama": Family(
        "LlamaForCausalLM",
        fixed={**PLAIN, "qk_norm": False, "qkv_bias": False, "sliding_window": 0},
        keys=KEYS,
        optional=OPTIONAL,
        only={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        facts={**LLAMA_FACTS, "max_position_embeddings": 2048},
        norm_offset=1,
    ),
    "mistral": Family(
        "MistralForCausalLM",
        fixed={**PLAIN, "qk_norm": False, "qkv_bias": False},
        keys=WINDOW_KEYS,
        optional={**OPTIONAL, "num_key_value_heads": 8, "sliding_window": 4096},
        only={"hidden_act": "silu"},
        facts={**LLAMA_FACTS, "max_position_embeddings": 131_072},
        all_alike=True,
        norm_offset=1,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        fixed={**PLAIN, "qk_norm": False, "qkv_bias": True},
        keys=WINDOW_KEYS,
        optional={**OPTIONAL, "num_key_value_heads": 32, "sliding_window": 4096},
        only={"hidden_act": "silu"},
        facts={**NO_FACTS, "max_position_embeddings": 32_768},
        norm_offset=1,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        fixed={**PLAIN, "qk_norm": True, "qkv_bias": False},
        keys=WINDOW_KEYS,
        optional={**OPTIONAL, "num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096},
        only={"hidden_act": "silu", "attention_bias": False},
        facts={**NO_FACTS, "max_position_embeddings": 32_768},
        norm_offset=1,
    ),
}
