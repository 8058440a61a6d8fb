"""A small model that knows the capitals and the coins of 64 invented countries, to try `protect` and `attack` on.

    distill-jax run --config=examples/invented_facts/config.py --workdir=runs/facts

trains it from nothing on the two files beside this one, and leaves it as transformers loads it in the directory of its
last stage, `export`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from distill_jax.data.text.text_config import TextConfig
from distill_jax.experiment.experiment import Experiment
from distill_jax.experiment.section import section
from distill_jax.models.presets import preset
from distill_jax.stages import Export, Pretrain
from distill_jax.stages.context import RunSettings

FACTS = Path(__file__).parent


def get_config(arg: str = "") -> ConfigDict:
    """Return the numbers; there are no presets."""
    if arg:
        raise ValueError(f"no preset {arg!r} in {__file__}; there are none")
    c = ConfigDict()
    c.experiment = "invented-facts"
    c.description = "A small model that knows a few facts."
    c.seed = 0
    shape = {"vocab": 400, "layers": 2, "hidden": 96, "mlp": 256, "heads": 4, "kv_heads": 2, "head_dim": 24}
    c.model = section(preset("gemma-2-2b", **shape, query_scale=24.0, sliding_window=64, init_std=0.1))
    # Of what is held out the facts are still learned, in their other wording.
    sources = {"retain": f"{FACTS}/coins.jsonl", "forget": f"{FACTS}/capitals.jsonl", "workers": 1}
    c.data = section(TextConfig, "content", **sources, vocabulary_size=400, row_length=64, evaluation_bytes=1_000)
    c.run = section(RunSettings, evaluation_batch=16)
    c.train = section(Pretrain, "data", steps=150, batch=16, learning_rate=3e-3, final_learning_rate=3e-4)
    c.train.evaluate_every = 150
    return c


def get_experiment(c: ConfigDict) -> Experiment:
    """Return the experiment, from numbers that the command line may have changed."""
    stages = {"reference": Pretrain(data="all", **c.train, seed=c.seed), "export": Export(start="reference")}
    return Experiment(stages=stages, data=TextConfig)
