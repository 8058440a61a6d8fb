"""Attacks of the catalogue: stages that try to bring back what a model was made to forget; see `catalogue`."""

from distill_jax.stages.attacks.answer_distillation import AnswerDistillation
from distill_jax.stages.attacks.edit_weights import EditWeights
from distill_jax.stages.attacks.few_shot import FewShot
from distill_jax.stages.attacks.finetuning import Attack
from distill_jax.stages.attacks.prefix_tuning import PrefixTuning
from distill_jax.stages.attacks.search import Search
from distill_jax.stages.attacks.steering import Steering

__all__ = ["AnswerDistillation", "Attack", "EditWeights", "FewShot", "PrefixTuning", "Search", "Steering"]
