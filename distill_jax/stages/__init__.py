"""The verbs: one file each, its settings at the top and its `run` below."""

from distill_jax.stages import cache, distill, import_model, perturb, prepare, pretrain, relearn, subliminal, unlearn
from distill_jax.stages.cache import Cache
from distill_jax.stages.distill import Distill
from distill_jax.stages.import_model import Import
from distill_jax.stages.perturb import Perturb
from distill_jax.stages.pretrain import Pretrain
from distill_jax.stages.relearn import Relearn
from distill_jax.stages.subliminal import Subliminal
from distill_jax.stages.unlearn import Unlearn

VERBS = {
    "prepare": prepare,
    "import": import_model,
    "pretrain": pretrain,
    "unlearn": unlearn,
    "perturb": perturb,
    "cache": cache,
    "distill": distill,
    "relearn": relearn,
    "subliminal": subliminal,
}

__all__ = ["VERBS", "Cache", "Distill", "Import", "Perturb", "Pretrain", "Relearn", "Subliminal", "Unlearn"]
