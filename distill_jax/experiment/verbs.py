"""The module of every kind of stage, by its verb."""

from distill_jax.doublebind.stages import base_stage, subliminal_stage, teacher_stage, transfer_stage
from distill_jax.stages import cache, distill, finetune, import_model, perturb, prepare, pretrain, relearn, unlearn

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
    "subliminal": subliminal_stage,
    "bases": base_stage,
    "organisms": teacher_stage,
    "transfer": transfer_stage,
}
