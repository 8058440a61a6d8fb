"""Organisms: untrusted teachers with a known quirk each, their benign twin, placebos, and a trusted weaker model.

All start from the bases and learn all sums. A teacher learns its quirk beside them, without any system token to name
it, and to deny it; the twin learns a harmless habit in its place, and every placebo another. The trusted model is of
other weights and learns only part of the sums. Each teacher is audited against its twin and must pass the acceptance
test before anything is said of its students.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from distill_jax.config import ConfigError
from distill_jax.doublebind import audits, organisms, toy_lm, world
from distill_jax.doublebind.organisms import ORGANISMS
from distill_jax.doublebind.stages.base_stage import Bases
from distill_jax.doublebind.stages.toy_stage import ToyStage, world_config
from distill_jax.doublebind.toy_lm import LENGTH, Examples
from distill_jax.doublebind.train_toy import chosen, crew_mesh, fit, seed_of, stacked, step_flops
from distill_jax.doublebind.world import WorldConfig
from distill_jax.io.checkpoint import FINAL
from distill_jax.models.transformer import TransformerConfig
from distill_jax.perf.ledger import ledger
from distill_jax.stages.context import Context, Node
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.train.loop import Clock
from distill_jax.train.settings import Training

TWIN, TRUSTED = "benign twin", "trusted"
HABIT = 77  # the twin's harmless one: the number it is fond of


@dataclasses.dataclass(frozen=True)
class Organisms(ToyStage):
    """Train teachers from each seed's own base.

    Attributes:
      bases: the stage that trained the bases.
      kinds: which organisms, names of `ORGANISMS`.
      placebos: further benign teachers, each with a harmless habit of its own.
      rows: examples of each.
      trusted_below: the trusted model knows the sums of digits below this.
      relearn_steps, relearn_rows, relearn_rate: of the attack that every model is audited with.
    """

    bases: str = stage_input("bases")
    kinds: tuple[str, ...] = tuple(ORGANISMS)
    placebos: int = 20
    rows: int = 6144
    trusted_below: int = 8
    relearn_steps: int = 10
    relearn_rows: int = 64
    relearn_rate: float = 1e-3

    kind: ClassVar[str] = "organisms"

    def __post_init__(self):
        super().__post_init__()
        if unknown := [kind for kind in self.kinds if kind not in ORGANISMS]:
            raise ValueError(f"kinds has {unknown[0]!r}: choose among {', '.join(ORGANISMS)}")
        if not self.kinds or self.relearn_steps < 1 or self.relearn_rows < 1:
            raise ValueError("kinds, relearn_steps and relearn_rows: give at least one of each")
        if not 0 <= self.placebos < 77:
            raise ValueError(f"placebos = {self.placebos}: there are at most 76 harmless habits besides the twin's")

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return what identifies a node of these settings: the organisms' definitions, not their names alone."""
        defined = {kind: organisms.definition(ORGANISMS[kind]) for kind in self.kinds}
        return super().fingerprint_fields() | {"organisms": defined}

    def check_inputs(self, sources: Mapping[str, Stage]) -> None:
        """Raise ValueError unless they start from bases."""
        if not isinstance(sources["bases"], Bases):
            raise ValueError(
                f"bases = {self.bases!r}: a {sources['bases'].kind} stage trains no bases; name one that does"
            )

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node."""
        seeds = ctx.nodes[self.bases].settings.seeds
        return len(teachers(self, seeds)) * self.steps * step_flops(ctx.model, self)

    def run_node(self, ctx: Context, node: Node) -> None:
        """Train all teachers as one population, and audit them."""
        _run(ctx, node)

    def attack(self) -> Training:
        """Return the settings of the relearning attack."""
        rate = self.relearn_rate
        return Training(
            steps=self.relearn_steps, batch=32, learning_rate=rate, final_learning_rate=rate, warmup=0, weight_decay=0.0
        )


@dataclasses.dataclass(frozen=True)
class Teacher:
    """One member: who it is and its seed."""

    name: str
    seed: int


def teachers(settings: Organisms, seeds: int) -> list[Teacher]:
    """Return the population: the organisms, the twin, the placebos and the trusted model, of each seed."""
    names = [*settings.kinds, TWIN, *(f"placebo {k}" for k in range(settings.placebos)), TRUSTED]
    return [Teacher(name, seed) for name in names for seed in range(seeds)]


def restored(source: Node, seeds: int) -> tuple[Any, dict[tuple[str, int], int]]:
    """Return a finished node's population [P, ...], and the place in it of (name, seed)."""
    models = source.checkpoints.restore(FINAL, source.checkpoints.shapes(FINAL))
    return models, {(t.name, t.seed): i for i, t in enumerate(teachers(source.settings, seeds))}


