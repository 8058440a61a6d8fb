"""The stages of an experiment: one file each, its settings at the top and its `run` below."""

from distill_jax.stages.attacks import (
    AnswerDistillation,
    Attack,
    EditWeights,
    FewShot,
    PrefixTuning,
    Search,
    Steering,
)
from distill_jax.stages.cache import Cache
from distill_jax.stages.distill import Distill
from distill_jax.stages.erase import Erase
from distill_jax.stages.export_model import Export
from distill_jax.stages.finetune import Finetune
from distill_jax.stages.given_model import Given
from distill_jax.stages.import_model import Import
from distill_jax.stages.knowledge import Knowledge
from distill_jax.stages.lock import Lock
from distill_jax.stages.loss_barrier import LossBarrier
from distill_jax.stages.perturb import Perturb
from distill_jax.stages.prepare import Prepare
from distill_jax.stages.pretrain import Pretrain
from distill_jax.stages.quantise import Quantise
from distill_jax.stages.relearn import Relearn
from distill_jax.stages.route import Route
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.stages.unlearn import Unlearn
from distill_jax.stages.unlock import Unlock

__all__ = [
    "AnswerDistillation",
    "Attack",
    "Cache",
    "Distill",
    "EditWeights",
    "Erase",
    "Export",
    "FewShot",
    "Finetune",
    "Given",
    "Import",
    "Knowledge",
    "Lock",
    "LossBarrier",
    "Perturb",
    "PrefixTuning",
    "Prepare",
    "Pretrain",
    "Quantise",
    "Relearn",
    "Route",
    "Search",
    "Stage",
    "Steering",
    "Unlearn",
    "Unlock",
    "stage_input",
]
