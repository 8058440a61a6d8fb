"""What a model scores before any step of its attacks is measured once for all that begin with it, and for no others."""

from __future__ import annotations

import io
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.io.metrics import Progress
from distill_jax.stages.context import Context
from distill_jax.stages.training import EvaluationPlan, PartsEvaluation

pytestmark = pytest.mark.unit


class Counted:
    """An evaluator whose score is the sum of a member's weights, and which counts what it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, params: Any, base: Any = None) -> np.ndarray:
        self.calls += 1
        return np.stack([np.asarray(params["w"]).sum(axis=1)], axis=1)


def context(evaluator: Counted, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Return a context in which every node's weights are its name's length, everywhere."""
    ctx = Context(None, {}, Path(), Progress(0, 0.0, 0.0, io.StringIO()))
    monkeypatch.setattr(ctx, "evaluator", lambda mesh, *parts: evaluator)
    monkeypatch.setattr(ctx, "params", lambda name, mesh=None: {"w": jnp.full(3, float(len(name)))})
    return ctx


def begun(ctx: Context, start: str) -> list[Any]:
    return ctx.starts([types.SimpleNamespace(inputs={"start": start})], None)


def score(ctx: Context, weights: Any, start: str, members: int = 2, step: int = 0) -> np.ndarray:
    """Return what a population with these weights scores at a step."""
    population = jax.tree.map(lambda x: jnp.stack([x] * members), weights)
    evaluation = PartsEvaluation(ctx, None, [], EvaluationPlan(lambda step: True), start)
    return evaluation._scores(types.SimpleNamespace(params=population, step=step), None)


def test_attacks_on_one_model_measure_it_once_before_their_first_step(monkeypatch):
    evaluator = Counted()
    ctx = context(evaluator, monkeypatch)
    for _ in range(3):  # three attacks
        (weights,) = begun(ctx, "maxent")
        start = ctx.loaded_from(weights)
        assert start == "maxent" and score(ctx, weights, start).tolist() == [[18.0], [18.0]]
    assert evaluator.calls == 1
    assert score(ctx, {"w": weights["w"] + 1}, start, step=10).tolist() == [[21.0], [21.0]]  # later each its own
    assert score(ctx, weights, start, members=3).shape == (3, 1)  # another program
    (other,) = begun(ctx, "oracle-of-another")
    assert score(ctx, other, ctx.loaded_from(other)).tolist() == [[51.0], [51.0]]
    assert evaluator.calls == 4 and {key[0] for key in ctx.scores_at_start} == {"oracle-of-another"}


def test_what_is_changed_before_the_first_step_is_measured_itself(monkeypatch):
    """Shrunk, or drawn anew, weights are no node's; nor are those that an earlier call loaded and gave away."""
    evaluator = Counted()
    ctx = context(evaluator, monkeypatch)
    (weights,) = begun(ctx, "maxent")
    shrunk = jax.tree.map(lambda x: 0.5 * x, weights)
    assert ctx.loaded_from(shrunk) == "" == ctx.loaded_from({"w": weights["w"], "more": weights["w"]})
    for params in (weights, shrunk, shrunk):
        score(ctx, params, ctx.loaded_from(params))
    assert evaluator.calls == 3
