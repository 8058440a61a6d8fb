"""config.json of Hugging Face models <-> TransformerConfig: what tells the four families apart, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from distill_jax.config import ConfigError, check, nearest
from distill_jax.models.transformer import TransformerConfig

LOCAL, GLOBAL = "sliding_attention", "full_attention"

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
GEMMA = {"activation": "gelu", "post_norms": True, "scale_embedding": True}
PLAIN = {
    "activation": "silu",
    "post_norms": False,
    "scale_embedding": False,
    "attention_softcap": 0.0,
    "final_softcap": 0.0,
    "sliding_window": 0,
    "local_rope_theta": 0.0,
}
# Keys that may be left out, and what that means; None: it follows from other keys.
OPTIONAL = {"num_key_value_heads": None, "head_dim": None, "initializer_range": 0.02, "rope_theta": 10_000.0}
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
# Kinds of rotary embedding, and the keys that make up TransformerConfig.rope_scaling, whose length tells the kind.
STRETCHES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    Attributes:
      architecture: the class that config.json names.
      fixed: fields of TransformerConfig that all its models share.
      keys: our field <- key of config.json.
      optional: keys that may be left out, and what that means.
      only: keys that this decoder knows one value of; left out, they have it.
      period: one layer in so many is global where config.json does not say; 0: all are.
      norm_offset: what the weights of its norms are above ours, which act as 1 + scale.
    """

    architecture: str
    fixed: Mapping[str, Any]
    keys: Mapping[str, str]
    optional: Mapping[str, Any]
    only: Mapping[str, Any]
    period: int = 0
    norm_offset: int = 0


