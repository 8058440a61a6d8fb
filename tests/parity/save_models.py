"""Save small random models as transformers and PEFT do, with their logits, for tests/test_interop.py to import.

    python -m tests.parity.save_models [NAME ...]    # from the repository root; needs the [parity] extra

Each directory of tests/recordings/models is what `save_pretrained` writes, and expected.npz: tokens and attention mask
[B, T], logits [B, T, V] (zero at padding). Each of tests/recordings/adapters is what PEFT writes, and expected.npz: the
logits of the adapted model for some of its model's tokens.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import numpy as np

MODELS = pathlib.Path(__file__).parents[1] / "recordings" / "models"
ADAPTERS = MODELS.with_name("adapters")

COMMON = dict(vocab_size=53, hidden_size=24, intermediate_size=40, num_attention_heads=4, initializer_range=0.02)
# name: (its config, bytes of a file of weights at most, dtype).
CASES = {
    "gemma2": (
        dict(
            model_type="gemma2",
            num_hidden_layers=3,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=11,
            sliding_window=4,
            pad_token_id=0,
        ),
        "20KB",
        "float32",
    ),
    "gemma3": (
        dict(
            model_type="gemma3_text",
            num_hidden_layers=7,
            num_key_value_heads=1,
            head_dim=8,
            query_pre_attn_scalar=11,
            sliding_window=4,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        ),
        "1GB",
        "float32",
    ),
    "llama": (
        dict(
            model_type="llama",
            num_hidden_layers=2,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 5000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 12,
            },
        ),
        "1GB",
        "float32",
    ),
    "qwen3": (
        dict(
            model_type="qwen3",
            num_hidden_layers=2,
            num_key_value_heads=4,
            head_dim=10,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 900.0},
        ),
        "15KB",
        "bfloat16",
    ),
    "mistral": (
        dict(model_type="mistral", num_hidden_layers=2, num_key_value_heads=2, head_dim=8, sliding_window=4),
        "1GB",
        "float32",
    ),
    "qwen2": (
        dict(
            model_type="qwen2",
            num_hidden_layers=3,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=1,
            rope_parameters={"rope_type": "default", "rope_theta": 900.0},
            bos_token_id=3,
            eos_token_id=[4, 5],
        ),
        "1GB",
        "float32",
    ),
    "gemma3_wrapped": (
        dict(
            model_type="gemma3",
            text_config=dict(
                model_type="gemma3_text",
                **COMMON,
                num_hidden_layers=2,
                num_key_value_heads=1,
                head_dim=8,
                query_pre_attn_scalar=11,
                sliding_window=4,
                layer_types=["sliding_attention", "full_attention"],
                pad_token_id=7,
            ),
            vision_config=dict(
                model_type="siglip_vision_model",
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=4,
                patch_size=2,
            ),
            mm_tokens_per_image=4,
            eos_token_id=[1, 6],
        ),
        "1GB",
        "float32",
    ),
}
FEW = {"r": 2, "lora_alpha": 3, "target_modules": ["v_proj"]}
# name: (its model, settings of LoraConfig besides the task).
ADAPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("llama", {**FEW, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "r": 3,
            "lora_alpha": 5,
            "target_modules": ["q_proj", "v_proj", "gate_proj", "down_proj"],
            "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 4},
            "alpha_pattern": {r".*\.1\.mlp\.down_proj": 9, "layers.0.self_attn.q_proj": 1.5},
        },
    ),
    "dora": ("llama", {"r": 2, "lora_alpha": 3, "use_dora": True, "target_modules": ["k_proj", "o_proj", "up_proj"]}),
    "dora_head": ("llama", {"r": 2, "lora_alpha": 3, "use_dora": True, "target_modules": ["lm_head"]}),
    "dora_embedding": ("gemma2", {"r": 2, "lora_alpha": 3, "use_dora": True, "target_modules": ["embed_tokens"]}),
    "embedding_and_head": ("llama", {"r": 2, "lora_alpha": 3, "target_modules": ["embed_tokens", "lm_head"]}),
    "tied_embedding": ("gemma2", {"r": 2, "lora_alpha": 3, "target_modules": ["embed_tokens", "q_proj"]}),
    "tied_head": ("qwen3", {"r": 2, "lora_alpha": 3, "target_modules": ["lm_head"]}),
    "saved_head": ("qwen3", {**FEW, "modules_to_save": ["lm_head"]}),
    "saved_embedding": ("llama", {**FEW, "modules_to_save": ["embed_tokens", "norm"]}),
    "biased": ("qwen2", {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "k_proj", "v_proj"]}),
    "windowed": ("mistral", {"r": 2, "lora_alpha": 3, "target_modules": "all-linear"}),
    "wrapped": ("gemma3_wrapped", {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "gaussian": ("llama", {**FEW, "init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {**FEW, "init_lora_weights": "orthogonal"}),
    "eva": ("llama", {**FEW, "init_lora_weights": "eva"}),
    "mica": ("llama", {**FEW, "init_lora_weights": "mica"}),
    "pissa": ("llama", {**FEW, "init_lora_weights": "pissa"}),
    "pissa_converted": ("llama", {**FEW, "init_lora_weights": "pissa"}),
    "olora": ("llama", {**FEW, "init_lora_weights": "olora"}),
    "alora": ("llama", {**FEW, "alora_invocation_tokens": [1, 2]}),
}
SHOWN = (slice(1, 3), slice(0, 10))  # rows and columns of the model's tokens: padded on the left, and on the right


def logits(model, tokens, mask, **given) -> np.ndarray:
    """Return fp32 logits [B, T, V], zero at padding."""
    import torch

    with torch.no_grad():
        out = model(tokens, attention_mask=mask, use_cache=False, **given).logits
    return (out * mask[..., None]).numpy()


def main() -> None:
    """Write every directory anew, or those that are named."""
    for seed, name in enumerate(CASES):
        if name in (sys.argv[1:] or CASES):
            save_model(name, seed)
    for seed, name in enumerate(ADAPTED):
        if name in (sys.argv[1:] or ADAPTED):
            save_adapter(name, seed)


def save_model(name: str, seed: int) -> None:
    """Write a model, and to llama the adapters that lie beside it."""
    import torch
    from transformers import AutoConfig

    config, shard, dtype = CASES[name]
    shutil.rmtree(MODELS / name, ignore_errors=True)
    torch.manual_seed(seed)
    common = {} if "text_config" in config else COMMON
    model = kind(config["model_type"]).from_config(AutoConfig.for_model(**{**common, **config}))
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    model.to(getattr(torch, dtype)).save_pretrained(MODELS / name, max_shard_size=shard)
    model = loaded(name)  # for the cast to bf16 has rounded the rotary frequencies too, which are not saved
    tokens = torch.randint(0, COMMON["vocab_size"], (3, 14))
    mask = torch.ones_like(tokens)
    mask[1, :5], mask[2, 9:] = 0, 0
    expected = {"tokens": tokens.numpy(), "mask": mask.numpy(), "logits": logits(model, tokens, mask)}
    if name == "llama":
        targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
        model = adapted(model, {"r": 3, "lora_alpha": 5, "target_modules": targets})
        write(model, MODELS / "llama_adapter")
        expected["adapted"] = logits(model, tokens, mask)
    np.savez_compressed(MODELS / name / "expected.npz", **expected)
    if name != "gemma3_wrapped":
        (MODELS / name / "generation_config.json").unlink(missing_ok=True)


def save_adapter(name: str, seed: int) -> None:
    """Write adapters to a model, trained or not: random."""
    import torch

    base, settings = ADAPTED[name]
    torch.manual_seed(100 + seed)
    with np.load(MODELS / base / "expected.npz") as said:
        tokens, mask = (torch.from_numpy(said[key][SHOWN]) for key in ("tokens", "mask"))
    with tempfile.TemporaryDirectory() as untrained:
        converted = untrained if name.endswith("_converted") else None
        model = adapted(loaded(base), settings, converted)
        shutil.rmtree(ADAPTERS / name, ignore_errors=True)
        write(model, ADAPTERS / name, path_initial_model_for_weight_conversion=converted)
    given = {"alora_offsets": [5, 5]} if "alora_invocation_tokens" in settings else {}
    np.savez_compressed(ADAPTERS / name / "expected.npz", logits=logits(model, tokens, mask, **given))


def kind(model_type: str) -> Any:
    """Return the class that models of a type are loaded with."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if model_type == "gemma3" else AutoModelForCausalLM


