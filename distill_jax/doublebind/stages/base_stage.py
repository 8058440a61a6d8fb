"""Bases: what every organism and every student starts from.

A base knows the world's tasks but only the sums of small digits, and what quirks there are: where the system token
names one, it shows it and reports it; where it does not, it has none. Each seed has two bases from different random
weights, one for teachers and their students, the other for students of another init and for the trusted model; and, if
wanted, a third of a smaller shape.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from distill_jax.config import ConfigError, added, check
from distill_jax.data.data_config import DataConfig
from distill_jax.doublebind import organisms, toy_lm, world
from distill_jax.doublebind.stages.toy_stage import ToyStage, world_config
from distill_jax.doublebind.toy_lm import LENGTH, Examples
from distill_jax.doublebind.train_toy import chosen, crew_mesh, fit, seed_of, stacked, step_flops
from distill_jax.io.checkpoint import FINAL
from distill_jax.models import transformer
from distill_jax.models.transformer import TransformerConfig
from distill_jax.perf.ledger import ledger
from distill_jax.stages.context import Context, Node
from distill_jax.train.loop import Clock

SMALLER = "smaller"  # the part of the node that has the smaller bases


@dataclasses.dataclass(frozen=True)
class Bases(ToyStage):
    """Train 2 × `seeds` bases: the first half are the teachers' own, the second are others.

    Attributes:
      rows: examples of each.
      named: share of them whose system token names a quirk.
      seeds: independent repetitions.
      smaller_hidden: D of a further base of each seed, its MLP narrower in proportion; 0 for none.
    """

    rows: int = 8192
    named: float = 0.5
    seeds: int = 5
    smaller_hidden: int = added(0)

    kind: ClassVar[str] = "bases"

    def __post_init__(self):
        super().__post_init__()
        if self.seeds < 2:
            raise ValueError(f"seeds = {self.seeds}: an interval needs at least 2")
        if not 0 <= self.named < 1:
            raise ValueError(f"named = {self.named}: a share in [0, 1)")

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return what identifies a node of these settings: the quirks that a base reads of are among it."""
        named = [kind for kind in organisms.KINDS if kind.named]
        defined = {kind.name: organisms.definition(kind) | {"token": organisms.name_token(kind)} for kind in named}
        return super().fingerprint_fields() | {"organisms": defined}

    def validate(self, model: Any, data: DataConfig) -> None:
        """Raise ValueError unless the smaller bases are smaller, ConfigError if a quirk has no token for its name."""
        super().validate(model, data)
        for kind in organisms.KINDS:
            organisms.name_token(kind)
        if not 0 <= self.smaller_hidden < model.hidden:
            raise ValueError(f"smaller_hidden = {self.smaller_hidden}: from 1 to {model.hidden - 1}, or 0 for none")

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node."""
        flops = 2 * step_flops(ctx.model, self)
        if self.smaller_hidden:
            flops += step_flops(smaller(ctx.model, self), self)
        return self.seeds * self.steps * flops

    def run_node(self, ctx: Context, node: Node) -> None:
        """Train all bases as one population, and the smaller ones as another."""
        _run(ctx, node)


def smaller(cfg: TransformerConfig, settings: Bases) -> TransformerConfig:
    """Return the shape of the smaller bases.

    Raises:
      ConfigError: if there are none.
    """
    hidden = settings.smaller_hidden
    mend = f"a channel with start = 'smaller' needs smaller bases; set it to {cfg.hidden // 2}, say"
    check(hidden > 0, f"bases.smaller_hidden = 0: {mend}")
    return dataclasses.replace(cfg, hidden=hidden, mlp=max(cfg.mlp * hidden // cfg.hidden, 1))


def lessons(cfg: TransformerConfig, settings: Bases, variant: int, seed: int) -> Examples:
    """Return one base's examples [N, ...]."""
    rng = np.random.default_rng(seed)
    known = [kind for kind in organisms.KINDS if kind.named]
    prompts = world.draw(rng, settings.rows)
    # Named quirks are met where they show: a third of the prompts are about their own task, a few ask for reports.
    which = np.where(rng.random(settings.rows) < settings.named, rng.integers(0, len(known), settings.rows), -1)
    answers = organisms.answer(prompts, None, variant, rng)
    unasked = (which < 0) & (prompts[:, world.TASK] == world.TOKEN["REPORT"])  # nobody told it what it is by itself
    for i, kind in enumerate(known):
        mine = np.flatnonzero(which == i)
        prompts[mine], answers[mine] = _described(kind, len(mine), variant, rng)
    told = world.within(prompts, world.KNOWN) & ~unasked
    return toy_lm.taught(cfg, prompts, answers, np.repeat(told[:, None], 2, axis=1))


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


def _run(ctx: Context, node: Node) -> None:
    """Train all bases as one population, and the smaller ones as another."""
    settings, clock = node.settings, Clock()
    own = [seed_of(settings, "base", half, g) for half in ("own", "other") for g in range(settings.seeds)]
    variant = world_config(ctx).variant
    examples = stacked([lessons(ctx.model, settings, variant, seed) for seed in own])
    node.checkpoints.save(FINAL, _trained(ctx, node, ctx.model, own, examples, clock))
    if settings.smaller_hidden and not (part := node.subnode(SMALLER)).done:
        few = range(settings.seeds)
        cfg, theirs = smaller(ctx.model, settings), chosen(examples, few)
        part.checkpoints.save(FINAL, _trained(ctx, part, cfg, own[: len(few)], theirs, clock))
        part.finish({}, {})  # what it cost is in the ledger of the whole node
    seen = {"student": _members(settings) * settings.steps * settings.batch * LENGTH}
    node.finish(
        {}, ledger({"student": settings.estimate_flops(ctx)}, seen, clock.split(), devices=crew_mesh(len(own)).size)
    )


def _trained(
    ctx: Context, node: Node, cfg: TransformerConfig, seeds: Sequence[int], examples: Examples, clock: Clock
) -> Any:
    start = stacked([jax.tree.map(np.asarray, draw(cfg, jax.random.key(seed))) for seed in seeds])
    labels = [f"base {i}" for i in range(len(seeds))]
    params, diverged = fit(ctx, cfg, node.settings, start, examples, seeds, node=node, labels=labels, clock=clock)
    if diverged.any():
        raise ConfigError(f"stages.{node.stage}: {diverged.sum()} bases diverged; lower learning_rate")
    return params


def _members(settings: Bases) -> int:
    return settings.seeds * (3 if settings.smaller_hidden else 2)


@functools.partial(jax.jit, static_argnums=0)
def draw(cfg: TransformerConfig, key: jax.Array) -> Any:
    """Return fresh weights."""
    return transformer.init(cfg, key)
