"""The double bind's stages: bases, organisms, transfer through a channel, and subliminal transfer."""

from distill_jax.doublebind.stages.base_stage import Bases
from distill_jax.doublebind.stages.subliminal_stage import Subliminal
from distill_jax.doublebind.stages.teacher_stage import Organisms
from distill_jax.doublebind.stages.transfer_stage import Transfer

__all__ = ["Bases", "Organisms", "Subliminal", "Transfer"]
