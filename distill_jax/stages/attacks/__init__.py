"""Attacks of the catalogue: stages that try to bring back what a model was made to forget; see `catalogue`."""

from distill_jax.stages.attacks.edit_weights import EditWeights
from distill_jax.stages.attacks.finetuning import Attack
from distill_jax.stages.attacks.search import Search

__all__ = ["Attack", "EditWeights", "Search"]
