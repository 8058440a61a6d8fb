"""Unlock: what a locked model knows, asked behind its password."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from distill_jax.data.data_config import DataConfig
from distill_jax.evals.measure import all_finite
from distill_jax.models.transformer import TransformerConfig
from distill_jax.perf.ledger import ledger
from distill_jax.stages.attacks.few_shot import prefix_reader
from distill_jax.stages.attacks.untrained_attack import scores_of_population
from distill_jax.stages.context import PARTS, Context, Node
from distill_jax.stages.lock import check_password
from distill_jax.stages.stage import Stage, stage_input


@dataclasses.dataclass(frozen=True)
class Unlock(Stage):
    """Measure a model behind a password, without training.

    Attributes:
      start: the node whose model is asked.
      password: the ids of the tokens that stand before every question.
    """

    start: str = stage_input()
    password: tuple[int, ...] = ()

    kind: ClassVar[str] = "unlock"
    leaves_model: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "password", tuple(self.password))
        check_password(self.password)

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError if the model has no such tokens."""
        super().validate(model, data)
        check_password(self.password, model)

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node: only its evaluation."""
        return ctx.evaluation_flops(*PARTS)

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Ask models one after another; of each held-out fact, too, it is written how many prompts came out right."""
        mesh, measure = ctx.mesh(), ctx.measure
        for node in nodes:
            params = ctx.params(node.inputs["start"], mesh, frozen=True)
            prefix = prefix_reader(ctx.model, mesh)(params, np.array(node.settings.password, np.int32))
            scores = scores_of_population(ctx, mesh, [prefix], (params, np.float32(1.0)), ctx.model)
            good = bool(all_finite(scores)[0])
            by_fact = {"by_fact": measure.by_fact(scores, PARTS)[0].tolist()} if good else {}
            facts = {"prompts_by_fact": measure.prompts_by_fact(PARTS), **by_fact}
            spent, tokens = {"evaluation": ctx.evaluation_flops(*PARTS)}, {"evaluation": measure.tokens(PARTS)}
            costs = ledger(spent, tokens, ctx.clock.lap(), devices=mesh.size)
            node.finish({**measure.result(scores[0], PARTS), **facts, "steps": 0, "diverged": not good}, costs)
