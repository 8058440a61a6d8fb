"""What the double bind's stages that train models of the world have in common."""

from __future__ import annotations

import abc
import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from distill_jax.data.data_config import DataConfig
from distill_jax.doublebind.world import VOCABULARY, WorldConfig
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages.context import Context, Node
from distill_jax.stages.stage import Stage
from distill_jax.stages.train_stage import NO_ADAPTERS
from distill_jax.train.settings import Training


@dataclasses.dataclass(frozen=True)
class SmallModels(Stage, Training):
    """A stage that trains a population of small models, each whole on one device, in fp32."""

    leaves_model: ClassVar[bool] = False  # but a population of them
    retired: ClassVar[Mapping[str, object]] = types.MappingProxyType(
        {**NO_ADAPTERS, "microbatches": 1, "loss_on": "all"}
    )

    def as_dict(self) -> dict[str, Any]:
        """Return every setting by its name, as config.json and reports hold them."""
        return super().as_dict() | {"weights": "float32"}


@dataclasses.dataclass(frozen=True)
class ToyStage(SmallModels):
    """A stage that trains small decoders of the world, each on examples of its own."""

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError unless the model is a decoder of the world's vocabulary, and the data are a world's."""
        if not isinstance(data, WorldConfig) or not isinstance(model, TransformerConfig):
            raise ValueError("wants Experiment(data=WorldConfig) and a decoder, as configs/double_bind.py has")
        if model.vocab != VOCABULARY:
            raise ValueError(f"model.vocab = {model.vocab}: the world has {VOCABULARY} tokens; set it to that")

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Train and audit each node's models as one population."""
        for node in nodes:
            self.run_node(ctx, node)

    @abc.abstractmethod
    def run_node(self, ctx: Context, node: Node) -> None:
        """Train and audit one node's models, and finish it."""


def world_config(ctx: Context) -> WorldConfig:
    """Return the settings of the world that the stages of an experiment live in."""
    world = ctx.data_config
    assert isinstance(world, WorldConfig), world  # `ToyStage.validate` has refused others
    return world
