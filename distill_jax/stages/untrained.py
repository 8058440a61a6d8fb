"""How a stage that takes no steps ends: its model is measured once."""

from __future__ import annotations

from collections.abc import Mapping

from jax.sharding import Mesh

from distill_jax.evals.measure import all_finite
from distill_jax.models.transformer import Params
from distill_jax.perf.ledger import ledger
from distill_jax.stages.context import PARTS, Context, Node
from distill_jax.train.population import of_one


def finish_untrained(ctx: Context, node: Node, mesh: Mesh, params: Params, more: Mapping[str, object]) -> None:
    """Evaluate a node's model in full, and write its result and ledger.

    Args:
      more: what its result has besides the scores.
    """
    with ctx.clock.spent_on("evaluate"):
        seen = ctx.evaluator(mesh, *PARTS)(of_one(params))
    ends = {"recovered": False, "diverged": not all_finite(seen)[0]}
    spent, tokens = {"evaluation": ctx.evaluation_flops(*PARTS)}, {"evaluation": ctx.measure.tokens(PARTS)}
    costs = ledger(spent, tokens, ctx.clock.lap(), devices=mesh.size)
    node.finish({**ctx.measure.result(seen[0], PARTS), **more, **ends}, costs)
