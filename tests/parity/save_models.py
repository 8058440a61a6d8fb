"""Save small random models as transformers and PEFT do, with their logits, for tests/test_interop.py to import.

    python -m tests.parity.save_models    # from the repository root; needs the [parity] extra

Each directory of tests/recordings/models is what `save_pretrained` writes, and expected.npz: tokens and attention mask
[B, T], logits [B, T, V] (zero at padding), and with an adapter those of the adapted model.
"""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np

MODELS = pathlib.Path(__file__).parents[1] / "recordings" / "models"

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
}


def logits(model, tokens, mask) -> np.ndarray:
    """Return fp32 logits [B, T, V], zero at padding."""
    import torch

    with torch.no_grad():
        out = model(tokens, attention_mask=mask, use_cache=False).logits
    return (out * mask[..., None]).numpy()


def main() -> None:
    """Write every directory anew."""
    import peft
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.rmtree(MODELS, ignore_errors=True)
    for seed, (name, (config, shard, dtype)) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**COMMON, **config}))
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.3 * torch.randn_like(weight)
        model.to(getattr(torch, dtype)).save_pretrained(MODELS / name, max_shard_size=shard)
        # Loaded, for the cast to bf16 has rounded the rotary frequencies too, which are not saved.
        model = AutoModelForCausalLM.from_pretrained(
            MODELS / name, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        tokens = torch.randint(0, COMMON["vocab_size"], (3, 14))
        mask = torch.ones_like(tokens)
        mask[1, :5], mask[2, 9:] = 0, 0
        expected = {"tokens": tokens.numpy(), "mask": mask.numpy(), "logits": logits(model, tokens, mask)}
        if name == "llama":
            targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
            settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, task_type="CAUSAL_LM")
            model = peft.get_peft_model(model, settings)
            with torch.no_grad():
                for weight in (w for key, w in model.named_parameters() if "lora_" in key):
                    weight.copy_(0.2 * torch.randn_like(weight))
            model.save_pretrained(MODELS / "llama_adapter")
            settings_file = MODELS / "llama_adapter" / "adapter_config.json"
            without_path = {**json.loads(settings_file.read_text()), "base_model_name_or_path": None}
            settings_file.write_text(json.dumps(without_path, indent=2) + "\n")
            expected["adapted"] = logits(model, tokens, mask)
        np.savez_compressed(MODELS / name / "expected.npz", **expected)
    for leftover in [*MODELS.rglob("README.md"), *MODELS.rglob("generation_config.json")]:
        leftover.unlink()


if __name__ == "__main__":
    main()
