"""The catalogue of attacks on the models of configs/arithmetic.py, and what the strongest brings back.

  configs/attack_catalogue.py          on suppressed, UNDO, student and oracle at the size of arithmetic.py:cpu
  configs/attack_catalogue.py:search   also lets the attacker search for its strongest fine-tuning
  configs/attack_catalogue.py:full     has the models of arithmetic.py:cpu,full to attack
  configs/attack_catalogue.py:smoke    a few attacks for a few steps: seconds

Its models are those of configs/arithmetic.py:cpu, with the same identities: in a workdir of that run only the attacks
are computed.

  distill-jax run --config=configs/attack_catalogue.py --workdir=runs/arithmetic
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from distill_jax.experiment.config_file import load_module
from distill_jax.experiment.experiment import Experiment
from distill_jax.experiment.section import section
from distill_jax.stages import Attack, LossBarrier, Search, Stage
from distill_jax.stages.attacks import catalogue

arithmetic = load_module(Path(__file__).with_name("arithmetic.py"))

ATTACKED = ("maxent", "undo-0.8", "student", "oracle")


def get_config(arg: str = "") -> ConfigDict:
    """Return the numbers, changed by the presets named in `arg` (search, full, smoke; comma-separated)."""
    presets = [p for p in arg.split(",") if p]
    if unknown := sorted(set(presets) - {"search", "full", "smoke"}):
        raise ValueError(f"no preset {unknown[0]!r} in configs/attack_catalogue.py; there are search, full and smoke")
    c = arithmetic.get_config(("smoke" if "smoke" in presets else "cpu") + (",full" if "full" in presets else ""))
    c.description = "A catalogue of attacks on models that are to have forgotten multiplication and division."
    c.attacked = ATTACKED
    c.barriers = True  # measure the distance and the loss barrier between every model and the reference
    c.catalogue = catalogue.names()
    c.attack = section(Attack, *arithmetic.FIXED_RATE, steps=100, batch=4, warmup=0, weight_decay=0.0, loss_on="answer")
    c.attack.update(checkpoint_every=100, log_every=100, seeds=5, evaluate_steps=(0, 10, 40, 100))
    c.attack.learning_rates = (3e-3, 1e-3, 3e-4)
    c.searched = "search" in presets
    own = ("steps", "batch", "warmup", "weight_decay", "loss_on", "checkpoint_every", "log_every", "seeds")
    of_attack = {name: c.attack[name] for name in (*own, "evaluate_steps")}
    c.search = section(Search, *arithmetic.FIXED_RATE, **of_attack, points=16)
    c.search.learning_rates = (6e-3, 3e-3, 1.5e-3, 7e-4)
    if "smoke" in presets:
        c.attacked = ("maxent", "undo-0.6", "oracle")
        c.catalogue = ("adamw", "muon", "held-by-kl", "weights")
        c.search.update(steps=4, seeds=2, learning_rates=(1e-2, 1e-3), evaluate_steps=(0, 4), optimizers=("sign",))
        c.search.points = 3
        c.attack.update(steps=4, seeds=2, learning_rates=(1e-2, 1e-3), evaluate_steps=(0, 2, 4))
    return c


def get_experiment(c: ConfigDict) -> Experiment:
    """Return the experiment, from numbers that the command line may have changed."""
    stages = arithmetic.get_experiment(c).stages
    models = [name for name, stage in stages.items() if stage.leaves_model]
    if missing := [name for name in c.attacked if name not in models]:
        raise ValueError(f"attacked: no model {missing[0]!r}; there are {', '.join(models)}")
    tried: dict[str, Stage] = {}
    for name in c.attacked:
        tried |= catalogue.attacks(name, c.catalogue, c.attack, c.seed)
        if c.searched:
            tried[f"search-on-{name}"] = Search(start=name, **c.search, seed=c.seed)
    if c.barriers:
        others = [name for name in models if name != "reference" and f"relearn-{name}" in stages]
        tried |= {f"barrier-{name}": LossBarrier(start=name, reference="reference", seed=c.seed) for name in others}
    return Experiment(stages={**stages, **tried})
