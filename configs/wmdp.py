"""Unlearn-and-Distill on WMDP: forget biosecurity and cybersecurity, keep the rest. For planning only.

  configs/wmdp.py       gemma-2-2b
  configs/wmdp.py:9b    gemma-2-9b
  configs/wmdp.py:70b   llama-3.3-70b with LoRA adapters

The package has no loader for these corpora and no import of published weights, so `distill-jax run` refuses this file.
`reference` stands where the published weights will be read; its single step is there because others start from it.
Steps and batch are sizes to plan with, not the paper's. Each attack on whole weights is a stage of its own: so large,
members of a population do not fit side by side. Adapters do, and they are all that trains at 70b: there the teacher is
the published model with the adapters that unlearned merged in, the student (`thin`) the same model with fresh ones.

  distill-jax plan --config=configs/wmdp.py --slice=v5e-16
  distill-jax plan --config=configs/wmdp.py:70b --slice=v5p-128 --stages=thin
"""

import dataclasses
from typing import ClassVar

from ml_collections import ConfigDict

from distill_jax.data.text import TextConfig
from distill_jax.models.presets import preset
from distill_jax.stages import Distill, Perturb, Pretrain, Relearn, Unlearn


@dataclasses.dataclass(frozen=True)
class Corpora(TextConfig):
    """The corpora of WMDP, of which only the shape of a row is known here."""

    PLAN_ONLY: ClassVar[bool] = True


DATA = Corpora


def get_config(arg: str = "") -> ConfigDict:
    """Return the numbers for a size: 2b (if `arg` is empty), 9b or 70b."""
    models = {"2b": "gemma-2-2b", "9b": "gemma-2-9b", "70b": "llama-3.3-70b"}
    size = arg or "2b"
    if size not in models:
        raise ValueError(f"no preset {arg!r} in configs/wmdp.py; there are {', '.join(models)}")

    c = ConfigDict()
    c.experiment = f"wmdp-{size}"
    c.description = "Keep general knowledge, forget hazardous biology and cybersecurity."
    c.seed = 0
    c.model = ConfigDict(dataclasses.asdict(preset(models[size], dtype="bfloat16", remat="full")))
    c.data = ConfigDict({"row_length": 2048})
    # Logits of 2048 tokens of the whole batch exist at a time, spread over the chips by vocabulary.
    c.run = ConfigDict({"loss_chunk": 2048, "fsdp": -1, "tensor": 1})

    batch = {"batch": 64, "microbatches": 1}  # 131,072 tokens a step
    c.reference = ConfigDict({"steps": 1, **batch})
    c.maxent = ConfigDict({"steps": 200, "learning_rate": 2e-5, "final_learning_rate": 2e-5, "warmup": 10, **batch})
    c.undo = ConfigDict({"alpha": 0.25, "beta": 0.1})
    c.distill = ConfigDict({"steps": 3000, "learning_rate": 2e-5, "final_learning_rate": 2e-6, **batch})
    c.relearn = ConfigDict({"steps": 500, "warmup": 0, "weight_decay": 0.0, "seeds": 1, **batch})
    c.attack = ConfigDict({"learning_rates": (1e-4, 1e-5, 1e-6)})
    if size == "70b":
        for stage in (c.maxent, c.distill, c.relearn):
            stage.update(lora_rank=64, lora_alpha=128.0, learning_rate=1e-4, final_learning_rate=1e-4)
    return c


def get_stages(c: ConfigDict) -> dict:
    """Return the experiment's stages by name."""
    seed = {"seed": c.seed}
    stages = {
        "reference": Pretrain(data="all", **c.reference, **seed),
        "maxent": Unlearn(start="reference", method="maxent", **c.maxent, **seed),
    }
    if "lora_rank" in c.distill:
        stages["thin"] = Distill(teacher="maxent", start="reference", **c.distill, **seed)
        attack = {"data": "forget", "learning_rates": c.attack.learning_rates, **c.relearn, **seed}
        return stages | {f"relearn-{name}": Relearn(start=name, **attack) for name in ("maxent", "thin")}
    stages["damaged"] = Perturb(start="maxent", **c.undo, **seed)
    stages["undo"] = Distill(teacher="maxent", start="damaged", **c.distill, **seed)
    attacks = {
        f"relearn-{name}-{rate:g}": Relearn(start=name, data="forget", learning_rates=(rate,), **c.relearn, **seed)
        for name in ("maxent", "undo")
        for rate in c.attack.learning_rates
    }
    return stages | attacks
