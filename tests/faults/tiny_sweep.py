"""A sweep small enough to be killed often: two seeds, two α, the references beside them."""

from distill_jax import axis, chain, product, select_stages


def get_sweep(arg: str = "") -> tuple:
    """Return the base config and six points."""
    seeds = axis("seed", 0, 1)
    undo = chain(*(select_stages(axis("undo.alphas", (alpha,)), f"relearn-undo-{alpha}") for alpha in (0.2, 0.9)))
    return "../../configs/arithmetic.py:smoke", chain(product(seeds, undo), select_stages(seeds, "relearn-reference"))
