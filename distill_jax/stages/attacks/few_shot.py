"""FewShot: an attack by the prompt alone. Shown examples with their answers stand before every question.

The examples are documents of what an attacker is shown, one after another as they were trained on, and become a prefix
(`models.insertions`): what a model makes of a question behind them, without reading them again for each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from distill_jax.config import SettingError, check
from distill_jax.data.data_config import DataConfig
from distill_jax.data.random_stream import random_stream
from distill_jax.data.records import Rows
from distill_jax.models.insertions import Prefix, prefix_of
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.sharding.mesh import tracing
from distill_jax.stages.attacks.untrained_attack import (
    Spent,
    UntrainedAttack,
    documents_of,
    finish_measured,
    scores_of_population,
)
from distill_jax.stages.context import Context, Node, seed_for


@dataclasses.dataclass(frozen=True)
class FewShot(UntrainedAttack):
    """Ask with shown examples before the question.

    Attributes:
      data: the set whose documents are the examples.
      shots: how many of them, a variant each.
      seeds: how often examples are drawn; of one draw fewer shots are the first of more.
      seed: of the draws.
    """

    data: str = "forget_shown"
    shots: tuple[int, ...] = (1, 4, 16)
    seeds: int = 3
    seed: int = 0

    kind: ClassVar[str] = "few_shot"
    removable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise SettingError("shots", self.shots, "give at least one, each once, none below 1")
        if self.seeds < 1:
            raise SettingError("seeds", self.seeds, "must be at least 1")

    def variants(self) -> dict[str, dict[str, Any]]:
        """Return the numbers of examples."""
        return {f"{count}-shot": {"shots": count} for count in self.shots}

    def draws(self) -> int:
        """Return how often examples are drawn."""
        return self.seeds

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError if the data lack the set."""
        super().validate(model, data)
        data.check_set("data", self.data)

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Ask one model behind every draw of examples."""
        for node in nodes:
            stage: FewShot = node.settings
            mesh = ctx.mesh(len(stage.labels()))
            params = ctx.params(node.inputs["start"], mesh, frozen=True)
            prompts = stage.prompts(ctx)
            width = max(map(len, prompts))
            read = prefix_reader(ctx.model, mesh)
            prefixes = [read(params, *padded_left(tokens, width)) for tokens in prompts]
            scores = scores_of_population(ctx, mesh, prefixes, (params, np.float32(1.0)), ctx.model)
            spent = {
                name: Spent(count, flops.forward(ctx.model, 1, width, head=False))
                for name, count in zip(stage.variants(), stage.shots, strict=True)
            }
            finish_measured(ctx, node, scores, mesh.size, spent)

    def prompts(self, ctx: Context) -> list[np.ndarray]:
        """Return the tokens before the question of each member, in the order of the labels."""
        rows, most, out = Rows(ctx.data / f"{self.data}.array_record"), max(self.shots), []
        for seed in range(self.seeds):
            order = random_stream(seed_for(self.seed, "examples", seed), self.data).permutation(len(rows)).tolist()
            shown = documents_of(rows, order, most)
            fix_hint = f"the set {self.data!r} has {len(shown)} different documents; choose at most so many"
            check(len(shown) == most, f"shots = {self.shots}: {fix_hint}")
            out += [np.concatenate(shown[:count]) for count in self.shots]
        return out


def padded_left(tokens: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens filled up to a width on the left, and where they are no padding; int32 [width] each."""
    padding = (width - len(tokens), 0)
    return np.pad(tokens, padding).astype(np.int32), np.pad(np.ones(len(tokens), np.int32), padding)


@functools.cache
def prefix_reader(cfg: TransformerConfig, mesh: Mesh) -> jax.stages.Wrapped:
    """Return read(params, tokens, held=None) -> the prefix that tokens are, compiled for a mesh."""

    def read(params: Params, tokens: jax.Array, held: jax.Array | None = None) -> Prefix:
        with tracing(mesh):
            return prefix_of(cfg, params, tokens, held)

    return jax.jit(read)
