"""What does a larger model cost? UNDO of MaxEnt on arithmetic at four widths of the CPU preset.

The page fits compute against size and says, with its interval, what that would mean for models that nobody trained.

  distill-jax sweep --sweep=configs/sweeps/sizes_arithmetic.py --workdir=runs/sizes --workers=2
"""

from distill_jax import axis, chain, product, select_stages, zipped

WIDTHS = (24, 32, 48, 64)


def get_sweep(arg: str = "") -> tuple:
    """Return the base config and the points: α = 0.6 and a random student, an oracle beside them."""
    if arg:
        raise ValueError(f"no preset {arg!r} in configs/sweeps/sizes_arithmetic.py; it has none")
    sizes = zipped(axis("model.hidden", *WIDTHS), axis("model.mlp", *(4 * width for width in WIDTHS)))
    common = product(axis("relearn.seeds", 1), axis("seed", 0, 1), sizes)
    undo = select_stages(axis("undo.alphas", (0.6,)), "relearn-undo-0.6")
    controls = select_stages([{}], "relearn-oracle", "relearn-maxent", "relearn-student")
    return "../arithmetic.py:cpu", product(common, chain(undo, controls))