FAMILIES = {
    "gemma2": Family(
        "Gemma2ForCausalLM",
        fixed={**GEMMA, "qk_norm": False, "local_rope_theta": 0.0},
        keys={**GEMMA_KEYS, "attention_softcap": "attn_logit_softcapping"},
        optional={**OPTIONAL, "tie_word_embeddings": True},
        only={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
        period=2,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        fixed={**GEMMA, "qk_norm": True, "attention_softcap": 0.0},
        keys={**GEMMA_KEYS, "local_rope_theta": "rope_local_base_freq"},
        optional=GEMMA3_OPTIONAL,
        only={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "attn_logit_softcapping": None},
        period=6,
    ),
    "llama": Family(
        "LlamaForCausalLM",
        fixed={**PLAIN, "qk_norm": False},
        keys=KEYS,
        optional={**OPTIONAL, "tie_word_embeddings": False},
        only={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        norm_offset=1,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        fixed={**PLAIN, "qk_norm": True},
        keys=KEYS,
        optional={**OPTIONAL, "tie_word_embeddings": False},
        only={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
        norm_offset=1,
    ),
}


def family_of(cfg: TransformerConfig) -> str:
    """Return the family, a key of FAMILIES, that computes what this decoder does.

    Raises:
      ConfigError: if there is none, naming the fields that the nearest one has other values of.
    """
    wrong = {name: _strange(cfg, family) for name, family in FAMILIES.items()}
    name = min(wrong, key=lambda n: len(wrong[n]))
    check(not wrong[name], f"{', '.join(wrong[name])}: no family of transformers has it; {name} is the nearest")
    return name


def _strange(cfg: TransformerConfig, family: Family) -> list[str]:
    fixed = {**family.fixed, "query_scale": int(cfg.query_scale) if family.period else cfg.head_dim}
    return [f"model.{k} = {getattr(cfg, k)!r}" for k, value in fixed.items() if getattr(cfg, k) != value]


def to_json(cfg: TransformerConfig) -> dict[str, Any]:
    """Return the config.json of a decoder, in keys that older releases of transformers know as well.

    Raises:
      ConfigError: if no family computes what it does.
    """
    name = family_of(cfg)
    family = FAMILIES[name]
    config = {key: getattr(cfg, field) for field, key in family.keys.items()}
    for key in ("final_logit_softcapping", "attn_logit_softcapping", "sliding_window"):
        if key in config:
            config[key] = config[key] or None
    if family.period:
        config["query_pre_attn_scalar"] = int(cfg.query_scale)
        config["layer_types"] = _layer_types(cfg.layers, cfg.global_every if cfg.sliding_window else 1)
        config["sliding_window_pattern"] = cfg.global_every if cfg.sliding_window else 1
    kind = next(kind for kind, keys in STRETCHES.items() if len(keys) == len(cfg.rope_scaling))
    stretch: dict[str, Any] = dict(zip(STRETCHES[kind], cfg.rope_scaling, strict=True))
    if kind == "llama3":
        stretch["original_max_position_embeddings"] = int(cfg.rope_scaling[3])
    rope = {"rope_theta": cfg.rope_theta, "rope_scaling": {"rope_type": kind, **stretch} if stretch else None}
    return {"architectures": [family.architecture], "model_type": name, **family.only, **config, **rope}


def from_json(config: Mapping[str, Any], where: str) -> tuple[str, TransformerConfig]:
    """Return the family that a config.json is of, and its decoder.

    Args:
      where: the file, for errors.

    Raises:
      ConfigError: for an architecture, or a feature of one, that this decoder does not have, naming the key.
    """
    if "text_config" in config:  # a multimodal model: its text part
        config = {"tie_word_embeddings": config.get("tie_word_embeddings", True), **config["text_config"]}
    name = str(config.get("model_type"))
    mend = f"; there are {', '.join(FAMILIES)}"
    check(name in FAMILIES, f"{where}: model_type = {name!r}: unknown architecture{nearest(name, FAMILIES)}{mend}")
    family = FAMILIES[name]
    forbidden = {"quantization_config": None, "use_bidirectional_attention": False}
    for key, value in {**family.only, **forbidden}.items():
        given = config.get(key, value)
        check(given in (value, None), f"{where}: {key} = {given!r}: only {value!r} is supported")

    fields: dict[str, Any] = {}
    for field, key in family.keys.items():
        check(key in config or key in family.optional, f"{where}: {key} is missing")
        fields[field] = config.get(key, family.optional.get(key))
    fields["kv_heads"] = fields["kv_heads"] or fields["heads"]
    fields["head_dim"] = fields["head_dim"] or fields["hidden"] // fields["heads"]
    fields["query_scale"] = float(fields.get("query_scale", fields["head_dim"]))
    for field in {"attention_softcap", "final_softcap", "sliding_window"} & fields.keys():
        fields[field] = fields[field] or 0
    fields |= {**_rope(config, family, where), **family.fixed}
    if family.period:
        fields |= _locality(config, family, fields["layers"], where)
    try:
        return name, TransformerConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _locality(config: Mapping[str, Any], family: Family, layers: int, where: str) -> dict[str, int]:
    """Return which layers are global, as fields: config.json lists every layer's kind, or has a period, or neither."""
    period = config.get("sliding_window_pattern") or family.period
    kinds = config.get("layer_types") or _layer_types(layers, period)
    if GLOBAL in kinds:
        period = kinds.index(GLOBAL) + 1
    mend = "one global layer in so many, the last of each group, is all that is supported"
    check(list(kinds) == _layer_types(layers, period), f"{where}: layer_types = {list(kinds)}: {mend}")
    return {"global_every": period} if LOCAL in kinds else {"sliding_window": 0}


def _layer_types(layers: int, period: int) -> list[str]:
    return [LOCAL if (i + 1) % period else GLOBAL for i in range(layers)]


def _rope(config: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """Return the fields of the rotary embedding, from `rope_parameters` or from the older keys."""
    given = config.get("rope_parameters") or {}
    stretch = dict(given.get(GLOBAL, given) or config.get("rope_scaling") or {})
    older = stretch.pop("type", "default")
    kind = stretch.pop("rope_type", older)
    theta = stretch.pop("rope_theta", config.get("rope_theta", family.optional["rope_theta"]))
    keys = STRETCHES.get(kind)
    if keys is None:
        raise ConfigError(f"{where}: rope_type = {kind!r}: only {', '.join(STRETCHES)} are supported")
    takes = f"takes {', '.join(keys) or 'no settings'}, not {', '.join(stretch) or 'none'}"
    check(stretch.keys() == set(keys), f"{where}: rotary embedding of type {kind!r} {takes}")
    fields = {"rope_theta": float(theta), "rope_scaling": tuple(float(stretch[key]) for key in keys)}
    if "local_rope_theta" in family.keys:
        local = given.get(LOCAL) or {}
        kind = local.get("rope_type", "default")
        check(kind == "default", f"{where}: rope_type = {kind!r} of {LOCAL}: only 'default' is supported")
        otherwise = config.get("rope_local_base_freq", family.optional["rope_local_base_freq"])
        fields["local_rope_theta"] = float(local.get("rope_theta", otherwise))
    return fields
