"""Unlearn-and-Distill on two languages with a 0.1B model: keep English, forget Korean. For planning only.

The package has no loader for these corpora yet, so `distill-jax run` refuses this file. Steps and batch are sizes to
plan with, not the paper's: 20 tokens a parameter for the reference and for the oracle.

  distill-jax plan --config=configs/language.py --slice=v5e-8
"""

import dataclasses

from ml_collections import ConfigDict

from distill_jax.data.text import TextConfig
from distill_jax.models.presets import preset
from distill_jax.stages import Distill, Perturb, Pretrain, Relearn, Unlearn

DATA = TextConfig


def get_config(arg: str = "") -> ConfigDict:
    """Return the numbers."""
    if arg:
        raise ValueError(f"no preset {arg!r} in configs/language.py; it has none")

    c = ConfigDict()
    c.experiment = "language"
    c.description = "Keep English, forget Korean."
    c.seed = 0
    c.model = ConfigDict(dataclasses.asdict(preset("gemma-0.1b", dtype="bfloat16", remat="full")))
    c.data = ConfigDict({"retain": "English web text", "forget": "Korean web text", "row_length": 2048})
    c.run = ConfigDict({"loss_chunk": 8192, "fsdp": -1, "tensor": 1})

    batch = {"batch": 128, "microbatches": 1}  # 262,144 tokens a step
    c.reference = ConfigDict({"steps": 8000, "learning_rate": 4e-4, "final_learning_rate": 4e-5, **batch})
    c.maxent = ConfigDict({"steps": 100, "learning_rate": 9e-5, "final_learning_rate": 9e-5, "warmup": 0, **batch})
    c.undo = ConfigDict({"alphas": (0.2, 0.4, 0.6, 0.8), "beta": 0.1})
    c.distill = ConfigDict({"steps": 8000, "learning_rate": 4e-4, "final_learning_rate": 4e-5, **batch})
    c.relearn = ConfigDict({"steps": 500, "batch": 16, "warmup": 0, "weight_decay": 0.0, "seeds": 3})
    c.relearn.learning_rates = (1e-3, 1e-4, 1e-5)
    return c


def get_stages(c: ConfigDict) -> dict:
    """Return the experiment's stages by name."""
    seed = {"seed": c.seed}
    stages = {
        "reference": Pretrain(data="all", **c.reference, **seed),
        "oracle": Pretrain(data="retain", **c.reference, **seed),
        "maxent": Unlearn(start="reference", method="maxent", **c.maxent, **seed),
        "student": Distill(teacher="maxent", **c.distill, **seed),
    }
    for alpha in c.undo.alphas:
        stages[f"damaged-{alpha}"] = Perturb(start="maxent", alpha=alpha, beta=c.undo.beta, **seed)
        stages[f"undo-{alpha}"] = Distill(teacher="maxent", start=f"damaged-{alpha}", **c.distill, **seed)
    attacked = [name for name, stage in stages.items() if stage.VERB != "perturb"]
    return stages | {f"relearn-{name}": Relearn(start=name, **c.relearn, **seed) for name in attacked}
