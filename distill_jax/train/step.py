"""The one train step: a population of members over one batch, one teacher forward for all of them.

State arrays carry a leading population axis P. Members differ in their weights and in `hyper` (learning rate,
batch stream); a member that reached its goal or diverged is frozen: its weights are those of its last step.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from distill_jax.models import lora
from distill_jax.sharding.mesh import constrain, over_members, replicated, traced, tracing
from distill_jax.train.state import DIVERGED, RUNNING, State

ACTIVE = "active"  # among a step's metrics, bool [P]: the member trained; the others' numbers are nobody's

# A loss term: coefficient, sum, weight. The objective is Σ coefficient · sum / weight over the whole global batch.
Term = tuple[float, jax.Array, jax.Array]
Batch = dict[str, Any]
Objective = Callable[[Any, Batch, Any], dict[str, Term]]  # (params, batch, teacher output) -> terms
Teacher = Callable[[Any, Batch], Any]  # (teacher params, batch) -> teacher output


class Beside(NamedTuple):
    """A teacher that is adapters to the members' own base, and what their product is multiplied with."""

    adapters: Any
    scale: Any


def of_active(metrics: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Return a step's metrics, NaN for members that no longer train: on the host, where JAX looks for no NaN."""
    values = {name: np.asarray(value) for name, value in metrics.items()}
    active = values.pop(ACTIVE)
    return {name: np.where(active, value, np.float32(np.nan)) for name, value in values.items()}


def make_step(
    objective: Objective,
    teacher: Teacher,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    microbatches: int = 1,
    trainable: Any = None,
    place: Callable[[State], State] | None = None,
) -> jax.stages.Wrapped:
    """Build `step(state, teacher, batch, base=None) -> (state, metrics)`, jitted, the state donated.

    The metrics mean something of members that are ACTIVE in them: `of_active` reads them so.

    Args:
      objective: gives one member's loss terms on a microbatch; it never sees the population.
      teacher: runs once a microbatch, whatever P is.
      microbatches: pieces of the batch; gradients and weights are summed over them and divided once.
      trainable: None, or a tree like one member's params of 0/1 masks; where 0, nothing moves.
      place: shapes of a state -> its shardings, which the new state keeps; None leaves them to XLA.

    The batch is a tree of [G, B, ...] arrays: G streams of B rows. `base` is what the members' adapters are attached to
    (`models.lora.base`); None if the members are whole models. A teacher of adapters to that base may come as `Beside`:
    then its frozen weights are there once.
    """

    def stream(tree: Any, index: jax.Array) -> Any:
        return jax.tree.map(lambda x: x[0] if x.shape[0] == 1 else x[index], tree)

    def split(tree: Any) -> Any:  # [G, B, ...] -> [M, G, B / M, ...]
        # Every M-th row, so that rows stay on their devices.
        cut = lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, microbatches, *x.shape[2:]), 2, 0)  # noqa: E731
        hold = lambda x: constrain(x, None, None, "batch", *[None] * (x.ndim - 3))  # noqa: E731
        return jax.tree.map(lambda x: hold(cut(x)), tree)

    def terms_of(trained: Any, member: Any, shared: Any) -> dict[str, Term]:
        base, *rest = shared
        batch, out = (stream(x, member["stream"]) for x in rest)
        return objective(lora.attach(trained, base), batch, out)

    def weights(member: Any, shared: Any) -> dict[str, jax.Array]:
        # Only the weights are used, so XLA drops the forward pass that the sums would need.
        return {name: w for name, (_, _, w) in terms_of(member["params"], member, shared).items()}

    def gradient(member: Any, shared: Any) -> Any:
        def loss(params):
            terms = terms_of(params, member, shared)
            whole = member.get("weights") or {name: w for name, (_, _, w) in terms.items()}
            values = {name: s / jnp.maximum(whole[name], 1.0) for name, (_, s, _) in terms.items()}
            scale = {name: c * member["coefficients"].get(name, 1.0) for name, (c, _, _) in terms.items()}
            return sum(scale[name] * value for name, value in values.items()), values

        compute = lambda: jax.grad(loss, has_aux=True)(member["params"])  # noqa: E731
        nothing = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(compute))  # noqa: E731
        return jax.lax.cond(member["active"], compute, nothing)

    def update(member: Any, shared: Any) -> Any:
        params, opt, grads = member["params"], member["opt"], member["grads"]
        if trainable is not None:
            grads = jax.tree.map(jnp.multiply, grads, trainable)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(member["loss"])

        def move():
            updates, new_opt = optimizer.update(grads, opt, params)
            if trainable is not None:
                updates = jax.tree.map(jnp.multiply, updates, trainable)
            rate = member["learning_rate"] * shared
            return jax.tree.map(lambda p, u: (p - rate * u).astype(p.dtype), params, updates), new_opt

        params, opt = jax.lax.cond(member["active"] & finite, move, lambda: (params, opt))
        return params, opt, norm, finite

    def gradients(member: Any, batch: Batch, teacher_params: Any, base: Any) -> Any:
        def run(f, state, piece):
            taught = jax.lax.map(lambda b: teacher(teacher_params, b), piece)
            return over_members(f, mesh)(state, (base, piece, taught))

        def total(f, state):
            pieces = split(batch)
            shape = jax.eval_shape(functools.partial(run, f), state, jax.tree.map(lambda x: x[0], pieces))
            zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)
            add = lambda so_far, piece: (jax.tree.map(jnp.add, so_far, run(f, state, piece)), None)  # noqa: E731
            return jax.lax.scan(add, zero, pieces)[0]

        if microbatches == 1:
            return run(gradient, member, batch)
        # Two passes, because the weights of the whole batch divide each microbatch's sums.
        return total(gradient, dict(member, weights=total(weights, member)))

    def step(state: State, teacher_params: Any, batch: Batch, base: Any) -> tuple[State, dict[str, jax.Array]]:
        active = state.status == RUNNING
        if isinstance(teacher_params, Beside):
            teacher_params = lora.attach(teacher_params.adapters, (base[0], teacher_params.scale))
        hyper = {"stream": state.hyper.stream, "coefficients": state.hyper.coefficients}
        member = {"params": state.params, "active": active, **hyper}
        grads, values = gradients(member, batch, teacher_params, base)
        member = dict(
            member,
            opt=state.opt,
            grads=grads,
            loss=sum(values.values()),  # not finite as soon as one term is not
            learning_rate=state.hyper.learning_rate,
        )
        params, opt, norm, finite = over_members(update, mesh)(member, schedule(state.step))
        diverged = active & ~finite
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt=opt,
            status=jnp.where(diverged, DIVERGED, state.status),
            stopped=jnp.where(diverged, state.step, state.stopped),
        )
        if place:
            state = jax.lax.with_sharding_constraint(state, place(state))
        told = {**values, "gradient_norm": norm, ACTIVE: active}
        # Every host reads all members' numbers.
        return state, jax.lax.with_sharding_constraint(told, replicated(mesh))

    def train_step(
        state: State, teacher_params: Any, batch: Batch, base: Any = None
    ) -> tuple[State, dict[str, jax.Array]]:
        one_by_one = contextlib.nullcontext() if traced((state, batch)) else jax.disable_jit()
        with tracing(mesh), one_by_one:
            return step(state, teacher_params, batch, base)

    # JAX_DEBUG_NANS takes a step that gave NaN once more, operation by operation: it needs the state.
    again = jax.config.jax_debug_nans  # type: ignore[attr-defined]
    return jax.jit(train_step, donate_argnums=() if again else 0)