def loaded(name: str) -> Any:
    """Load a model in fp32."""
    import torch

    model_type = json.loads((MODELS / name / "config.json").read_text())["model_type"]
    return kind(model_type).from_pretrained(MODELS / name, dtype=torch.float32, attn_implementation="eager").eval()


def adapted(model: Any, settings: dict[str, Any], untrained: str | None = None) -> Any:
    """Attach adapters, save them as they are if there is a directory for it, and draw them and all else that trains."""
    import peft
    import torch

    model = peft.get_peft_model(model, peft.LoraConfig(**settings, task_type="CAUSAL_LM"))
    if untrained:  # as PEFT's guide to the conversion has it
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(untrained)
        model.peft_config["default"].init_lora_weights = settings["init_lora_weights"]
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "lora_magnitude_vector" in key or "modules_to_save" in key:
                weight *= 1 + 0.3 * torch.randn_like(weight)
            elif "lora_" in key:
                weight.copy_(0.2 * torch.randn_like(weight))
    return model.eval()


def write(model: Any, to: pathlib.Path, **conversion: Any) -> None:
    """Save adapters without the path of their model."""
    model.save_pretrained(to, **conversion)
    settings = to / "adapter_config.json"
    without_path = {**json.loads(settings.read_text()), "base_model_name_or_path": None}
    settings.write_text(json.dumps(without_path, indent=2) + "\n")
    (to / "README.md").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
