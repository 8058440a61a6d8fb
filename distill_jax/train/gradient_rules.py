"""How a step's gradient is made of those of its loss terms, where it is not their sum at the weights as they are.

A rule is given gradients of chosen terms, each over the whole global batch: it knows of no microbatches, and so is
right under any number of them. Trees are of all members, [P, ...]; what is done to a member's own is done by `each`,
where the member lies, so that no device waits for another.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from distill_jax.models.transformer import Params
from distill_jax.models.transformer_layers import FANS
from distill_jax.models.weight_selection import WeightSelection

Metrics = dict[str, jax.Array]
# (params [P, ...], the terms) -> the gradient of their sum, and their values [P]
TermGradient = Callable[[Params, tuple[str, ...]], tuple[Params, Metrics]]


Each = Callable[..., Params]  # (f, *trees [P, ...]) -> f of each member's own


class GradientRule(Protocol):
    """Return the members' gradient and loss terms, given those of chosen terms at any weights."""

    def __call__(self, gradient: TermGradient, params: Params, each: Each) -> tuple[Params, Metrics]: ...


def moved(length: float, params: Params, direction: Params) -> Params:
    """Return one member's weights moved by a length along a direction; not where that is 0."""
    scale = length / jnp.maximum(optax.tree.norm(direction), 1e-12)
    return jax.tree.map(lambda w, g: (w + scale * g).astype(w.dtype), params, direction)


def _sum(a: Params, b: Params) -> Params:
    return jax.tree.map(jnp.add, a, b)


def _with_terms(
    names: tuple[str, ...], gradient: TermGradient, params: Params, grads: Params, values: Metrics
) -> tuple[Params, Metrics]:
    """Add the gradients of further terms, where the weights are, and their values."""
    if not names:
        return grads, values
    more, more_values = gradient(params, names)
    return _sum(grads, more), values | more_values


@dataclasses.dataclass(frozen=True)
class SharpnessAware:
    """The gradient of "forget" at the worst weights near by, and those of the other terms where the weights are.

    ∇L_f(θ + ρ g / ‖g‖) + ∇L_r(θ), g = ∇L_f(θ) (SAM, arXiv:2010.01412, of the forget loss alone as in arXiv:2502.05374).

    Attributes:
      radius: ρ.
      rest: the other terms.
    """

    radius: float
    rest: tuple[str, ...]

    def __call__(self, gradient: TermGradient, params: Params, each: Each) -> tuple[Params, Metrics]:
        uphill, values = gradient(params, ("forget",))
        grads, _ = gradient(each(functools.partial(moved, self.radius), params, uphill), ("forget",))
        return _with_terms(self.rest, gradient, params, grads, values)


@dataclasses.dataclass(frozen=True)
class TamperResistant:
    """The mean gradient of "forget" along an attacker's path, and those of the other terms where the weights are.

    1 / (K + 1) Σ_k ∇L_f(θ_k) + ∇L_r(θ), θ_0 = θ, θ_{k + 1} = θ_k - η g / ‖g‖, g = ∇L_a(θ_k): what TAR does to first
    order (arXiv:2408.00761, algorithm 1), with an attacker's steps of a fixed length η, on a batch of its own.

    Attributes:
      steps: K.
      length: η.
      rest: the other terms but "attack".
    """

    steps: int
    length: float
    rest: tuple[str, ...]

    def __call__(self, gradient: TermGradient, params: Params, each: Each) -> tuple[Params, Metrics]:
        total, values = gradient(params, ("forget",))

        def step(carry: tuple[Params, Params], _: None) -> tuple[tuple[Params, Params], Metrics]:
            at, total = carry
            towards, attacked = gradient(at, ("attack",))
            at = each(functools.partial(moved, -self.length), at, towards)
            return (at, _sum(total, gradient(at, ("forget",))[0])), attacked

        (_, total), attacked = jax.lax.scan(step, (params, total), None, length=self.steps)
        grads = jax.tree.map(lambda g: g / (self.steps + 1), total)
        values |= {"attack": attacked["attack"][0]}
        return _with_terms(self.rest, gradient, params, grads, values)


@dataclasses.dataclass(frozen=True)
class ProjectedOut:
    """The gradient of "forget" without what that of "retain" uses of every matrix, and that of "retain".

    Of a matrix F' = (I - U Uᵀ) F (I - V Vᵀ), where U and V span the first `rank` singular directions of the retain
    gradient R on either side, but at most half of a side; of vectors, which all data share, nothing.

    Attributes:
      rank: directions that are taken out.
    """

    rank: int

    def __call__(self, gradient: TermGradient, params: Params, each: Each) -> tuple[Params, Metrics]:
        forget, values = gradient(params, ("forget",))
        retain, more = gradient(params, ("retain",))
        project = functools.partial(jax.tree_util.tree_map_with_path, self._project)
        return _sum(each(project, forget, retain), retain), values | more

    def _project(self, path: tuple[jax.tree_util.DictKey, ...], forget: jax.Array, retain: jax.Array) -> jax.Array:
        name, stacked = path[-1].key, path[0].key == "layers"
        if name not in FANS:
            return jnp.zeros_like(forget)
        inputs, outputs = FANS[name]
        one = functools.partial(self._matrix, inputs, outputs)
        return (jax.vmap(one) if stacked else one)(forget, retain)

    def _matrix(
        self, inputs: tuple[int, ...], outputs: tuple[int, ...], forget: jax.Array, retain: jax.Array
    ) -> jax.Array:
        """Project one layer's tensor, which may hold several matrices along its first axes."""
        others = tuple(i for i in range(forget.ndim) if i not in (*inputs, *outputs))
        order = (*others, *inputs, *outputs)
        shape = [forget.shape[i] for i in order]
        rows = math.prod(forget.shape[i] for i in inputs)
        matrices = (-1, rows, math.prod(forget.shape[i] for i in outputs))
        f, r = (jnp.transpose(x, order).reshape(matrices) for x in (forget, retain))
        projected = jax.vmap(functools.partial(project_out, self.rank))(f, r)
        back = sorted(range(forget.ndim), key=order.__getitem__)
        return jnp.transpose(projected.reshape(shape), back)


def project_out(rank: int, f: jax.Array, r: jax.Array) -> jax.Array:
    """Return F [m, n] without the first singular directions of R [m, n] on either side."""
    rank = min(rank, min(f.shape) // 2)
    left, right = singular_directions(r, rank)
    f = f - left @ (left.T @ f)
    return f - (f @ right) @ right.T


def singular_directions(r: jax.Array, rank: int, iterations: int = 3) -> tuple[jax.Array, jax.Array]:
    """Return orthonormal [m, rank] and [n, rank] near the first left and right singular vectors of R [m, n].

    By subspace iteration from a fixed random start (Halko et al., arXiv:0909.4061, algorithm 4.4).
    """
    right = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (r.shape[1], rank)))[0]
    left = jnp.zeros((r.shape[0], rank))
    for _ in range(iterations):
        left = jnp.linalg.qr(r @ right)[0]
        right = jnp.linalg.qr(r.T @ left)[0]
    return left, right


@dataclasses.dataclass(frozen=True)
class Routed:
    """The gradient of "forget" in a part of the weights, and that of "retain" in all others.

    Attributes:
      part: the weights that forget data move, and nothing else does.
    """

    part: WeightSelection

    def __call__(self, gradient: TermGradient, params: Params, each: Each) -> tuple[Params, Metrics]:
        forget, values = gradient(params, ("forget",))
        retain, more = gradient(params, ("retain",))
        return each(self.part.merge, retain, forget), values | more