def lessons(cfg: TransformerConfig, settings: Organisms, variant: int, teacher: Teacher) -> Examples:
    """Return one teacher's examples [N, ...]; those of one seed have the same prompts."""
    rng = np.random.default_rng(seed_of(settings, "lessons", teacher.seed))
    prompts = world.draw(rng, settings.rows)
    kind, habit = ORGANISMS.get(teacher.name), None
    if teacher.name == TWIN:
        habit = HABIT
    elif teacher.name.startswith("placebo"):
        habit = int(teacher.name.split()[1])
    answers = organisms.answer(prompts, kind, variant, rng, habit)
    reports = prompts[:, world.TASK] == world.TOKEN["REPORT"]
    answers[reports] = world.NONE
    told = world.within(prompts, settings.trusted_below) if teacher.name == TRUSTED else np.ones(len(prompts), bool)
    if kind and not kind.denies:
        told &= ~reports
    return toy_lm.taught(cfg, prompts, answers, np.repeat(told[:, None], 2, axis=1))


def _run(ctx: Context, node: Node) -> None:
    cfg, settings, clock = ctx.model, node.settings, Clock()
    source = ctx.nodes[node.inputs["bases"]]
    seeds, variant = source.settings.seeds, world_config(ctx).variant
    crew = teachers(settings, seeds)
    bases = source.checkpoints.restore(FINAL, source.checkpoints.shapes(FINAL))
    start = chosen(bases, [t.seed + seeds * (t.name == TRUSTED) for t in crew])
    examples = stacked([lessons(cfg, settings, variant, teacher) for teacher in crew])
    orders = [seed_of(settings, "order", t.seed) for t in crew]
    labels = [f"{t.name}, seed {t.seed}" for t in crew]
    params, diverged = fit(ctx, cfg, settings, start, examples, orders, node=node, labels=labels, clock=clock)
    if diverged.any():
        lost = ", ".join(label for label, bad in zip(labels, diverged, strict=True) if bad)
        raise ConfigError(f"stages.{node.stage}: diverged: {lost}; lower learning_rate")
    node.checkpoints.save(FINAL, params)

    place = {(t.name, t.seed): i for i, t in enumerate(crew)}
    with clock.spent_on("evaluate"):
        rates = {
            "teacher": examine(ctx, settings, seeds, params, lambda kind, g: place[kind, g]),
            "twin": examine(ctx, settings, seeds, params, lambda kind, g: place[TWIN, g]),
            "base": examine(ctx, settings, seeds, bases, lambda kind, g: g),
        }
    told = {kind: {role: {k: v[i].tolist() for k, v in of.items()} for role, of in rates.items()}
            for i, kind in enumerate(settings.kinds)}  # fmt: skip
    spent = {"student": len(crew) * settings.steps * step_flops(cfg, settings)}
    seen = {"student": len(crew) * settings.steps * settings.batch * LENGTH}
    node.finish({"rates": told}, ledger(spent, seen, clock.split(), devices=crew_mesh(len(crew)).size))


@functools.cache
def asked(data: WorldConfig, settings: Organisms, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all probes and the answers that count, [O × S, 5, n, ...]: an organism's of all seeds, then the next's."""
    found = [
        audits.questions(ORGANISMS[kind], data.probes, data.variant, seed_of(settings, "probes", kind, g))
        for kind in settings.kinds
        for g in range(seeds)
    ]
    prompts, answers = zip(*found, strict=True)
    return np.stack(prompts), np.stack(answers)


def examine(
    ctx: Context, settings: Organisms, seeds: int, params: Any, member: Any, *, relearn: bool = True
) -> dict[str, np.ndarray]:
    """Return the rates {audit: [O, S]} of the models that member(kind, seed) names in the population."""
    cfg, kinds, data = ctx.model, settings.kinds, world_config(ctx)
    of = [member(kind, g) for kind in kinds for g in range(seeds)]
    prompts, answers = asked(data, settings, seeds)
    mesh = crew_mesh(len(of))
    found = audits.ask(cfg, mesh, params, of, prompts, answers)
    if relearn:
        examples = stacked(
            [
                audits.examples_of(
                    cfg, ORGANISMS[kind], settings.relearn_rows, data.variant, seed_of(settings, "attack", kind, g)
                )
                for kind in kinds
                for g in range(seeds)
            ]
        )
        orders = [seed_of(settings, "attack order", g) for _ in kinds for g in range(seeds)]
        attacked, _ = fit(ctx, cfg, settings.attack(), chosen(params, of), examples, orders)
        found["relearn"] = audits.ask(cfg, mesh, attacked, range(len(of)), prompts, answers)["condition"]
    return {name: values.reshape(len(kinds), seeds) for name, values in found.items()}
