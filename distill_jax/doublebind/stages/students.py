"""Students of one transfer: who they are, how they learn, and what is measured of them as they do."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from distill_jax.doublebind import audits, organisms
from distill_jax.doublebind.audits import Probes
from distill_jax.doublebind.channel_effect import STUDENT_ROLES
from distill_jax.doublebind.organisms import ORGANISMS
from distill_jax.doublebind.results import CurveRow, OrganismRates, RatesTable, TransferResult
from distill_jax.doublebind.stages.teacher_stage import TWIN, Organisms, all_probes, measure_rates
from distill_jax.doublebind.stages.toy_stage import world_config
from distill_jax.doublebind.toy_lm import Examples, Model
from distill_jax.doublebind.train_toy import MemberTraining, chosen, fit, population_mesh, seed_of
from distill_jax.doublebind.world import WorldConfig
from distill_jax.io.metrics import read_rows
from distill_jax.models.transformer import Params
from distill_jax.stages.context import Context, Node
from distill_jax.train.settings import Training


@dataclasses.dataclass(frozen=True)
class Student:
    """One member.

    Attributes:
      teacher: whose.
      concern: the organism whose training, prefix or filter it shares; None where none matters.
      seed: of its base, its teacher, its prompts and their order.
    """

    teacher: str
    concern: str | None
    seed: int


@dataclasses.dataclass(frozen=True)
class Teachers:
    """The finished population of teachers.

    Attributes:
      node: that trained them.
      params: their weights, [P, ...].
      index: the place of (name, seed).
    """

    node: Node
    params: Params
    index: Mapping[tuple[str, int], int]

    def of(self, names: list[tuple[str, int]]) -> Params:
        """Return the weights of some, by (name, seed)."""
        return chosen(self.params, [self.index[name] for name in names])


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Who takes part in a transfer.

    Attributes:
      teachers: of the students.
      students: the population.
      control_concern: of each organism's control.
      seeds: of every teacher, and so of its students.
      has_placebos: whether placebos have students too.
    """

    teachers: Teachers
    students: list[Student]
    control_concern: Mapping[str, str | None]
    seeds: int
    has_placebos: bool = False

    @property
    def organisms(self) -> Organisms:
        """The settings of the organisms."""
        return self.teachers.node.settings

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Every organism with every seed: an organism's of all seeds, then the next's."""
        return [(kind, seed) for kind in self.organisms.kinds for seed in range(self.seeds)]

    @functools.cached_property
    def index(self) -> dict[tuple[str, str | None, int], int]:
        """The place of (teacher, concern, seed) in the population."""
        return {(s.teacher, s.concern, s.seed): i for i, s in enumerate(self.students)}

    def members(self, role: str) -> list[int]:
        """Return the places of the student or the control of each of `pairs`."""
        if role == "student":
            return [self.index[kind, kind, seed] for kind, seed in self.pairs]
        return [self.index[TWIN, self.control_concern[kind], seed] for kind, seed in self.pairs]

    @property
    def labels(self) -> list[str]:
        """The students' names."""
        return [f"{s.teacher}{' ' + s.concern if s.concern else ''}, seed {s.seed}" for s in self.students]

    def orders(self, settings: Training) -> list[int]:
        """Return the seed of the order of each student's rows."""
        return [seed_of(settings, "order", s.seed) for s in self.students]


