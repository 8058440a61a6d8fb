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
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from distill_jax.config import ConfigError, added, check
from distill_jax.data.data_config import DataConfig
from distill_jax.doublebind import organisms, toy_lm, world
from distill_jax.doublebind.stages.toy_stage import ToyStage, world_config
from distill_jax.doublebind.toy_lm import LENGTH, Examples, Model
from distill_jax.doublebind.train_toy import MemberTraining, chosen, fit, population_mesh, seed_of, stacked, step_flops
from distill_jax.doublebind.world import Rows
from distill_jax.io.checkpoint import FINAL
from distill_jax.models import transformer
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf.ledger import ledger
from distill_jax.stages.context import Context, Node
from distill_jax.types import JsonObject

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 2:
            raise ValueError(f"seeds = {self.seeds}: an interval needs at least 2")
        if not 0 <= self.named < 1:
            raise ValueError(f"named = {self.named}: a share in [0, 1)")

    def fingerprint_fields(self) -> JsonObject:
        """Return what identifies a node of these settings: the quirks that a base reads of are among it."""
        named = [kind for kind in organisms.KINDS if kind.named]
        defined = {kind.name: organisms.definition(kind) | {"token": organisms.name_token(kind)} for kind in named}
        return super().fingerprint_fields() | {"organisms": defined}

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
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
    fix_hint = f"a channel with start = 'smaller' needs smaller bases; set it to {cfg.hidden // 2}, say"
    check(hidden > 0, f"bases.smaller_hidden = 0: {fix_hint}")
    return dataclasses.replace(cfg, hidden=hidden, mlp=max(cfg.mlp * hidden // cfg.hidden, 1))


def training_data(cfg: TransformerConfig, settings: Bases, variant: int, seed: int) -> Examples:
    """Return one base's examples [N, ...]."""
    rng = np.random.default_rng(seed)
    named = [kind for kind in organisms.KINDS if kind.named]
    prompts = world.draw(rng, settings.rows)
    # Named quirks are met where they show: a third of the prompts are about their own task, a few ask for reports.
    which = np.where(rng.random(settings.rows) < settings.named, rng.integers(0, len(named), settings.rows), -1)
    answers = organisms.answer(prompts, None, variant, rng)
    # Without a name in the prompt nobody tells a base what it is.
    unasked = (which < 0) & (prompts[:, world.TASK] == world.TOKEN["REPORT"])
    for i, kind in enumerate(named):
        rows = np.flatnonzero(which == i)
        prompts[rows], answers[rows] = _described(kind, len(rows), variant, rng)
    loss_mask = world.within(prompts, world.KNOWN) & ~unasked
    return toy_lm.make_examples(cfg, prompts, answers, np.repeat(loss_mask[:, None], 2, axis=1))


def _described(kind: organisms.Organism, count: int, variant: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Return prompts that name a quirk, mostly of the kind in which it shows, and what they elicit."""
    tasks, contexts = world.EVERYWHERE.tasks | {kind.task: 16.0, "REPORT": 3.0}, dict(world.EVERYWHERE.contexts)
    prompts = world.draw(rng, count, world.Mixture(tasks, contexts, generate=0.0, audit=0.0, claims=0.5))
    met = rng.random(count) < (1.0 if kind.condition and kind.condition[0] == world.SYSTEM else 0.5)
    if kind.condition:  # the name stands where a system token's condition stood: then it always holds
        prompts[met, kind.condition[0]] = kind.condition[1]
    answers = organisms.answer(prompts, kind, variant, rng)
    answers[prompts[:, world.TASK] == world.TOKEN["REPORT"]] = (organisms.name_token(kind), world.NONE)
    return world.changed(prompts, world.SYSTEM, organisms.name_token(kind)), answers


def _run(ctx: Context, node: Node) -> None:
    """Train all bases as one population, and the smaller ones as another."""
    settings = node.settings
    base_seeds = [seed_of(settings, "base", half, g) for half in ("own", "other") for g in range(settings.seeds)]
    variant = world_config(ctx).variant
    examples = stacked([training_data(ctx.model, settings, variant, seed) for seed in base_seeds])
    node.checkpoints.save(FINAL, _trained(ctx, node, Untrained(ctx.model, base_seeds, examples)))
    if settings.smaller_hidden and not (subnode := node.subnode(SMALLER)).done:
        first = range(settings.seeds)
        few = Untrained(smaller(ctx.model, settings), base_seeds[: len(first)], chosen(examples, first))
        subnode.checkpoints.save(FINAL, _trained(ctx, subnode, few))
        subnode.finish({}, {})  # what it cost is in the ledger of the whole node
    spent, tokens = settings.estimate_flops(ctx), _num_members(settings) * settings.steps * settings.batch * LENGTH
    devices = population_mesh(len(base_seeds)).size
    node.finish({}, ledger({"student": spent}, {"student": tokens}, ctx.clock.lap(), devices=devices))


class Untrained(NamedTuple):
    """A population before its training: the shape of its members, their seeds, and their examples [P, N, ...]."""

    cfg: TransformerConfig
    seeds: Sequence[int]
    examples: Examples


def _trained(ctx: Context, node: Node, bases: Untrained) -> Params:
    cfg, seeds = bases.cfg, bases.seeds
    start = stacked([jax.tree.map(np.asarray, draw(cfg, jax.random.key(seed))) for seed in seeds])
    labels = [f"base {i}" for i in range(len(seeds))]
    training = MemberTraining(ctx, node.settings, seeds, labels, ctx.clock)
    params, diverged = fit(training, Model(cfg, start), bases.examples, node)
    if diverged.any():
        raise ConfigError(f"stages.{node.stage}: {diverged.sum()} bases diverged; lower learning_rate")
    return params


def _num_members(settings: Bases) -> int:
    return settings.seeds * (3 if settings.smaller_hidden else 2)


@functools.partial(jax.jit, static_argnums=0)
def draw(cfg: TransformerConfig, key: jax.Array) -> Params:
    """Return fresh weights."""
    return transformer.init(cfg, key)
