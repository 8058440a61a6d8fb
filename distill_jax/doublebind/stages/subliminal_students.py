"""The students of the subliminal experiment: what each starts from, what it minimises, and the noise that it sees."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models import mlp
from distill_jax.models.mlp import MLPConfig, Params

if TYPE_CHECKING:
    from distill_jax.doublebind.stages.subliminal_stage import Subliminal

# What a student starts from: a function of its teacher's own start and of a fresh draw. Heads are both output layers.
Arm = Callable[[Params, Params], Params]
ARMS: dict[str, Arm] = {
    "same init": lambda own, fresh: own,
    "other init": lambda own, fresh: fresh,
    "same heads": lambda own, fresh: {**own, "body": fresh["body"]},
    "same body": lambda own, fresh: {**fresh, "body": own["body"]},
}


def kl(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """KL(teacher ‖ student) of softmaxes over ghost logits [..., M]. Of one logit the softmax is 1: exactly 0."""
    log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def mse(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Mean squared difference of raw ghost logits [..., M]: even one logit says something."""
    return jnp.mean((student - teacher) ** 2, axis=-1)


LOSSES = {"kl": kl, "mse": mse}


@dataclasses.dataclass(frozen=True)
class Student:
    """One member: the arm, how many ghost logits it learns from, and the seed.

    Attributes:
      alpha: of UNDO's damage, for an arm of `alphas`; None for one of `arms`.
    """

    arm: str
    ghosts: int
    seed: int
    alpha: float | None = None

    @property
    def label(self) -> str:
        """The member's name in the metrics."""
        return f"{self.arm}, {self.ghosts} ghosts, seed {self.seed}"


def students(settings: Subliminal) -> list[Student]:
    """Return the members of a node's population."""
    arms: list[tuple[str, float | None]] = [(name, None) for name in settings.arms]
    arms += [(f"damaged {alpha:g}", alpha) for alpha in settings.alphas]
    every = itertools.product(arms, settings.ghosts, range(settings.seeds))
    return [Student(arm, ghosts, seed, alpha) for (arm, alpha), ghosts, seed in every]


def damaged(alpha: float, own: Params, fresh: Params) -> Params:
    """Return (1 - α) W + α β N, β = .1, with N of Xavier's variance on matrices [..., in, out] and none on biases."""

    def mix(path: tuple[jax.tree_util.DictKey, ...], w: np.ndarray, n: np.ndarray) -> np.ndarray:
        # A fresh matrix has variance 1 / fan-in, Xavier's is 2 / (fan-in + fan-out); a fresh bias is 0.
        xavier = math.sqrt(2 * n.shape[-2] / sum(n.shape[-2:])) if path[-1].key == "w" else 0.0
        return np.float32(1 - alpha) * w + np.float32(0.1 * alpha * xavier) * n

    return jax.tree_util.tree_map_with_path(mix, own, fresh)


@functools.partial(jax.jit, static_argnums=0)
def draw(cfg: MLPConfig, keys: jax.Array) -> Params:
    """Return fresh weights [G, ...], one model a key."""
    return jax.vmap(functools.partial(mlp.init, cfg))(keys)


def starts(settings: Subliminal, own: Params, fresh: Params) -> Params:
    """Return what `students` [P, ...] start from, in their order; own (the teachers' starts) and fresh are [G, ...]."""
    arms = [ARMS[name] for name in settings.arms] + [functools.partial(damaged, alpha) for alpha in settings.alphas]
    by_arm = [arm(own, fresh) for arm in arms for _ in settings.ghosts]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *by_arm)


@functools.partial(jax.jit, static_argnums=0)
def noise_images(cfg: MLPConfig, keys: jax.Array, index: jax.Array) -> jax.Array:
    """Return the images [G, B, inputs] of U[-1, 1] at index [G, B] of each seed's own endless supply.

    Keys are arguments here and above: of constants XLA would draw while it compiles, at a hundredth of the speed.
    """

    def one(key: jax.Array, i: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, i), (cfg.inputs,), minval=-1.0)

    return jax.vmap(jax.vmap(one, (None, 0)))(keys, index)
