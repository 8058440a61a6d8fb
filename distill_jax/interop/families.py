"""config.json of Hugging Face models <-> TransformerConfig, by the table of families."""

from __future__ import annotations

from distill_jax.config import ConfigError, check, nearest
from distill_jax.interop import rotary, windows
from distill_jax.interop.family_table import FAMILIES, WRAPPERS, Family
from distill_jax.interop.values import NULLABLE, OBJECT, VALUES, brief, check_values
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.types import JsonObject


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


def to_json(cfg: TransformerConfig) -> JsonObject:
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
        config |= windows.write(cfg, family)
    return {"architectures": [family.architecture], "model_type": name, **family.only, **config, **rotary.write(cfg)}


def text_part(config: JsonObject, where: str) -> JsonObject:
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


def facts_of(config: JsonObject, where: str) -> JsonObject:
    """Return what is no part of the decoder but goes with it, as transformers takes it.

    What a multimodal model's config says of itself comes before its text part, and that before the family's default.
    """
    part = text_part(config, where)
    family = FAMILIES[str(part["model_type"])]
    outer = {key: config[key] for key in family.facts if config.get(key) is not None}
    return {key: outer.get(key, part.get(key, default)) for key, default in family.facts.items()}


def from_json(config: JsonObject, where: str) -> tuple[str, TransformerConfig]:
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


def _fields(config: JsonObject, family: Family, where: str) -> JsonObject:
    fields: JsonObject = {}
    for field, key in family.keys.items():
        check(key in config or key in family.optional, f"{where}: {key} is missing")
        fields[field] = config.get(key, family.optional.get(key))
    fields["kv_heads"] = fields["kv_heads"] or fields["heads"]
    fields["head_dim"] = fields["head_dim"] or fields["hidden"] // fields["heads"]
    fields["query_scale"] = float(fields["query_scale"] if "query_scale" in fields else fields["head_dim"])
    for field in {"attention_softcap", "final_softcap"} & fields.keys():
        fields[field] = fields[field] or 0
    base = family.optional["rope_theta"], family.optional.get("rope_local_base_freq")
    fields |= {**rotary.read(config, *base, where), **family.fixed}
    if "sliding_window" not in family.fixed:
        fields |= windows.read(config, family, fields["layers"], fields["sliding_window"], where)
    return fields