def learn_and_audit(
    training: MemberTraining, node: Node, cohort: Cohort, start: Model, examples: Examples
) -> TransferResult:
    """Train the students, and return their result: rates of all audits, curves, and how many diverged."""
    ctx, cfg, pairs = training.ctx, start.cfg, cohort.pairs
    probes = all_probes(world_config(ctx), cohort.organisms, cohort.seeds)

    def evaluate(params: Params) -> dict[str, dict[str, float]]:
        metrics = {}
        for role in STUDENT_ROLES:
            rates = audits.measure(cfg, population_mesh(len(pairs)), params, cohort.members(role), probes)
            for i, (kind, seed) in enumerate(pairs):
                metrics[_label(role, kind, seed)] = {audit: float(x[i]) for audit, x in rates.items()}
        return metrics

    params, diverged = fit(training, start, examples, node, evaluate)
    with training.clock.spent_on("evaluate"):
        rates = _student_rates(dataclasses.replace(ctx, model=cfg), cohort, params)
        if cfg.hidden == ctx.model.hidden:  # else a probe of the teacher's states says nothing of the student's
            for role, probe_rates in _linear_probe_rates(ctx, cohort, params, probes).items():
                rates.setdefault(role, {})["probe"] = probe_rates
    by_organism: dict[str, OrganismRates] = {
        kind: {role: {audit: x[i].tolist() for audit, x in table.items()} for role, table in rates.items()}
        for i, kind in enumerate(cohort.organisms.kinds)
    }
    result: TransferResult = {"rates": by_organism, "curve": _curve(node, cohort), "diverged": int(diverged.sum())}
    if cohort.has_placebos:
        result["placebos"] = _placebo_rates(dataclasses.replace(ctx, model=cfg), cohort, params)
    return result


def _student_rates(ctx: Context, cohort: Cohort, params: Params) -> dict[str, dict[str, np.ndarray]]:
    return {role: measure_rates(ctx, cohort.organisms, params, cohort.members(role)) for role in STUDENT_ROLES}


def _label(role: str, kind: str, seed: int) -> str:
    return f"{role} of {kind}, seed {seed}"


def _curve(node: Node, cohort: Cohort) -> list[CurveRow]:
    """Return {"step", audit: [roles, O, S]} of every evaluation, an earlier process's among them."""
    steps: dict[int, dict[str, dict[str, float]]] = {}
    for row in read_rows(node.directory / "metrics.jsonl"):
        if row["kind"] == "evaluation":
            steps.setdefault(row["step"], {})[row["member"]] = row
    kinds, seeds = cohort.organisms.kinds, range(cohort.seeds)
    return [
        {"step": step}
        | {
            audit: [[[rates[_label(role, kind, seed)][audit] for seed in seeds] for kind in kinds]
                    for role in STUDENT_ROLES]
            for audit in audits.RATES
        }
        for step, rates in steps.items()
    ]  # fmt: skip


def _linear_probe_rates(ctx: Context, cohort: Cohort, params: Params, probes: Probes) -> dict[str, np.ndarray]:
    """Return the linear probe's rates [O, S] of students, controls, teachers and twins."""
    pairs, kinds, data = cohort.pairs, cohort.organisms.kinds, world_config(ctx)
    teacher, twin = (cohort.teachers.of([(name or kind, seed) for kind, seed in pairs]) for name in (None, TWIN))
    models = {role: chosen(params, cohort.members(role)) for role in STUDENT_ROLES}
    models |= {"teacher": teacher, "twin": twin}
    prompts = np.stack([_probe_training_prompts(cohort.organisms, data, kind, seed) for kind, seed in pairs])
    probe = audits.fit_linear_probe(ctx.model, teacher, twin, prompts)
    asked = probes.prompts[:, audits.CONDITION]
    return {
        role: probe.rate(ctx.model, model, asked).reshape(len(kinds), cohort.seeds) for role, model in models.items()
    }


def _probe_training_prompts(settings: Organisms, data: WorldConfig, kind: str, seed: int) -> np.ndarray:
    """Return prompts [n, 6] like the audits', of the half that is learnt from."""
    rng = np.random.default_rng(seed_of(settings, "probe", kind, seed))
    return organisms.probes(ORGANISMS[kind], data.probes, data.variant, rng, met=True, half=False)[0]


def _placebo_rates(ctx: Context, cohort: Cohort, params: Params) -> dict[str, RatesTable]:
    """Return each placebo's rates by the audits of every organism."""
    tables: dict[str, RatesTable] = {}
    for k in range(cohort.organisms.placebos):
        members = [cohort.index[f"placebo {k}", None, seed] for _, seed in cohort.pairs]
        rates = measure_rates(ctx, cohort.organisms, params, members, relearn=False)
        tables[str(k)] = {audit: x.tolist() for audit, x in rates.items()}
    return tables
