"""What makes a model forget for good, per unit of compute? Methods, robust training, re-initialisations and filters.

  configs/sweeps/robustness_arithmetic.py                 the CPU preset, five training seeds
  configs/sweeps/robustness_arithmetic.py:basic,robust    parts of it: basic, methods, robust, damaged, filters
  configs/sweeps/robustness_arithmetic.py:smoke           the same graph for a few steps and one seed: learns nothing

Parts run one after another in the same work directory share their models; the whole, run there last, draws one page.

Each method suppressed and as the teacher of a random student; MaxEnt and NPO made robust in training, and distilled
then; MaxEnt and GradDiff damaged by several α; MaxEnt re-initialised in part, in rounds, or recovered by training; the
untouched model damaged and distilled without what is to be forgotten; and filters before pretraining and in
distillation. Filters know documents and tokens from a labeller that errs at the rates below. Every seed is a training
run of its own; the data are the same.

Every model meets the same attackers: plain fine-tuning, the two that keep its abilities while they attack, and edits
of its weights; the worst of them is what counts.

  distill-jax sweep --sweep=configs/sweeps/robustness_arithmetic.py --workdir=runs/robustness --workers=2
"""

from distill_jax import axis, chain, product, select_stages

BASE = {"cpu": "../attack_catalogue.py:full", "smoke": "../attack_catalogue.py:smoke,full"}
ATTACKS = ("adamw", "with-retain", "held-by-kl", "weights")
RATES = (2e-3, 1e-3, 4e-4)
LABELS = {
    "data.labeller": "noisy", "data.false_positive_rate": 0.02, "data.false_negative_rate": 0.1,
    "data.label_sets": ("filtered", "masked"),
}  # fmt: skip
METHODS = ("wga", "npo", "simnpo", "undial", "dpo", "selective")
REINITIALISATIONS = (
    {"undo.noise": "init"},
    {"undo.modules": ("layers/mlp/*",)},
    {"undo.layers": (-1,)},  # the top one
    {"undo.share": 0.5},
    {"undo.share": 0.5, "undo.order": "largest"},
    {"undo.rounds": 3},
    {"undo.recover": "train"},
)


def get_sweep(arg: str = "") -> tuple:
    """Return the base config and the points; `arg` names a preset of `BASE` and parts of the sweep, all by default."""
    parts = {"basic": _basic, "methods": _methods, "robust": _robust, "damaged": _damaged, "filters": _filters}
    words = list(dict.fromkeys(word for word in arg.split(",") if word))
    if unknown := set(words) - {*BASE, *parts}:
        raise ValueError(
            f"no preset or part {sorted(unknown)[0]!r} in configs/sweeps/robustness_arithmetic.py; "
            f"there are {', '.join((*BASE, *parts))}"
        )
    if {*BASE} <= {*words}:
        raise ValueError(f"presets {', '.join(BASE)} at once in configs/sweeps/robustness_arithmetic.py; name one")
    smoke = "smoke" in words
    attack = {"catalogue": ATTACKS, "attack.seeds": 1} | ({} if smoke else {"attack.learning_rates": RATES})
    common = product([LABELS], [attack], axis("seed", *range(1 if smoke else 5)))
    chosen = [parts[word] for word in words if word in parts] or parts.values()
    return BASE["smoke" if smoke else "cpu"], product(common, chain(*(part() for part in chosen)))


def _attacked(points: list, *models: str) -> list:
    """Return points that ask for every attack on some models, which come with all they are made from.

    And for the distance and the loss barrier between each and the reference, which cost next to nothing.
    """
    attacks = [f"{attack}-on-{model}" for model in models for attack in ATTACKS]
    barriers = [f"barrier-{model}" for model in models if model != "reference"]
    return select_stages(product(points, axis("attacked", models)), *attacks, *barriers)


def _basic() -> list:
    methods = (f"{kind}{method}" for method in ("graddiff", "rmu") for kind in ("", "student-"))
    return _attacked([{}], "reference", "oracle", "maxent", "student", *methods)


def _methods() -> list:
    both = [point for m in METHODS for point in _attacked(axis("methods", (m,)), m, f"student-{m}")]
    return both + _attacked(axis("methods", ("gradascent",)), "gradascent")


def _robust() -> list:
    of_maxent = _attacked(axis("maxent.robust", "sam", "tar", "latent"), "maxent", "student")
    of_npo = product(axis("methods", ("npo",)), axis("npo.robust", "sam", "tar", "latent"))
    noised = _attacked(axis("maxent.robust", "repnoise"), "maxent", "student")
    return of_maxent + _attacked(of_npo, "npo", "student-npo") + noised


def _undo(alpha: float, **how: object) -> list:
    return _attacked([{"undo.alphas": (alpha,), **how}], f"undo-{alpha}")


def _damaged() -> list:
    by_alpha = (_undo(a, **{"undo.method": m}) for m in ("maxent", "graddiff") for a in (0.4, 0.6, 0.8))
    of_reference = (_undo(0.6, **{"undo.method": "reference", "undo.data": kind}) for kind in ("filtered", "masked"))
    return chain(*by_alpha, *(_undo(0.6, **how) for how in REINITIALISATIONS), *of_reference)


def _filters() -> list:
    return _attacked([{}], "filtered", "masked", "pretrained-filtered", "pretrained-masked")
