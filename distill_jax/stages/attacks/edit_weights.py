"""EditWeights: attacks without training, which change a model's weights once and ask what came back.

What unlearning moved by less than half a step of rounding, or hid in small weights, is there again.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.config import SettingError
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_layers import FANS
from distill_jax.stages.attacks.untrained_attack import UntrainedAttack, finish_measured
from distill_jax.stages.context import PARTS, Context, Node
from distill_jax.stages.quantise import round_to_nearest
from distill_jax.train.population import of_one

Edit = Callable[[Params], Params]


def prune(params: Params, share: jax.typing.ArrayLike) -> Params:
    """Return the weights with the smallest `share` of every matrix of the layers set to zero."""

    def pruned(path: tuple[object, ...], w: jax.Array) -> jax.Array:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        if "layers" not in names or names[-1] not in FANS:
            return w
        size = jnp.abs(w).reshape(len(w), -1)  # by layer
        least = jnp.quantile(size.astype(jnp.float32), share, axis=1)
        return jnp.where(size > least[:, None], w.reshape(len(w), -1), 0).reshape(w.shape)

    return jax.tree_util.tree_map_with_path(pruned, params)


def edit_of(name: str) -> Edit:
    """Return the edit of a name: int2 to int8 round to the nearest, prune-0.3 drops the smallest weights.

    Raises:
      ValueError: for any other name.
    """
    # Both are arguments of the compiled program: all roundings run one, and all prunings another.
    if bits := re.fullmatch(r"int([2-8])", name):
        return functools.partial(jax.jit(round_to_nearest), bits=int(bits[1]))
    if share := re.fullmatch(r"prune-(0\.\d+)", name):
        return functools.partial(jax.jit(prune), share=float(share[1]))
    raise ValueError(f"edits: {name!r} is none; choose int2 to int8, or prune- and a share below 1, such as prune-0.3")


@dataclasses.dataclass(frozen=True)
class EditWeights(UntrainedAttack):
    """Edit a model's weights in several ways, each from the model itself.

    Attributes:
      edits: names of the edits; see `edit_of`.
    """

    edits: tuple[str, ...] = ("int8", "int4", "int3", "prune-0.1", "prune-0.2", "prune-0.4")

    kind: ClassVar[str] = "edit"

    def __post_init__(self) -> None:
        if not self.edits or len(set(self.edits)) < len(self.edits):
            raise SettingError("edits", self.edits, "give at least one, each once")
        for name in self.edits:
            edit_of(name)

    def variants(self) -> dict[str, dict[str, Any]]:
        """Return the edits."""
        return {name: {"edits": name} for name in self.edits}

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Edit one model and measure each result."""
        for node in nodes:
            mesh = ctx.mesh()
            params = ctx.params(node.inputs["start"], mesh)
            evaluate, edits = ctx.evaluator(mesh, *PARTS), node.settings.edits
            with ctx.clock.spent_on("evaluate"):
                scores = [evaluate(of_one(edit_of(name)(params)))[0] for name in edits]
            finish_measured(ctx, node, np.stack(scores), mesh.size)
