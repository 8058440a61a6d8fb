"""What an adapter_config.json of PEFT may ask for: settings that are understood, that change nothing, or are refused.

Adapters' tensors alone do not say what they compute. A setting that is not listed here is refused unless it is off, so
that one of a later release of PEFT is not passed over.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path

from distill_jax.config import ConfigError, check
from distill_jax.interop.directory import read_object
from distill_jax.interop.values import COUNT, FLAG, NAMES, NUMBER, OBJECT, Kind, brief, check_values
from distill_jax.types import JsonObject

# They tell how adapters were made, or where they are, which their tensors show.
HARMLESS = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "lora_dropout"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"),
        *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "qalora_group_size", "runtime_config"),
    )
)
UNDERSTOOD: Mapping[str, Kind] = {
    "r": COUNT,
    "lora_alpha": NUMBER,
    "use_rslora": FLAG,
    "use_dora": FLAG,
    "rank_pattern": OBJECT,
    "alpha_pattern": OBJECT,
    "modules_to_save": NAMES,
}
# Settings of which some values are understood; null is as left out.
VALUES: Mapping[str, tuple[str, ...]] = {"peft_type": ("LORA",), "task_type": ("CAUSAL_LM",), "bias": ("none",)}
# Ways to draw adapters that leave the model's weights alone, and that take what they drew out of them.
PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva", "mica")
CONVERTIBLE_INITS = ("pissa", "olora", "corda", "lora_ga")
CONVERT = "save them again with save_pretrained(…, path_initial_model_for_weight_conversion=DIR), as plain LoRA"
MERGE = "merge them in PEFT, and import the merged model"
# Settings known to change what adapters compute.
REFUSED = {
    "alora_invocation_tokens": "the adapters act only after these tokens, which no merged weight does",
    "arrow_config": "several adapters are routed between",
    "ensure_weight_tying": "adapters to a tied head are those of the embedding",
    "fan_in_fan_out": "weights lie the other way round",
    "kasa_config": "the model's weights were cut down, and singular values stand between the factors",
    "layer_replication": "the model has other layers",
    "lora_bias": "B has a bias",
    "megatron_config": "the layers are Megatron's",
    "monteclora_config": "the adapters are sampled",
    "target_parameters": "parameters that are no layers are adapted",
    "trainable_token_indices": "single rows of the embedding were trained",
    "use_bdlora": "factors are block-diagonal",
    "use_qalora": "inputs are pooled",
    "velora_config": "tensors of its own come with the factors",
}
UNMERGEABLE = ("alora_invocation_tokens", "arrow_config")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Adapters' settings.

    Attributes:
      rank, alpha: of matrices that no pattern names.
      ranks, alphas: of matrices that do: {end of a module's name, as a regular expression: value}.
      stabilised: whether B A is multiplied with alpha / √rank in place of alpha / rank (rsLoRA, arXiv 2312.03732).
      dora: whether each output's weights have a magnitude of their own (arXiv 2402.09353).
      saved: ends of the names of modules that were trained whole.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    stabilised: bool
    dora: bool
    saved: tuple[str, ...]

    @property
    def even_alpha(self) -> float:
        """What, over the rank, B A is multiplied with, if that is the same everywhere; or 0."""
        even = not self.ranks and not self.alphas
        return self.alpha * (math.sqrt(self.rank) if self.stabilised else 1.0) if even else 0.0

    def rank_of(self, module: str) -> int:
        """Return the rank of the adapters to a module, by the name that PEFT has for it."""
        return next((rank for key, rank in self.ranks.items() if _names(key, module)), self.rank)

    def scale_of(self, module: str) -> float:
        """Return what B A is multiplied with."""
        rank = self.rank_of(module)
        alpha = next((alpha for key, alpha in self.alphas.items() if _names(key, module)), self.alpha)
        return alpha * (math.sqrt(rank) if self.stabilised else 1.0) / rank


def _names(pattern: str, module: str) -> bool:
    return _compiled(pattern).match(module) is not None


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def read_settings(path: Path) -> Settings:
    """Read an adapter_config.json.

    Raises:
      ConfigError: naming a setting that is missing, of the wrong type, or not understood.
    """
    given = {key: value for key, value in read_object(path).items() if value is not None}
    for key in ("peft_type", "r", "lora_alpha"):
        check(key in given, f"{path}: {key} is missing")
    check_values(given, str(path), UNDERSTOOD, nullable=False)
    for key, values in VALUES.items():
        value = given.get(key, values[0])
        check(value in values, f"{path}: {key} = {brief(value)}: only {', '.join(map(repr, values))} is supported")
    _check_init(given.get("init_lora_weights", True), path)
    for key, value in given.items():
        known = key in HARMLESS or key in UNDERSTOOD or key in VALUES or key == "init_lora_weights"
        why = REFUSED.get(key, "a setting that is not known here may change what the adapters compute")
        mend = "" if key in UNMERGEABLE else f"; {MERGE}"
        check(known or not value, f"{path}: {key} = {brief(value)}: {why}{mend}")
    ranks, alphas = (
        _pattern(given.get(key, {}), f"{path}: {key}", kind)
        for key, kind in (("rank_pattern", COUNT), ("alpha_pattern", NUMBER))
    )
    return Settings(
        given["r"],
        float(given["lora_alpha"]),
        ranks,
        {key: float(alpha) for key, alpha in alphas.items()},
        given.get("use_rslora", False),
        given.get("use_dora", False),
        tuple(given.get("modules_to_save", ())),
    )


def _check_init(init: object, path: Path) -> None:
    if any(init is plain or (isinstance(plain, str) and init == plain) for plain in PLAIN_INITS):
        return
    convertible = isinstance(init, str) and init.lower().startswith(CONVERTIBLE_INITS)
    why = "what they began with was taken out of the model's weights, and these adapters belong to what was left"
    if init == "loftq":
        why = "the model's weights were rounded, and these adapters belong to what was left"
    elif not convertible:
        why = "a way to begin that is not known here may have changed the model's weights"
    mend = f"{CONVERT}; or {MERGE}" if convertible else MERGE
    raise ConfigError(f"{path}: init_lora_weights = {brief(init)}: {why}; {mend}")


def _pattern(values: JsonObject, where: str, kind: Kind) -> JsonObject:
    for key, value in values.items():
        try:
            _compiled(key)
        except re.error as error:
            raise ConfigError(f"{where}: {key!r} is no regular expression ({error})") from error
        check(kind.holds(value), f"{where}: {key!r} has {brief(value)}: {kind.name} is needed")
    return values
