"""Perturb: UNDO's damage, a weighted mean of the weights and noise; of all weights, or of some.

W <- (1 - α) W + α β N, with N Xavier-uniform on every matrix; vectors are only shrunk ("Distillation Robustifies
Unlearning", section 4). The undamaged model stays the teacher. Ours are the rest of the family: towards a fresh draw
of the model's own initialisation in place of N, and of chosen layers, modules, neurons or magnitudes alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from distill_jax.config import ConfigError, SettingError, added
from distill_jax.data.data_config import DataConfig
from distill_jax.io.checkpoint import FINAL
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.models.transformer_layers import FANS
from distill_jax.models.weight_selection import WeightSelection
from distill_jax.stages.context import PARTS, Context, Node, seed_for
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.stages.untrained import finish_untrained, measured

TRIED = (0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # larger values of α that are tried where one damages too little


@dataclasses.dataclass(frozen=True)
class Perturb(Stage):
    """Damage a model's weights.

    Attributes:
      start: the node whose weights are damaged.
      alpha: α, the fraction of damage: 0 leaves the model as it is, 1 leaves nothing of it.
      beta: β, the noise's scale against Xavier's; 0 only shrinks.
      shrink: whether the weights shrink to 1 - α; False only adds the noise, a control.
      seed: of the noise.
      noise: what N is, "xavier"; or "init", as fresh weights are drawn, of which W becomes the mean (1 - α) W + α N:
        at α = 1 it is a fresh model. β then has nothing to scale.
      modules, layers, neurons, share, order: which weights are damaged, see `WeightSelection`.
      must_lose: of the start's retain score, as a student's tolerance: what loses less is refused, for a student that
        began with it would have reached its goal. 0 asks for nothing.
    """

    start: str = stage_input()
    alpha: float = 0.6
    beta: float = 0.1
    shrink: bool = True
    seed: int = 0
    noise: str = added("xavier")
    modules: tuple[str, ...] = added(())
    layers: tuple[int, ...] = added(())
    share: float = added(1.0)
    order: str = added("smallest")
    neurons: int = added(0)
    must_lose: float = added(0.0)

    kind: ClassVar[str] = "perturb"

    def __post_init__(self) -> None:
        for name in ("modules", "layers"):  # lists, of JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self.selection.check()
        if self.order != "smallest" and self.share == 1:
            raise SettingError("order", self.order, "all weights are damaged; lower share")
        if self.noise not in ("xavier", "init"):
            raise SettingError("noise", self.noise, "choose 'xavier' or 'init'")
        if self.noise == "init" and (self.beta != Perturb.beta or not self.shrink):
            raise SettingError("noise", "init", f"reads neither beta nor shrink; leave them at {Perturb.beta} and True")
        if not 0 <= self.alpha <= 1:
            raise SettingError("alpha", self.alpha, "the damaged fraction lies in [0, 1]")
        if not 0 <= self.must_lose < 1:
            raise SettingError("must_lose", self.must_lose, "a share of the retain score lies in [0, 1)")
        if not 0 <= self.beta < math.inf:
            raise SettingError("beta", self.beta, "the noise's scale must not be negative, and finite")
        if self.alpha == 1 and self.beta == 0 and self.shrink and self.in_full:
            raise ValueError(
                "alpha = 1 with beta = 0 sets every weight to zero, and a network with a tied embedding of zeros has "
                "no gradient; use beta > 0, or a distill stage without a start for a fresh student"
            )

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return what identifies the damage: what is refused has no part in it."""
        return {key: value for key, value in super().fingerprint_fields().items() if key != "must_lose"}

    @property
    def selection(self) -> WeightSelection:
        """Which weights are damaged."""
        return WeightSelection(self.modules, self.layers, self.share, self.order, self.neurons)

    @property
    def in_full(self) -> bool:
        """Whether this is the paper's damage: of all weights, by Xavier's noise."""
        return self.noise == "xavier" and self.selection == WeightSelection()

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError if the model has none of the weights that are named."""
        del data
        self.selection.check_model(model)

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node: only its evaluation."""
        return ctx.evaluation_flops(*PARTS)

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Damage one model, and measure what is left of it."""
        mesh = ctx.mesh()
        for node in nodes:
            settings = node.settings
            key = jax.random.key(seed_for(settings.seed, "noise", settings.alpha, settings.beta))
            start = ctx.params(node.inputs["start"], mesh)
            params = settings.damaged(ctx.model, start, key)
            node.checkpoints.save(FINAL, params)
            enough = functools.partial(_check_damage, ctx, node, mesh) if settings.must_lose else None
            finish_untrained(ctx, node, mesh, params, {"steps": 0}, enough)

    def damaged(self, cfg: TransformerConfig, start: Params, key: jax.Array) -> Params:
        """Return a model's damaged weights."""
        kept = np.float32(1 - self.alpha if self.shrink else 1.0)
        if self.noise == "init":
            changed = jax.jit(interpolated, static_argnums=0)(cfg.init_std, start, key, kept)
        else:
            changed = jax.jit(damage)(start, key, kept, np.float32(self.alpha * self.beta))
        return changed if self.in_full else jax.jit(self.selection.merge)(start, changed)


def _check_damage(ctx: Context, node: Node, mesh: Mesh, scores: Mapping[str, Any]) -> None:
    """Raise ConfigError where a student that begins with the damaged model has its goal already.

    It names a larger α that does damage, if one of those tried does.
    """
    settings, scale, start = node.settings, ctx.measure.scale, node.inputs["start"]
    before = ctx.nodes[start].result()["retain"]
    if before is None or scores["retain"] is None:  # numbers that are not finite: one of them diverged
        return
    goal = scale.goal(before, settings.must_lose)
    if not scale.reaches(np.array(scores["retain"]), np.array(goal)):
        return
    params, more = ctx.params(start, mesh), "a larger --config.damage.alpha"
    for alpha in (alpha for alpha in TRIED if alpha > settings.alpha):
        key = jax.random.key(seed_for(settings.seed, "noise", alpha, settings.beta))
        damaged = dataclasses.replace(settings, alpha=alpha).damaged(ctx.model, params, key)
        retain = ctx.measure.result(measured(ctx, mesh, damaged)[0], PARTS)["retain"]
        if retain is not None and not scale.reaches(np.array(retain), np.array(goal)):
            more = f"--config.damage.alpha={alpha:g}, which leaves {retain:.2f},"
            break
    left = f"alpha = {settings.alpha:g} leaves retain {scale.name} {scores['retain']:.2f}"
    why = f"the goal of distilling is {goal:.2f}: nothing would be distilled, and nothing gained by it"
    raise ConfigError(f"{node.name}: {left}, and {why}; set {more} or --config.damage.must_lose=0")


def interpolated(init_std: float, params: Params, key: jax.Array, kept: jax.typing.ArrayLike) -> Params:
    """Return kept · W + (1 - kept) · N, N as a fresh model is drawn: normal of `init_std` on matrices, 0 on vectors."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    out = []
    for i, (path, w) in enumerate(leaves):
        drawn = path[-1].key in FANS
        noise = init_std * jax.random.normal(jax.random.fold_in(key, i), w.shape, w.dtype) if drawn else 0.0
        out.append(kept * w + (1 - kept) * noise)
    return jax.tree_util.tree_unflatten(tree, out)


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
