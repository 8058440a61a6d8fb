"""Filter what a population learns: flag rows of every member, cross-fitted where the score takes students, and act.

Cross-fitted: no row is judged by a student that learnt from it. The even rows are one fold and the odd ones the other;
students of each fold start where the members do, learn for as many epochs, and judge the other fold (Chernozhukov et
al., "Double/Debiased Machine Learning").
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from distill_jax.config import check
from distill_jax.doublebind.filters import ACTIONS, Filter, Scene, suspects
from distill_jax.doublebind.toy_lm import Examples, Model
from distill_jax.doublebind.train_toy import chosen, crew_mesh, fit
from distill_jax.doublebind.world import AUDIT, PLAIN, SYSTEM
from distill_jax.io.checkpoint import FINAL
from distill_jax.sharding.mesh import over_members, padded
from distill_jax.stages.context import Context, Node
from distill_jax.train.loop import Clock
from distill_jax.train.settings import Training


def flag(given: Filter, scenes: Scene, before: np.ndarray, judge: Callable[[str], Model]) -> np.ndarray:
    """Return the rows of each member to act on, bool [P, N].

    Args:
      scenes: of every member, [P, ...]; its keys are raw ones, uint32 [P, 2].
      before: rows that were acted on already, bool [P, N].
      judge: gives for a name of `Filter.starts` the students of `judges`.
    """
    if not given.starts:
        return each_member(_suspects, given, (scenes, before))
    students = [judge(start) for start in given.starts]
    models = {name: twice(getattr(scenes, name)) for name in ("teacher", "trusted", "base", "audit", "key")}
    cut = Scene(folds(scenes.examples), folds(scenes.asked), **models)
    if given.starts == ("own",):  # the student in the teacher's place, asked as it will be
        asked = cut.asked.copy()
        asked[..., SYSTEM] = np.where(cut.examples.prompts[..., SYSTEM] == AUDIT, AUDIT, PLAIN)
        cut = cut._replace(teacher=students[0], base=students[0], asked=asked)
    else:
        cut = cut._replace(rivals=(students[0], students[1]))
    return whole(each_member(_suspects, given, (cut, folds(before))))


def act(given: Filter, scenes: Scene, flagged: np.ndarray) -> Scene:
    """Return the scenes with their examples after the action."""
    return scenes._replace(examples=each_member(_acted, given.action, (scenes, flagged)))


def judges(
    ctx: Context,
    part: Node,
    settings: Training,
    start: Model,
    examples: Examples,
    orders: Sequence[int],
    labels: Sequence[str],
    clock: Clock,
) -> Model:
    """Train two students of each member, and return for each fold the one that did not learn from it, [2 P, ...].

    Args:
      part: where they are kept, and continued.
      start: [P, ...]; examples: [P, N, ...].
      orders: each member's seed of the order of its rows.

    Raises:
      ConfigError: if one diverged: it can judge nothing.
    """
    if not part.done:
        half = dataclasses.replace(settings, steps=-(-settings.steps // 2))
        seeds, names = [s for s in orders for _ in (0, 1)], [f"{label}, fold {k}" for label in labels for k in (0, 1)]
        begin, rows = twice(start.params), folds(examples)
        params, diverged = fit(ctx, start.cfg, half, begin, rows, seeds, node=part, labels=names, clock=clock)
        check(not diverged.any(), f"{part.name}: {diverged.sum()} judges diverged; lower learning_rate")
        part.checkpoints.save(FINAL, params)
        part.finish({}, {})  # what it cost is in the ledger of the whole node
    params = part.checkpoints.restore(FINAL, part.checkpoints.shapes(FINAL))
    return Model(start.cfg, chosen(params, np.arange(2 * len(orders)) ^ 1))


def folds(tree: Any) -> Any:
    """Return arrays [P, N, ...] as [2 P, N / 2, ...]: of each member the even rows, then the odd ones."""

    def cut(x: np.ndarray) -> np.ndarray:
        return np.stack([x[:, 0::2], x[:, 1::2]], axis=1).reshape(-1, x.shape[1] // 2, *x.shape[2:])

    return jax.tree.map(cut, tree)


def whole(values: np.ndarray) -> np.ndarray:
    """Return what `folds` has cut, [2 P, N / 2] as [P, N]."""
    pairs = values.reshape(len(values) // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(len(pairs), -1)


def twice(tree: Any) -> Any:
    """Return arrays [P, ...] as [2 P, ...], each member for both of its folds."""
    return jax.tree.map(lambda x: np.repeat(np.asarray(x), 2, axis=0), tree)


def each_member(compute: Any, given: Any, members: Any) -> Any:
    """Return on the host what a compiled function(given, mesh, members) makes of members [P, ...]."""
    count = len(jax.tree.leaves(members)[0])
    mesh = crew_mesh(count)
    filled = chosen(members, np.minimum(np.arange(padded(count, mesh)), count - 1))
    return jax.tree.map(lambda x: np.array(x)[:count], compute(given, mesh, filled))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _suspects(given: Filter, mesh: Any, members: Any) -> jax.Array:
    return over_members(lambda m, _: suspects(given, _keyed(m[0]), m[1]), mesh)(members, ())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _acted(action: str, mesh: Any, members: Any) -> Examples:
    return over_members(lambda m, _: ACTIONS[action](_keyed(m[0]), m[1]), mesh)(members, ())


def _keyed(scene: Scene) -> Scene:
    return scene._replace(key=jax.random.wrap_key_data(scene.key))
