"""Ways to make unlearning robust while it trains, by name: each wraps any method that it can be right with."""

from distill_jax.stages.robust.latent import Latent
from distill_jax.stages.robust.robustifier import Robustifier
from distill_jax.stages.robust.sharpness import Sharpness
from distill_jax.stages.robust.tampering import Tampering

ROBUSTIFIERS: dict[str, type[Robustifier]] = {cls.name: cls for cls in (Sharpness, Tampering, Latent)}
