"""Filter what a population learns: flag rows of every member, cross-fitted where the score takes students, and act.

Cross-fitted: no row is judged by a student that learnt from it. The even rows are one fold and the odd ones the other;
students of each fold start where the members do, learn for as many epochs, and judge the other fold (Chernozhukov et
al., "Double/Debiased Machine Learning").
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.config import check
from distill_jax.doublebind.filter_actions import ACTIONS
from distill_jax.doublebind.filter_scores import FilterInputs
from distill_jax.doublebind.filters import Filter, flag_rows
from distill_jax.doublebind.toy_lm import Examples, Model
from distill_jax.doublebind.train_toy import MemberTraining, chosen, fit, population_mesh
from distill_jax.doublebind.world import AUDIT, PLAIN, SYSTEM
from distill_jax.io.checkpoint import FINAL
from distill_jax.sharding.mesh import over_members, padded
from distill_jax.stages.context import Node

Tree = TypeVar("Tree")  # a pytree of arrays
Static = TypeVar("Static")
Out = TypeVar("Out")


def flag(row_filter: Filter, inputs: FilterInputs, flagged: np.ndarray, judge: Callable[[str], Model]) -> np.ndarray:
    """Return the further rows of each member to act on, bool [P, N].

    Args:
      inputs: of every member, [P, ...]; its keys are raw ones, uint32 [P, 2].
      flagged: rows that were acted on already, bool [P, N].
      judge: gives for a name of `Filter.starts` the students of `judges`.
    """
    if not row_filter.starts:
        return each_member(_flagged, row_filter, (inputs, flagged))
    students = [judge(start) for start in row_filter.starts]
    halves = FilterInputs(
        examples=folds(inputs.examples),
        teacher_prompts=folds(inputs.teacher_prompts),
        teacher=for_both_folds(inputs.teacher),
        trusted=for_both_folds(inputs.trusted),
        base=for_both_folds(inputs.base),
        audit=for_both_folds(inputs.audit),
        key=for_both_folds(inputs.key),
    )
    if row_filter.starts == ("own",):  # the student in the teacher's place, asked as it will be
        prompts = np.array(halves.teacher_prompts)
        prompts[..., SYSTEM] = np.where(np.asarray(halves.examples.prompts)[..., SYSTEM] == AUDIT, AUDIT, PLAIN)
        halves = halves._replace(teacher=students[0], base=students[0], teacher_prompts=jnp.asarray(prompts))
    else:
        halves = halves._replace(rivals=(students[0], students[1]))
    return unfolded(each_member(_flagged, row_filter, (halves, folds(flagged))))


def act(row_filter: Filter, inputs: FilterInputs, flagged: np.ndarray) -> FilterInputs:
    """Return the inputs with their examples after the action."""
    return inputs._replace(examples=each_member(_acted, row_filter.action, (inputs, flagged)))


def judges(training: MemberTraining, node: Node, start: Model, examples: Examples) -> Model:
    """Train two students of each member, and return for each fold the one that did not learn from it, [2 P, ...].

    Args:
      node: where they are kept, and continued.
      start: [P, ...].
      examples: [P, N, ...].

    Raises:
      ConfigError: if one diverged: it can judge nothing.
    """
    if not node.done:
        half = dataclasses.replace(training.settings, steps=-(-training.settings.steps // 2))
        orders = [order for order in training.orders for _ in (0, 1)]
        labels = [f"{label}, fold {k}" for label in training.labels for k in (0, 1)]
        of_folds = dataclasses.replace(training, settings=half, orders=orders, labels=labels)
        params, diverged = fit(of_folds, Model(start.cfg, for_both_folds(start.params)), folds(examples), node)
        check(not diverged.any(), f"{node.name}: {diverged.sum()} judges diverged; lower learning_rate")
        node.checkpoints.save(FINAL, params)
        node.finish({}, {})  # what it cost is in the ledger of the whole node
    params = node.checkpoints.restore(FINAL, node.checkpoints.shapes(FINAL))
    return Model(start.cfg, chosen(params, np.arange(2 * len(training.orders)) ^ 1))


def folds(tree: Tree) -> Tree:
    """Return arrays [P, N, ...] as [2 P, N / 2, ...]: of each member the even rows, then the odd ones."""

    def cut(x: np.ndarray) -> np.ndarray:
        return np.stack([x[:, 0::2], x[:, 1::2]], axis=1).reshape(-1, x.shape[1] // 2, *x.shape[2:])

    return jax.tree.map(cut, tree)


def unfolded(values: np.ndarray) -> np.ndarray:
    """Return what `folds` has cut, [2 P, N / 2] as [P, N]."""
    pairs = values.reshape(len(values) // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(len(pairs), -1)


def for_both_folds(tree: Tree) -> Tree:
    """Return arrays [P, ...] as [2 P, ...], each member for both of its folds."""
    return jax.tree.map(lambda x: np.repeat(np.asarray(x), 2, axis=0), tree)


def each_member(compute: Callable[[Static, Mesh, Tree], Out], static: Static, members: Tree) -> Out:
    """Return on the host what a compiled function(static, mesh, members) makes of members [P, ...]."""
    count = len(jax.tree.leaves(members)[0])
    mesh = population_mesh(count)
    filled = chosen(members, np.minimum(np.arange(padded(count, mesh)), count - 1))
    return jax.tree.map(lambda x: np.array(x)[:count], compute(static, mesh, filled))


Members = tuple[FilterInputs, jax.Array]  # of each member, and rows of it, bool [P, N]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _flagged(row_filter: Filter, mesh: Mesh, members: Members) -> jax.Array:
    return over_members(lambda m, _: flag_rows(row_filter, _with_key(m[0]), m[1]), mesh)(members, ())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _acted(action: str, mesh: Mesh, members: Members) -> Examples:
    return over_members(lambda m, _: ACTIONS[action](_with_key(m[0]), m[1]), mesh)(members, ())


def _with_key(inputs: FilterInputs) -> FilterInputs:
    return inputs._replace(key=jax.random.wrap_key_data(inputs.key))
