"""Attack models that somebody unlearned, alike, beside their original if it is named.

  configs/attack.py:documents    what they forgot is text
  configs/attack.py:questions    it is questions with answers

`distill-jax attack --model=DIR --model=DIR2 --baseline=DIR --forget=FILES --retain=FILES --workdir=DIR` fills in what
the models decide and runs this. All models have one shape, that of the first one's config.json, and one tokenizer.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from distill_jax.experiment.experiment import Experiment
from distill_jax.experiment.named_config import open_config
from distill_jax.stages import Given, Import, Knowledge, Stage

PROTECT = "protect"
TAKEN = ("seed", "kind", "model", "data", "run", "knowledge", "attack", "attack_apart", "pretraining_tokens")


def get_config(arg: str = "") -> ConfigDict:
    """Return the numbers for a kind of data: those of `configs/protect.py`."""
    base = open_config(f"{PROTECT}:{arg}" if arg else PROTECT).config
    c = ConfigDict({key: base[key] for key in TAKEN})
    c.experiment = "attack"
    c.description = "Attack models alike, and say what came back."
    c.baseline = ""
    c.names, c.paths = ("",), ("",)
    return c


def set_rate(c: ConfigDict, rate: float) -> ConfigDict:
    """Set the attackers' learning rates, a range about `rate`."""
    c.attack.learning_rates = tuple(float(f"{factor * rate:.2g}") for factor in (10, 3, 1, 0.3))
    return c


def get_experiment(c: ConfigDict) -> Experiment:
    """Return the experiment, from numbers that the command line may have changed."""
    base = open_config(PROTECT).module
    return Experiment(stages=_stages(c, base.attacks), data=base.data_class(c.kind), notes=base.notes(c))


def _stages(c: ConfigDict, attacks) -> dict[str, Stage]:
    stages: dict[str, Stage] = {"reference": Import(path=c.baseline)} if c.baseline else {}
    stages |= {name: Given(path=path) for name, path in zip(c.names, c.paths, strict=True)}
    models = tuple(stages)
    # Models that forgot need not know it; their original has to.
    required = {**c.knowledge, "required": c.knowledge.required and bool(c.baseline)}
    stages["knowledge"] = Knowledge(start=models[0], **required)
    return stages | attacks(c, models)
