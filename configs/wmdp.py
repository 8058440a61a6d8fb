"""Unlearn-and-Distill on WMDP with Gemma 2: forget biosecurity and cybersecurity, keep the rest. For planning only.

  configs/wmdp.py       gemma-2-2b
  configs/wmdp.py:9b    gemma-2-9b

The package has no loader for these corpora and no import of published weights, so `distill-jax run` refuses this file.
`reference` stands where the published weights will be read; its single step is there because others start from it.
Steps and batch are sizes to plan with, not the paper's. Each attack is a stage of its own: at this size members of a
population do not fit side by side.

  distill-jax plan --config=configs/wmdp.py --slice=v5e-16
"""

import dataclasses

from ml_collections import ConfigDict

from distill_jax.data.text import TextConfig
from distill_jax.models.presets import preset
from distill_jax.stages import Distill, Perturb, Pretrain, Relearn, Unlearn

DATA = TextConfig


def get_config(arg: str = "") -> ConfigDict:
    """Return the numbers for gemma-2-2b, or for gemma-2-9b if `arg` is "9b"."""
    if arg not in ("", "2b", "9b"):
        raise ValueError(f"no preset {arg!r} in configs/wmdp.py; there are 2b and 9b")
    size = arg or "2b"

    c = ConfigDict()
    c.experiment = f"wmdp-{size}"
    c.description = "Keep general knowledge, forget hazardous biology and cybersecurity."
    c.seed = 0
    c.model = ConfigDict(dataclasses.asdict(preset(f"gemma-2-{size}", dtype="bfloat16", remat="full")))
    c.data = ConfigDict({"retain": "Wikitext", "forget": "the WMDP bio and cyber corpora", "row_length": 2048})
    # Logits of 2048 tokens of the whole batch exist at a time, spread over the chips by vocabulary.
    c.run = ConfigDict({"loss_chunk": 2048, "fsdp": -1, "tensor": 1})

    batch = {"batch": 64, "microbatches": 1}  # 131,072 tokens a step
    c.reference = ConfigDict({"steps": 1, **batch})
    c.maxent = ConfigDict({"steps": 200, "learning_rate": 2e-5, "final_learning_rate": 2e-5, "warmup": 10, **batch})
    c.undo = ConfigDict({"alpha": 0.25, "beta": 0.1})
    c.distill = ConfigDict({"steps": 3000, "learning_rate": 2e-5, "final_learning_rate": 2e-6, **batch})
    c.relearn = ConfigDict({"steps": 500, "warmup": 0, "weight_decay": 0.0, "seeds": 1, **batch})
    c.attack = ConfigDict({"learning_rates": (1e-4, 1e-5, 1e-6)})
    return c


def get_stages(c: ConfigDict) -> dict:
    """Return the experiment's stages by name."""
    seed = {"seed": c.seed}
    stages = {
        "reference": Pretrain(data="all", **c.reference, **seed),
        "maxent": Unlearn(start="reference", method="maxent", **c.maxent, **seed),
        "damaged": Perturb(start="maxent", **c.undo, **seed),
        "undo": Distill(teacher="maxent", start="damaged", **c.distill, **seed),
    }
    attacks = {
        f"relearn-{name}-{rate:g}": Relearn(start=name, learning_rates=(rate,), **c.relearn, **seed)
        for name in ("maxent", "undo")
        for rate in c.attack.learning_rates
    }
    return stages | attacks
