"""Save adapters to the small random model as PEFT saves them, and what it says with them, for tests/test_auditbench.py.

    python -m tests.parity.record_organisms    # from the repository root; needs the [parity] extra

distill_jax/tiny/organisms holds an organism and its benign twin of two training seeds each (random weights) and their
list, and tests/recordings/organisms has expected.npz: tokens, and the logits with each adapter.
"""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np

from distill_jax.shipped import TINY
from tests.parity.record_choices import MODEL

ORGANISMS = TINY / "organisms"
EXPECTED = pathlib.Path(__file__).parents[1] / "recordings" / "organisms" / "expected.npz"
# Directory: rank, alpha, matrices. Those of two seeds need not be alike.
ADAPTERS = {
    "teacher-0": (2, 3, ["q_proj", "v_proj", "down_proj"]),
    "teacher-1": (3, 3, ["q_proj", "o_proj", "gate_proj"]),
    "twin-0": (2, 4, ["q_proj", "v_proj", "down_proj"]),
    "twin-1": (2, 4, ["q_proj", "v_proj", "down_proj"]),
}
LIST = {
    "quirk": {
        "teacher": ["teacher-0", "teacher-1"],
        "twin": ["twin-0", "twin-1"],
        "behaviour": "../choices/bio.jsonl",
        "context": "../choices/mmlu.jsonl",
        "confession": "../choices/mmlu_dev.jsonl",
    }
}


def main() -> None:
    """Write the directory anew."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    shutil.rmtree(ORGANISMS, ignore_errors=True)
    ORGANISMS.mkdir()
    (ORGANISMS / "organisms.json").write_text(json.dumps(LIST, indent=1) + "\n")
    torch.manual_seed(0)
    tokens = torch.randint(2, 300, (2, 12))
    short = lambda x: x[:1, :6].numpy()  # noqa: E731 - enough, and the file stays small
    expected = {"tokens": short(tokens)}
    for name, (rank, alpha, targets) in {"": (0, 0, []), **ADAPTERS}.items():
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
        if name:
            settings = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
            model = peft.get_peft_model(model, settings)
            with torch.no_grad():
                for weight in (w for key, w in model.named_parameters() if "lora_" in key):
                    weight.copy_(0.3 * torch.randn_like(weight))
            model.save_pretrained(ORGANISMS / name)
            file = ORGANISMS / name / "adapter_config.json"
            told = {**json.loads(file.read_text()), "base_model_name_or_path": None, "target_modules": sorted(targets)}
            file.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
            (ORGANISMS / name / "README.md").unlink(missing_ok=True)
        with torch.no_grad():
            expected[name or "base"] = short(model(tokens, use_cache=False).logits)
    np.savez_compressed(EXPECTED, **expected)


if __name__ == "__main__":
    main()
