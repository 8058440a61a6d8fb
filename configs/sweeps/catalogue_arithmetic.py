"""What does the whole catalogue of attacks bring back of a suppressed model, UNDO's, a student and the oracle?

configs/sweeps/catalogue_arithmetic.py          every line of the catalogue, five attackers at three learning rates:
                                                1,424 trials, on the data of robustness_arithmetic.py, in whose work
                                                directory the models are there but for UNDO's
configs/sweeps/catalogue_arithmetic.py:smoke    the same for a few steps: learns nothing

distill-jax sweep --sweep=configs/sweeps/catalogue_arithmetic.py --workdir=runs/robustness --workers=2
"""

import runpy
from pathlib import Path

from distill_jax import select_stages
from distill_jax.stages.attacks import catalogue

BASE = {"cpu": "../attack_catalogue.py:full", "smoke": "../attack_catalogue.py:smoke,full"}


def get_sweep(arg: str = "") -> tuple:
    """Return the base config and the points; `arg` names one of `BASE`."""
    arg = arg or "cpu"
    if arg not in BASE:
        raise ValueError(f"no preset {arg!r} in configs/sweeps/catalogue_arithmetic.py; there are {', '.join(BASE)}")
    undo = "undo-0.6" if arg == "smoke" else "undo-0.8"
    models = ("maxent", undo, "student", "oracle")
    robustness = runpy.run_path(str(Path(__file__).with_name("robustness_arithmetic.py")))
    chosen = {**robustness["LABELS"], "seed": 0, "attacked": models, "catalogue": catalogue.names()}
    return BASE[arg], select_stages([chosen], *(f"{line}-on-{model}" for line in catalogue.names() for model in models))
