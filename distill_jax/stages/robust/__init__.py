"""Ways to make unlearning robust while it trains, by name: each wraps any method that it can be right with."""

from distill_jax.stages.methods import METHODS
from distill_jax.stages.robust.latent import Latent
from distill_jax.stages.robust.noising import Noising
from distill_jax.stages.robust.robustifier import Robustifier
from distill_jax.stages.robust.sharpness import Sharpness
from distill_jax.stages.robust.tampering import Tampering

ROBUSTIFIERS: dict[str, type[Robustifier]] = {cls.name: cls for cls in (Sharpness, Tampering, Latent, Noising)}


def method_key(method: str, robust: str) -> str:
    """Return what tells methods apart: "npo", or "npo+sam" of one that was made robust."""
    return f"{method}+{robust}" if robust else method


def method_label(key: str | None) -> str:
    """Return what reports call a method."""
    name, _, robust = str(key).partition("+")
    label = METHODS[name].label if name in METHODS else name
    return f"{label} with {ROBUSTIFIERS[robust].label}" if robust in ROBUSTIFIERS else label
