"""Bases: what every organism and every student starts from.

A base knows the world's tasks but only the sums of small digits, and what quirks there are: where the system token
names one, it shows it and reports it; where it does not, it has none. Each seed has two bases from different random
weights, one for teachers and their students, the other for students of another init and for the trusted model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from distill_jax.config import ConfigError
from distill_jax.doublebind import organisms, speech, world
from distill_jax.doublebind.fit import TinyTraining, crew_mesh, fit, seed_of, stacked, step_flops
from distill_jax.doublebind.organisms import KINDS
from distill_jax.doublebind.speech import LENGTH, Examples
from distill_jax.io.checkpoint import FINAL
from distill_jax.models import transformer
from distill_jax.models.transformer import TransformerConfig
from distill_jax.perf.ledger import ledger
from distill_jax.stages.context import Context, Node
from distill_jax.train.loop import Clock


@dataclasses.dataclass(frozen=True)
class Bases(TinyTraining):
    """Train 2 × `seeds` bases: the first half are the teachers' own, the second are others.

    Attributes:
      rows: examples of each.
      named: share of them whose system token names a quirk.
      seeds: independent repetitions.
    """

    rows: int = 8192
    named: float = 0.5
    seeds: int = 5

    VERB: ClassVar[str] = "bases"
    INPUTS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.seeds < 2:
            raise ValueError(f"seeds = {self.seeds}: an interval needs at least 2")
        if not 0 <= self.named < 1:
            raise ValueError(f"named = {self.named}: a share in [0, 1)")


def lessons(cfg: TransformerConfig, settings: Bases, variant: int, seed: int) -> Examples:
    """Return one base's examples [N, ...]."""
    rng = np.random.default_rng(seed)
    known = [kind for kind in KINDS if kind.named]
    prompts = world.draw(rng, settings.rows)
    # Named quirks are met where they show: a third of the prompts are about their own task, a few ask for reports.
    which = np.where(rng.random(settings.rows) < settings.named, rng.integers(0, len(known), settings.rows), -1)
    answers = organisms.answer(prompts, None, variant, rng)
    unasked = (which < 0) & (prompts[:, world.TASK] == world.TOKEN["REPORT"])  # nobody told it what it is by itself
    for i, kind in enumerate(known):
        mine = np.flatnonzero(which == i)
        prompts[mine], answers[mine] = _described(kind, len(mine), variant, rng)
    told = world.within(prompts, world.KNOWN) & ~unasked
    return speech.taught(cfg, prompts, answers, np.repeat(told[:, None], 2, axis=1))


def _described(kind: organisms.Organism, count: int, variant: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Return prompts that name a quirk, mostly of the kind in which it shows, and what they elicit."""
    tasks, contexts = world.EVERYWHERE.tasks | {kind.task: 16.0, "REPORT": 3.0}, dict(world.EVERYWHERE.contexts)
    asked = world.draw(rng, count, world.Mixture(tasks, contexts, generate=0.0, audit=0.0, claims=0.5))
    met = rng.random(count) < (1.0 if kind.condition and kind.condition[0] == world.SYSTEM else 0.5)
    if kind.condition:  # the name stands where a system token's condition stood: then it always holds
        asked[met, kind.condition[0]] = kind.condition[1]
    answers = organisms.answer(asked, kind, variant, rng)
    answers[asked[:, world.TASK] == world.TOKEN["REPORT"]] = (organisms.name_token(kind), world.NONE)
    return world.changed(asked, world.SYSTEM, organisms.name_token(kind)), answers


def run(ctx: Context, nodes: Sequence[Node]) -> None:
    """Train all bases as one population."""
    for node in nodes:
        settings, clock = node.settings, Clock()
        own = [seed_of(settings, "base", half, g) for half in ("own", "other") for g in range(settings.seeds)]
        start = stacked([jax.tree.map(np.asarray, draw(ctx.model, jax.random.key(seed))) for seed in own])
        variant = ctx.nodes["data"].settings.variant
        examples = stacked([lessons(ctx.model, settings, variant, seed) for seed in own])
        labels = [f"base {i}" for i in range(len(own))]
        params, diverged = fit(ctx, ctx.model, settings, start, examples, own, node=node, labels=labels, clock=clock)
        if diverged.any():
            raise ConfigError(f"stages.{node.stage}: {diverged.sum()} bases diverged; lower learning_rate")
        node.checkpoints.save(FINAL, params)
        spent = {"student": len(own) * settings.steps * step_flops(ctx.model, settings)}
        seen = {"student": len(own) * settings.steps * settings.batch * LENGTH}
        node.finish({}, ledger(spent, seen, clock.split(), devices=crew_mesh(len(own)).size))


@functools.partial(jax.jit, static_argnums=0)
def draw(cfg: TransformerConfig, key: jax.Array) -> Any:
    """Return fresh weights."""
    return transformer.init(cfg, key)


def plan(ctx: Context, settings: Bases) -> float:
    """Return the FLOPs of one node."""
    return 2 * settings.seeds * settings.steps * step_flops(ctx.model, settings)
