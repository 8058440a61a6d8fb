"""How a stage that takes no steps ends: its model is measured once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from distill_jax.evals.measure import all_finite
from distill_jax.models.transformer import Params
from distill_jax.perf.ledger import ledger
from distill_jax.stages.context import PARTS, Context, Node
from distill_jax.train.population import of_one


def finish_untrained(
    ctx: Context, node: Node, mesh: Mesh, params: Params, more: Mapping[str, object],
    check_scores: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:  # fmt: skip
    """Evaluate a node's model in full, and write its result and ledger.

    Args:
      more: what its result has besides the scores.
      check_scores: raises ConfigError for scores with which nothing is to go on; the node then stays unfinished.
    """
    seen = measured(ctx, mesh, params)
    if check_scores:
        check_scores(ctx.measure.result(seen[0], PARTS))
    ends = {"recovered": False, "diverged": not all_finite(seen)[0]}
    spent, tokens = {"evaluation": ctx.evaluation_flops(*PARTS)}, {"evaluation": ctx.measure.tokens(PARTS)}
    costs = ledger(spent, tokens, ctx.clock.lap(), devices=mesh.size)
    node.finish({**ctx.measure.result(seen[0], PARTS), **more, **ends}, costs)


def measured(ctx: Context, mesh: Mesh, params: Params) -> np.ndarray:
    """Return what one model's evaluation on all parts gives, fp64 [1, n]."""
    with ctx.clock.spent_on("evaluate"):
        return ctx.evaluator(mesh, *PARTS)(of_one(params))
