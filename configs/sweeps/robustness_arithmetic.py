"""What makes a model forget for good, per unit of compute? Methods, robust training, re-initialisations and filters.

  configs/sweeps/robustness_arithmetic.py          the CPU preset, five training seeds, one attacker for all
  configs/sweeps/robustness_arithmetic.py:smoke    the same graph for a few steps and one seed: learns nothing

Each method suppressed and as the teacher of a random student; MaxEnt and NPO made robust in training, and distilled
then; MaxEnt re-initialised in part, in rounds, or recovered by training; and filters, by a labeller that errs at the
rates below, before pretraining and in distillation. Every seed is a training run of its own; the data are the same.
It has not been run. By the FLOPs of its dry run and by the CPU preset's own speed and early stops, two cores
that do nothing else take about two and a half hours.

  distill-jax sweep --sweep=configs/sweeps/robustness_arithmetic.py --workdir=runs/robustness --workers=2
"""

from distill_jax import axis, chain, product, select_stages

BASE = {"cpu": "../arithmetic.py:cpu,full", "smoke": "../arithmetic.py:smoke,full"}
METHODS = ("gradascent", "wga", "npo", "simnpo", "undial", "dpo", "selective")
ALPHA = 0.6
REINITIALISATIONS = (
    {},  # UNDO's own
    {"undo.noise": "init"},
    {"undo.modules": ("layers/mlp/*",)},
    {"undo.layers": (-1,)},  # the top one
    {"undo.share": 0.5},
    {"undo.share": 0.5, "undo.order": "largest"},
    {"undo.rounds": 3},
    {"undo.recover": "train"},
)


def get_sweep(arg: str = "") -> tuple:
    """Return the base config and the points; `arg` names a preset of the arithmetic config."""
    arg = arg or "cpu"
    if arg not in BASE:
        raise ValueError(f"no preset {arg!r} in configs/sweeps/robustness_arithmetic.py; there are {', '.join(BASE)}")
    smoke = arg == "smoke"
    labels = {
        "data.labeller": "noisy", "data.false_positive_rate": 0.02, "data.false_negative_rate": 0.1,
        "data.label_sets": ("filtered", "masked"),
    }  # fmt: skip
    common = product([labels], axis("relearn.seeds", 1), axis("seed", *range(1 if smoke else 5)))
    if not smoke:
        common = product(common, axis("relearn.evaluate_steps", (0, 10, 40, 100)))

    def attacked(points: list, *models: str) -> list:
        return select_stages(points, *(f"relearn-{model}" for model in models))

    basic = attacked(
        [{}], "reference", "oracle", *(f"{kind}{m}" for m in ("graddiff", "rmu") for kind in ("", "student-"))
    )
    methods = [point for m in METHODS for point in attacked(axis("methods", (m,)), m, f"student-{m}")]
    robust = chain(
        attacked(axis("maxent.robust", "", "sam", "tar", "latent"), "maxent", "student"),
        attacked(product(axis("methods", ("npo",)), axis("npo.robust", "sam", "tar", "latent")), "npo", "student-npo"),
    )
    damaged = attacked([{"undo.alphas": (ALPHA,), **how} for how in REINITIALISATIONS], f"undo-{ALPHA}")
    filters = attacked([{}], "filtered", "masked", "pretrained-filtered", "pretrained-masked")
    return BASE[arg], product(common, chain(basic, methods, robust, damaged, filters))
