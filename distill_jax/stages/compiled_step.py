"""What a step minimises, and the key by which equal steps share one compilation."""

from __future__ import annotations

import abc
import dataclasses
import functools

import jax
from jax.sharding import Mesh

from distill_jax.losses.head_loss import HeadLoss
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.train.gradient_rules import GradientRule
from distill_jax.train.layout import ShardedMembers
from distill_jax.train.settings import Optimizer
from distill_jax.train.step import Batch, StepConfig, Term, make_step
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """What a step minimises: a frozen dataclass of the settings that decide it, and of no others."""

    @abc.abstractmethod
    def loss_terms(
        self, cfg: TransformerConfig, chunk: int, params: Params, batch: Batch, teacher_outputs: PyTree
    ) -> dict[str, Term]:
        """Return one member's loss terms on a microbatch.

        Args:
          chunk: tokens whose logits exist at a time; 0 for all.
          batch: `PackedRows` [B, T], or a dict of such for each set that is read.
          teacher_outputs: what `teacher_outputs` returned for the microbatch.
        """

    def head_losses(self) -> tuple[HeadLoss, ...]:
        """Return the losses of the head in its terms, by which impossible settings are refused before a run."""
        return ()

    def teacher_outputs(self, cfg: TransformerConfig, teacher: Params, batch: Batch) -> PyTree:
        """Return what the loss needs of the frozen teacher, which runs once a microbatch for all members."""
        del cfg, teacher, batch

    def teacher_sets(self) -> int:
        """Return how many of the sets of a batch the frozen teacher reads."""
        return 1

    def gradient_rule(self) -> GradientRule | None:
        """Return how the gradient is made of those of the terms; None for that of their sum."""
        return None

    def trainable(self, cfg: TransformerConfig) -> Params | None:
        """Return 0/1 masks like the parameters, 1 where they move; None if all do."""
        del cfg
        return None


@dataclasses.dataclass(frozen=True)
class CompileKey:
    """Everything that a step function depends on, besides the mesh; equal keys get the same function.

    Shapes of batch and population are no part of it: of one function, jit keeps a program for each.

    Attributes:
      optimizer: at a peak learning rate of 1, as the peak is the member's.
      steps: over which its schedule runs.
      microbatches: pieces of the batch.
      chunk: tokens whose logits exist at a time; 0 for all.
    """

    model: TransformerConfig
    objective: Objective
    optimizer: Optimizer
    steps: int
    microbatches: int
    chunk: int

    def with_remat(self, policy: str) -> CompileKey:
        """Return the key of the step that computes again what another policy says."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, remat=policy))


@functools.cache
def compiled_step(key: CompileKey, mesh: Mesh) -> jax.stages.Wrapped:
    """Return the step function of a key on a mesh."""
    cfg, objective = key.model, key.objective
    layout = ShardedMembers(mesh, cfg)
    return make_step(
        functools.partial(objective.loss_terms, cfg, key.chunk),
        functools.partial(objective.teacher_outputs, cfg),
        StepConfig(
            key.optimizer, key.steps, layout, key.microbatches, objective.trainable(cfg), objective.gradient_rule()
        ),
    )
