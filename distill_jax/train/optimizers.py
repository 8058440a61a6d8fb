"""Optimisers by name: what each makes of a gradient, before the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import optax
import optax.contrib
from optax.contrib import MuonDimensionNumbers

from distill_jax.models.transformer_layers import FANS
from distill_jax.types import PyTree

if TYPE_CHECKING:
    from distill_jax.train.settings import Optimizer

MUON_RMS = 0.2  # of an update of Muon, about that of AdamW's ("Muon is Scalable for LLM Training", arXiv 2502.16982)


def adam(settings: Optimizer) -> optax.GradientTransformation:
    """Return Adam; with the decay of weights that follows any of these it is AdamW."""
    return optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon)


def sgd(settings: Optimizer) -> optax.GradientTransformation:
    """Return gradient descent with a momentum of beta1."""
    return optax.trace(settings.beta1)


def lion(settings: Optimizer) -> optax.GradientTransformation:
    """Return Lion (arXiv 2302.06675)."""
    return optax.scale_by_lion(settings.beta1, settings.beta2)


def sign(settings: Optimizer) -> optax.GradientTransformation:
    """Return descent by the gradient's signs, which has no memory."""
    del settings
    return optax.scale_by_sign()


def muon(settings: Optimizer) -> optax.GradientTransformation:
    """Return Muon on the layers' matrices, its momentum beta2, and Adam with Nesterov's momentum on all else."""
    descent = optax.contrib.muon(
        1.0,
        beta=settings.beta2,
        eps=settings.epsilon,
        adam_b1=settings.beta1,
        adam_b2=settings.beta2,
        muon_weight_dimension_numbers=matrix_axes,
        consistent_rms=MUON_RMS,
    )
    return optax.chain(descent, optax.scale(-1.0))  # the step itself goes downhill


def matrix_axes(params: PyTree) -> PyTree:
    """Return of each leaf of a model's weights, or of adapters to them, which axes face in and out; None of others."""

    def axes(path: tuple[object, ...], leaf: jax.Array) -> MuonDimensionNumbers | None:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        adapter = names[-1] in ("a", "b") and len(names) > 1
        name = names[-2] if adapter else names[-1]
        if name not in FANS or not (adapter or "layers" in names):
            return None
        lead = 1 + FANS[name][0][0]  # the layers, and the axis that tells two matrices of one tensor apart
        inputs = 1 if names[-1] == "b" else len(FANS[name][0])
        return MuonDimensionNumbers(tuple(range(lead, lead + inputs)), tuple(range(lead + inputs, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)


OPTIMIZERS: dict[str, Callable[[Optimizer], optax.GradientTransformation]] = {
    "adamw": adam,
    "sgd": sgd,
    "lion": lion,
    "muon": muon,
    "sign": sign,
}
