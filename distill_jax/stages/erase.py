"""Erase: take out of a model what training is known to have put in, weight by weight.

W = start - (taught - untaught). Where `taught` was trained from `untaught`, their difference is all that it learned,
and what `start`, made from `taught`, knows of it is gone and not merely hidden. So the truth about a model is known: an
attack must bring back what is hidden, and nothing of what is erased (placing facts in known weights is an idea of
LACUNA, arXiv 2607.02513; taking them out by subtraction is ours).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax

from distill_jax.io.checkpoint import FINAL
from distill_jax.models.transformer import Params
from distill_jax.stages.context import PARTS, Context, Node
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.stages.untrained import finish_untrained


@dataclasses.dataclass(frozen=True)
class Erase(Stage):
    """Subtract from a model what one learned that was trained from another.

    Attributes:
      start: the node whose weights are changed.
      taught: the node that learned; untaught: the node that it was trained from.
    """

    start: str = stage_input()
    taught: str = stage_input()
    untaught: str = stage_input()

    kind: ClassVar[str] = "erase"

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node: only its evaluation."""
        return ctx.evaluation_flops(*PARTS)

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Erase from one model, and measure what is left of it."""
        mesh = ctx.mesh()
        for node in nodes:
            three = (ctx.params(node.inputs[name], mesh) for name in ("start", "taught", "untaught"))
            params = jax.jit(subtract)(*three)
            node.checkpoints.save(FINAL, params)
            finish_untrained(ctx, node, mesh, params, {"steps": 0})


def subtract(start: Params, taught: Params, untaught: Params) -> Params:
    """Return start - (taught - untaught), leaf by leaf."""
    return jax.tree.map(lambda w, with_facts, without: w - (with_facts - without), start, taught, untaught)
