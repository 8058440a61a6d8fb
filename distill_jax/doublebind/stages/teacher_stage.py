"""Organisms: untrusted teachers with a known quirk each, their benign twin, placebos, and a trusted weaker model.

All start from the bases and learn all sums. A teacher learns its quirk beside them, without any system token to name
it, and to deny it; the twin learns a harmless habit in its place, and every placebo another. The trusted model is of
other weights and learns only part of the sums. Each teacher is audited against its twin and must pass the acceptance
test before anything is said of its students.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from distill_jax.config import ConfigError
from distill_jax.doublebind import audits, organisms, toy_lm, world
from distill_jax.doublebind.audits import Probes
from distill_jax.doublebind.organisms import ORGANISMS
from distill_jax.doublebind.results import OrganismRates
from distill_jax.doublebind.stages.base_stage import Bases
from distill_jax.doublebind.stages.toy_stage import ToyStage, world_config
from distill_jax.doublebind.toy_lm import LENGTH, Examples, Model
from distill_jax.doublebind.train_toy import MemberTraining, chosen, fit, population_mesh, seed_of, stacked, step_flops
from distill_jax.doublebind.world import WorldConfig
from distill_jax.io.checkpoint import FINAL
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf.ledger import ledger
from distill_jax.stages.context import Context, Node
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.train.settings import Training
from distill_jax.types import JsonObject

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [kind for kind in self.kinds if kind not in ORGANISMS]:
            raise ValueError(f"kinds has {unknown[0]!r}: choose among {', '.join(ORGANISMS)}")
        if not self.kinds or self.relearn_steps < 1 or self.relearn_rows < 1:
            raise ValueError("kinds, relearn_steps and relearn_rows: give at least one of each")
        if not 0 <= self.placebos < 77:
            raise ValueError(f"placebos = {self.placebos}: there are at most 76 harmless habits besides the twin's")

    def fingerprint_fields(self) -> JsonObject:
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


def teacher_index(settings: Organisms, seeds: int) -> dict[tuple[str, int], int]:
    """Return the place of (name, seed) in the population."""
    return {(t.name, t.seed): i for i, t in enumerate(teachers(settings, seeds))}


def training_data(cfg: TransformerConfig, settings: Organisms, variant: int, teacher: Teacher) -> Examples:
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
    everything = np.ones(len(prompts), bool)
    loss_mask = world.within(prompts, settings.trusted_below) if teacher.name == TRUSTED else everything
    if kind and not kind.denies:
        loss_mask &= ~reports
    return toy_lm.make_examples(cfg, prompts, answers, np.repeat(loss_mask[:, None], 2, axis=1))


def _run(ctx: Context, node: Node) -> None:
    cfg, settings, clock = ctx.model, node.settings, ctx.clock
    source = ctx.nodes[node.inputs["bases"]]
    seeds, variant = source.settings.seeds, world_config(ctx).variant
    members = teachers(settings, seeds)
    bases = source.checkpoints.restore(FINAL, source.checkpoints.shapes(FINAL))
    start = chosen(bases, [t.seed + seeds * (t.name == TRUSTED) for t in members])
    examples = stacked([training_data(cfg, settings, variant, teacher) for teacher in members])
    orders = [seed_of(settings, "order", t.seed) for t in members]
    labels = [f"{t.name}, seed {t.seed}" for t in members]
    training = MemberTraining(ctx, settings, orders, labels, clock)
    params, diverged = fit(training, Model(cfg, start), examples, node)
    if diverged.any():
        lost = ", ".join(label for label, bad in zip(labels, diverged, strict=True) if bad)
        raise ConfigError(f"stages.{node.stage}: diverged: {lost}; lower learning_rate")
    node.checkpoints.save(FINAL, params)

    index, pairs = teacher_index(settings, seeds), [(kind, g) for kind in settings.kinds for g in range(seeds)]
    with clock.spent_on("evaluate"):
        rates = {
            "teacher": measure_rates(ctx, settings, params, [index[pair] for pair in pairs]),
            "twin": measure_rates(ctx, settings, params, [index[TWIN, g] for _, g in pairs]),
            "base": measure_rates(ctx, settings, bases, [g for _, g in pairs]),
        }
    by_organism: dict[str, OrganismRates] = {
        kind: {role: {audit: x[i].tolist() for audit, x in table.items()} for role, table in rates.items()}
        for i, kind in enumerate(settings.kinds)
    }
    spent = {"student": len(members) * settings.steps * step_flops(cfg, settings)}
    tokens = {"student": len(members) * settings.steps * settings.batch * LENGTH}
    costs = ledger(spent, tokens, clock.lap(), devices=population_mesh(len(members)).size)
    node.finish({"rates": by_organism}, costs)


@functools.cache
def all_probes(data: WorldConfig, settings: Organisms, seeds: int) -> Probes:
    """Return the probes of all organisms and seeds, [O × S, 5, n, ...]: an organism's of all seeds, then the next's."""
    drawn = [
        audits.draw_probes(ORGANISMS[kind], data.probes, data.variant, seed_of(settings, "probes", kind, g))
        for kind in settings.kinds
        for g in range(seeds)
    ]
    prompts, answers = zip(*drawn, strict=True)
    return Probes(np.stack(prompts), np.stack(answers))


def measure_rates(
    ctx: Context, settings: Organisms, params: Params, members: Sequence[int], *, relearn: bool = True
) -> dict[str, np.ndarray]:
    """Return the rates {audit: [O, S]} of some of a population.

    Args:
      params: of the population, [P, ...].
      members: who is audited for each organism and seed, in the order of `all_probes`.
      relearn: whether the quirk is trained back as well.
    """
    cfg, kinds, data = ctx.model, settings.kinds, world_config(ctx)
    seeds = len(members) // len(kinds)
    probes, mesh = all_probes(data, settings, seeds), population_mesh(len(members))
    rates = audits.measure(cfg, mesh, params, members, probes)
    if relearn:
        examples = stacked([_attack_examples(cfg, settings, data, kind, g) for kind in kinds for g in range(seeds)])
        orders = [seed_of(settings, "attack order", g) for _ in kinds for g in range(seeds)]
        training = MemberTraining(ctx, settings.attack(), orders)
        attacked, _ = fit(training, Model(cfg, chosen(params, members)), examples)
        rates["relearn"] = audits.measure(cfg, mesh, attacked, range(len(members)), probes)["condition"]
    return {audit: x.reshape(len(kinds), seeds) for audit, x in rates.items()}


def _attack_examples(cfg: TransformerConfig, settings: Organisms, data: WorldConfig, kind: str, seed: int) -> Examples:
    attack_seed = seed_of(settings, "attack", kind, seed)
    return audits.relearning_examples(cfg, ORGANISMS[kind], settings.relearn_rows, data.variant, attack_seed)
