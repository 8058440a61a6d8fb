"""Is a model as robust as retraining, in fp32, INT8 and INT4? A certificate of arithmetic models over training seeds.

  configs/sweeps/certificate_arithmetic.py          random student and UNDO at α = .8 of MaxEnt, ten training seeds; the
                                                    suppressed model, which must not pass, as the control
  configs/sweeps/certificate_arithmetic.py:labelled the same on the data of robustness_arithmetic.py, in whose work
                                                    directory the models of five seeds are there
  configs/sweeps/certificate_arithmetic.py:labelled,5
                                                    with as many training seeds; or :5
  configs/sweeps/certificate_arithmetic.py:smoke    two seeds of a few steps: it learns nothing, and concludes nothing

Ten seeds certify a twin of the oracle four times in ten, twenty nine in ten (docs/statistics.md).

  distill-jax sweep --sweep=configs/sweeps/certificate_arithmetic.py --workdir=runs/certificate --workers=2
"""

import runpy
from pathlib import Path

from distill_jax import axis, product, select_stages

BASE = {"cpu": "../arithmetic.py:cpu", "labelled": "../arithmetic.py:cpu", "smoke": "../arithmetic.py:smoke"}
BITS = (8, 4)


def get_sweep(arg: str = "") -> tuple:
    """Return the base config and the points; `arg` names one of `BASE`, and perhaps the number of training seeds."""
    words = [word for word in arg.split(",") if word]
    (preset, *more), seeds = [w for w in words if not w.isdecimal()] or ["cpu"], [w for w in words if w.isdecimal()]
    if preset not in BASE or more or len(seeds) > 1:
        raise ValueError(
            f"no preset {arg!r} in configs/sweeps/certificate_arithmetic.py; there are {', '.join(BASE)}, each perhaps "
            "with a number of training seeds behind a comma"
        )
    count = int(seeds[0]) if seeds else 2 if preset == "smoke" else 10
    undo = "undo-0.6" if preset == "smoke" else "undo-0.8"
    models = ("oracle", "maxent", "student", undo)
    rounded = tuple(f"int{bits}-{name}" for bits in BITS for name in models)
    points = product(axis("bits", BITS), axis("relearn.seeds", 1), axis("seed", *range(count)))
    attacks = tuple(f"relearn-{name}" for name in ("reference", *models, *rounded))
    if preset == "labelled":
        robustness = runpy.run_path(str(Path(__file__).with_name("robustness_arithmetic.py")))
        points = product([robustness["LABELS"]], points)
    return BASE[preset], select_stages(points, *attacks)
