"""How much robustness does a unit of compute buy? UNDO on arithmetic over α, β and the method, beside its controls.

  configs/sweeps/undo_arithmetic.py          5 α × 2 β × 2 methods × 3 seeds on the CPU preset, each model attacked at
                                             ten learning rates
  configs/sweeps/undo_arithmetic.py:smoke    two of each for a few steps: a minute, learns nothing

β = 0 only shrinks the weights; β = 0.1 is the paper's. Every seed is a training run of its own (reference, oracle,
unlearning, damage, students, one attacker); the data are the same for all.

  distill-jax sweep --sweep=configs/sweeps/undo_arithmetic.py --workdir=runs/undo_arithmetic --workers=2
"""

from distill_jax import axis, chain, product, select_stages

BASE = {"cpu": "../arithmetic.py:cpu,full", "smoke": "../arithmetic.py:smoke,full"}


def get_sweep(arg: str = "") -> tuple:
    """Return the base config and the points; `arg` names a preset of the arithmetic config."""
    arg = arg or "cpu"
    if arg not in BASE:
        raise ValueError(f"no preset {arg!r} in configs/sweeps/undo_arithmetic.py; there are {', '.join(BASE)}")
    smoke = arg == "smoke"
    # MaxEnt reads 100 × 16 rows of each kind, which are about so many documents with a label (RMU reads twice as many).
    common = axis("data.filter_labels", 60 if smoke else 13_800)
    common = product(common, axis("relearn.seeds", 1), axis("seed", *range(2 if smoke else 3)))
    if not smoke:
        common = product(common, axis("relearn.evaluate_steps", (0, 10, 40, 100)))
    alphas = (0.2, 0.6) if smoke else (0.1, 0.2, 0.4, 0.6, 0.8)

    def undo(alpha: float) -> list:
        return select_stages(axis("undo.alphas", (alpha,)), f"relearn-undo-{alpha}")

    methods = axis("undo.method", "maxent", "rmu")
    grid = product(common, methods, axis("undo.beta", 0.0, 0.1), chain(*map(undo, alphas)))
    noise_only = product(common, axis("undo.shrink", False), chain(*map(undo, alphas[-2:])))
    whole = ("reference", "oracle", "maxent", "rmu", "student", "student-rmu", "filtered")
    controls = chain(*(select_stages(common, f"relearn-{name}") for name in whole))
    undamaged = product(common, methods, select_stages([{}], "relearn-undo-0.0"))
    short = axis("budget.steps", 2, 6) if smoke else axis("budget.steps", 60, 280)
    budgets = product(common, select_stages(short, "relearn-student-budget"))
    return BASE[arg], chain(grid, controls, undamaged, noise_only, budgets)
