"""config.json of Hugging Face models <-> TransformerConfig: what tells the families apart, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.config import ConfigError, check, nearest
from distill_jax.interop import rotary
from distill_jax.interop.rotary import GLOBAL, LOCAL
from distill_jax.interop.values import NULLABLE, OBJECT, VALUES, brief, check_values
from distill_jax.models.transformer import TransformerConfig, local_layers

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
GEMMA = {"activation": "gelu", "post_norms": True, "scale_embedding": True, "qkv_bias": False}
PLAIN = {
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
# transformers builds the mask of a window in Gemma though no layer has one: as wide as no context is.
UNREACHED = 2**20
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
      all_alike: whether all layers see the window.
      norm_offset: what the weights of its norms are above ours, which act as 1 + scale.
    """

    architecture: str
    fixed: Mapping[str, Any]
    keys: Mapping[str, str]
    optional: Mapping[str, Any]
    only: Mapping[str, Any]
    facts: Mapping[str, Any]
    period: int = 0
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
    if family.all_alike and cfg.sliding_window:
        fixed |= {"global_every": 0, "global_first": 0}
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
    if "sliding_window" in config and not family.all_alike:
        config |= _window_keys(cfg, family)
    return {"architectures": [family.architecture], "model_type": name, **family.only, **config, **rotary.write(cfg)}


def _window_keys(cfg: TransformerConfig, family: Family) -> dict[str, Any]:
    """Return the keys that say which layers see a window of how much."""
    window, periodic = cfg.sliding_window, cfg.sliding_window > 0 and cfg.global_every > 0
    kinds = {"layer_types": [LOCAL if local else GLOBAL for local in local_layers(cfg)]}
    if family.period:
        shown = cfg.global_every if periodic else cfg.layers + 1 if window else 1
        return {**kinds, "sliding_window": window or UNREACHED, "sliding_window_pattern": shown}
    first = cfg.global_first if window and not periodic else cfg.layers
    return {**kinds, "use_sliding_window": window > 0, "max_window_layers": first}


def text_part(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return the config of a decoder: the file's own, or its text part's in a multimodal model's.

    Raises:
      ConfigError: for a text part of a model that none is known of.
    """
    part = config.get("text_config")
    if part is None:
        return config
    check_values(config, where, {"text_config": OBJECT}, nullable=False)
    outer = str(config.get("model_type"))
    known = f"only the text part of {', '.join(WRAPPERS)} is supported"
    check(outer in WRAPPERS, f"{where}: model_type = {outer!r} with a text_config: {known}")
    tied = {key: part.get(key, config.get(key, True)) for key in ("tie_word_embeddings",)}
    agree = config.get("tie_word_embeddings", True) == tied["tie_word_embeddings"]
    check(agree, f"{where}: tie_word_embeddings differs between the model and its text_config; make them agree")
    return {"model_type": WRAPPERS[outer], **part, **tied}


def facts_of(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what is no part of the decoder but goes with it, as transformers takes it.

    What a multimodal model's config says of itself comes before its text part, and that before the family's default.
    """
    part = text_part(config, where)
    family = FAMILIES[str(part["model_type"])]
    outer = {key: config[key] for key in family.facts if config.get(key) is not None}
    return {key: outer.get(key, part.get(key, default)) for key, default in family.facts.items()}


def from_json(config: Mapping[str, Any], where: str) -> tuple[str, TransformerConfig]:
    """Return the family that a config.json is of, and its decoder.

    Args:
      where: the file, for errors.

    Raises:
      ConfigError: for an architecture, or a feature of one, that this decoder does not have, naming the key.
    """
    config = text_part(config, where)
    name = str(config.get("model_type"))
    mend = f"; there are {', '.join(FAMILIES)}"
    check(name in FAMILIES, f"{where}: model_type = {brief(name)}: unknown architecture{nearest(name, FAMILIES)}{mend}")
    family = FAMILIES[name]
    forbidden = {"quantization_config": None, "use_bidirectional_attention": False, "partial_rotary_factor": 1.0}
    for key, value in {**family.only, **forbidden}.items():
        given = config.get(key, value)
        check(given in (value, None), f"{where}: {key} = {brief(given)}: only {value!r} is supported")
    check_values(config, where, VALUES, nullable=False)
    check_values(config, where, NULLABLE, nullable=True)
    try:
        return name, TransformerConfig(**_fields(config, family, where))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from error


def _fields(config: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for field, key in family.keys.items():
        check(key in config or key in family.optional, f"{where}: {key} is missing")
        fields[field] = config.get(key, family.optional.get(key))
    fields["kv_heads"] = fields["kv_heads"] or fields["heads"]
    fields["head_dim"] = fields["head_dim"] or fields["hidden"] // fields["heads"]
    fields["query_scale"] = float(fields.get("query_scale", fields["head_dim"]))
    for field in {"attention_softcap", "final_softcap"} & fields.keys():
        fields[field] = fields[field] or 0
    base = family.optional["rope_theta"], family.optional.get("rope_local_base_freq")
    fields |= {**rotary.read(config, *base, where), **family.fixed}
    if "sliding_window" not in family.fixed:
        fields |= _windows(config, family, fields["layers"], fields["sliding_window"], where)
    return fields


def _windows(config: Mapping[str, Any], family: Family, layers: int, window: int | None, where: str) -> dict[str, int]:
    """Return which layers see how wide a window, as fields: config.json lists every layer's kind, or has a rule."""
    if family.period:
        rule = layer_types(layers, config.get("sliding_window_pattern") or family.period)
    else:
        used = window is not None and (family.all_alike or bool(config.get("use_sliding_window")))
        window = window if used else None
        first = 0 if family.all_alike else config.get("max_window_layers", 28)
        rule = layer_types(layers, 0, first) if used else [GLOBAL] * layers
    kinds = config.get("layer_types") or rule
    ignored = "this architecture has one kind of layer; leave it out"
    check(not family.all_alike or kinds == rule, f"{where}: layer_types = {brief(kinds)}: {ignored}")
    if set(kinds) == {GLOBAL} and len(kinds) == layers:
        return {"sliding_window": 0}
    also = "" if family.period or family.all_alike else " (and use_sliding_window)"
    mend = f"a layer of kind sliding_attention sees at least 1 token; set it{also}, or layer_types to full_attention"
    check(bool(window), f"{where}: sliding_window = {window}: {mend}")
    return {"sliding_window": int(window or 0), **_pattern(kinds, layers, family.period, where)}


def _pattern(kinds: Sequence[str], layers: int, period: int, where: str) -> dict[str, int]:
    """Return the fields that give this pattern of layers."""
    every = kinds.index(GLOBAL) + 1 if GLOBAL in kinds else period
    first = kinds.index(LOCAL) if LOCAL in kinds else layers
    for one in ({"global_every": every, "global_first": 0}, {"global_every": 0, "global_first": first}):
        if list(kinds) == layer_types(layers, one["global_every"], one["global_first"]):
            return one
    mend = "one global layer in so many, the last of each group, or global ones before local ones, is supported"
    raise ConfigError(f"{where}: layer_types = {brief(kinds)}: {mend}, a kind for each of {layers} layers")


def layer_types(layers: int, every: int, first: int = 0) -> list[str]:
    """Return every layer's kind: the first are global, and the last of every so many (0: no other)."""
    return [GLOBAL if i < first or (every and not (i + 1) % every) else LOCAL for i in range(layers)]
