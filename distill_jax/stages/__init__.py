"""The verbs: one file each, its settings at the top and its `run` below."""

from distill_jax.stages import (
    bases,
    cache,
    distill,
    finetune,
    import_model,
    organisms,
    perturb,
    prepare,
    pretrain,
    relearn,
    subliminal,
    transfer,
    unlearn,
)
from distill_jax.stages.bases import Bases
from distill_jax.stages.cache import Cache
from distill_jax.stages.distill import Distill
from distill_jax.stages.finetune import Finetune
from distill_jax.stages.import_model import Import
from distill_jax.stages.organisms import Organisms
from distill_jax.stages.perturb import Perturb
from distill_jax.stages.pretrain import Pretrain
from distill_jax.stages.relearn import Relearn
from distill_jax.stages.subliminal import Subliminal
from distill_jax.stages.transfer import Transfer
from distill_jax.stages.unlearn import Unlearn

VERBS = {
    "prepare": prepare,
    "import": import_model,
    "pretrain": pretrain,
    "finetune": finetune,
    "unlearn": unlearn,
    "perturb": perturb,
    "cache": cache,
    "distill": distill,
    "relearn": relearn,
    "subliminal": subliminal,
    "bases": bases,
    "organisms": organisms,
    "transfer": transfer,
}

__all__ = [
    "VERBS",
    "Bases",
    "Cache",
    "Distill",
    "Finetune",
    "Import",
    "Organisms",
    "Perturb",
    "Pretrain",
    "Relearn",
    "Subliminal",
    "Transfer",
    "Unlearn",
]
