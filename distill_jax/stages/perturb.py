"""Perturb: UNDO's damage, a weighted mean of the weights and noise.

W <- (1 - α) W + α β N, with N Xavier-uniform on every matrix; vectors are only shrunk ("Distillation Robustifies
Unlearning", section 4). The undamaged model stays the teacher.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np

from distill_jax.io.checkpoint import FINAL
from distill_jax.models.transformer import FANS, Params
from distill_jax.stages.context import PARTS, Context, Node, seed_for
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.stages.untrained import finish_untrained


@dataclasses.dataclass(frozen=True)
class Perturb(Stage):
    """Damage a model's weights.

    Attributes:
      start: the node whose weights are damaged.
      alpha: α, the fraction of damage: 0 leaves the model as it is, 1 leaves nothing of it.
      beta: β, the noise's scale against Xavier's; 0 only shrinks.
      shrink: whether the weights shrink to 1 - α; False only adds the noise, a control.
      seed: of the noise.
    """

    start: str = stage_input()
    alpha: float = 0.6
    beta: float = 0.1
    shrink: bool = True
    seed: int = 0

    kind: ClassVar[str] = "perturb"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha = {self.alpha}: the damaged fraction lies in [0, 1]")
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta = {self.beta}: the noise's scale must not be negative, and finite")
        if self.alpha == 1 and self.beta == 0 and self.shrink:
            raise ValueError(
                "alpha = 1 with beta = 0 sets every weight to zero, and a network with a tied embedding of zeros has "
                "no gradient; use beta > 0, or a distill stage without a start for a fresh student"
            )

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node: only its evaluation."""
        return ctx.evaluation_flops(*PARTS)

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Damage one model, and measure what is left of it."""
        mesh = ctx.mesh()
        for node in nodes:
            began, settings = time.monotonic(), node.settings
            key = jax.random.key(seed_for(settings.seed, "noise", settings.alpha, settings.beta))
            start = ctx.params(node.inputs["start"], mesh)
            kept = 1.0 if not settings.shrink else 1 - settings.alpha
            params = jax.jit(damage)(start, key, np.float32(kept), np.float32(settings.alpha * settings.beta))
            node.checkpoints.save(FINAL, params)
            finish_untrained(ctx, node, mesh, params, began, {"steps": 0})


def damage(params: Params, key: jax.Array, kept: jax.typing.ArrayLike, noise_scale: jax.typing.ArrayLike) -> Params:
    """Return kept · W + noise_scale · N for every matrix W and kept · w for every vector w, kept = 1 - α, scale = α β.

    Both factors are arguments of the compiled program: every α and β runs the same one.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    out = []
    for i, (path, w) in enumerate(leaves):
        names = [entry.key for entry in path]
        w_new = kept * w
        if names[-1] in FANS:
            shape = w.shape[1:] if "layers" in names else w.shape
            fan_in, fan_out = (math.prod(shape[a] for a in axes) for axes in FANS[names[-1]])
            bound = math.sqrt(6 / (fan_in + fan_out))
            noise = jax.random.uniform(jax.random.fold_in(key, i), w.shape, w.dtype, -bound, bound)
            w_new = w_new + noise_scale * noise
        out.append(w_new)
    return jax.tree_util.tree_unflatten(tree, out)
