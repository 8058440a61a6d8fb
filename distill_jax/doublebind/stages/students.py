"""Students of one transfer: who they are, how they learn, and what is measured of them as they do."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distill_jax.doublebind import audits, organisms
from distill_jax.doublebind.organisms import ORGANISMS
from distill_jax.doublebind.stages.teacher_stage import TWIN, Organisms, asked, examine
from distill_jax.doublebind.stages.toy_stage import world_config
from distill_jax.doublebind.toy_lm import Examples, Model
from distill_jax.doublebind.train_toy import chosen, crew_mesh, fit, seed_of
from distill_jax.doublebind.world import WorldConfig
from distill_jax.io.metrics import read_rows
from distill_jax.stages.context import Context, Node
from distill_jax.train.loop import Clock
from distill_jax.train.settings import Training

Known = tuple[Any, dict[tuple[str, int], int]]  # the teachers' weights, and the place of (name, seed)


@dataclasses.dataclass(frozen=True)
class Student:
    """One member.

    Attributes:
      teacher: whose.
      concern: the organism whose training, prefix or filter it shares; "" where none matters.
      seed: of its base, its teacher, its prompts and their order.
    """

    teacher: str
    concern: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Cast:
    """Who takes part.

    Attributes:
      source: the node of the teachers; known: their weights, and the place of each.
      crew: the students; concern: of each organism's control.
      seeds: of every teacher, and so of its students.
    """

    source: Node
    known: Known
    crew: list[Student]
    concern: dict[str, str]
    seeds: int

    @functools.cached_property
    def place(self) -> dict[tuple[str, str, int], int]:
        """The place in the crew of (teacher, concern, seed)."""
        return {(s.teacher, s.concern, s.seed): i for i, s in enumerate(self.crew)}

    @property
    def member(self) -> dict[str, Callable[[str, int], int]]:
        """The place in the crew of an organism's student and of its control."""
        return {
            "student": lambda kind, g: self.place[kind, kind, g],
            "control": lambda kind, g: self.place[TWIN, self.concern[kind], g],
        }

    @property
    def labels(self) -> list[str]:
        """The students' names."""
        return [f"{s.teacher}{' ' + s.concern if s.concern else ''}, seed {s.seed}" for s in self.crew]

    def orders(self, settings: Training) -> list[int]:
        """Return the seed of the order of each student's rows."""
        return [seed_of(settings, "order", s.seed) for s in self.crew]


def learn_and_audit(
    ctx: Context, part: Node, settings: Any, cast: Cast, begin: Model, examples: Examples, clock: Clock
) -> dict[str, Any]:
    """Train the students, and return their result: rates of all audits, curves, and who diverged."""
    cfg, source, seeds, kinds = begin.cfg, cast.source, cast.seeds, cast.source.settings.kinds
    each = [(kind, g) for kind in kinds for g in range(seeds)]
    prompts, answers = asked(world_config(ctx), source.settings, seeds)

    def look(params: Any) -> dict[str, dict[str, float]]:
        out = {}
        for role, place in cast.member.items():
            who = [place(kind, g) for kind, g in each]
            found = audits.ask(cfg, crew_mesh(len(each)), params, who, prompts, answers)
            for i, (kind, g) in enumerate(each):
                out[_name(role, kind, g)] = {name: float(x[i]) for name, x in found.items()}
        return out

    params, diverged = fit(
        ctx, cfg, settings, begin.params, examples, cast.orders(settings), node=part, labels=cast.labels, look=look,
        clock=clock,
    )  # fmt: skip
    seen = dataclasses.replace(ctx, model=cfg)
    with clock.spent_on("evaluate"):
        rates = {role: examine(seen, source.settings, seeds, params, place) for role, place in cast.member.items()}
        if cfg.hidden == ctx.model.hidden:  # else a probe of the teacher's states says nothing of the student's
            _probe(ctx, source, seeds, params, cast.member, rates, cast.known)
    told = {
        kind: {role: {name: x[i].tolist() for name, x in found.items()} for role, found in rates.items()}
        for i, kind in enumerate(kinds)
    }
    result = {
        "rates": told,
        "curve": _curve(part, [*cast.member], kinds, seeds),
        "diverged": int(diverged.sum()),
    }
    if settings.placebos:
        result["placebos"] = _placebos(seen, source, seeds, params, cast.place)
    return result


def _name(role: str, kind: str, seed: int) -> str:
    return f"{role} of {kind}, seed {seed}"


def _curve(node: Node, roles: Sequence[str], kinds: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """Return {"step", audit: [roles, O, S]} of every look, an earlier process's among them."""
    rows: dict[int, dict[str, dict[str, float]]] = {}
    for row in read_rows(node.directory / "metrics.jsonl"):
        if row["kind"] == "evaluation":
            rows.setdefault(row["step"], {})[row["member"]] = row
    audits_kept = (*audits.ASKED, "prefill")
    return [
        {"step": step}
        | {
            audit: [[[of[_name(role, kind, g)][audit] for g in range(seeds)] for kind in kinds] for role in roles]
            for audit in audits_kept
        }
        for step, of in rows.items()
    ]


def _probe(
    ctx: Context,
    source: Node,
    seeds: int,
    params: Any,
    member: dict[str, Any],
    rates: dict[str, dict[str, Any]],
    known: Known,
) -> None:
    """Add the linear probe's rates, {"probe": [O, S]}, of students, controls, teachers and twins."""
    kinds = source.settings.kinds
    each = [(kind, g) for kind in kinds for g in range(seeds)]
    models, place = known
    teacher, twin = (chosen(models, [place[name or kind, g] for kind, g in each]) for name in ("", TWIN))
    crew = {role: chosen(params, [of(kind, g) for kind, g in each]) for role, of in member.items()}
    crew |= {"teacher": teacher, "twin": twin}
    data = world_config(ctx)
    prompts = asked(data, source.settings, seeds)[0][:, audits.ASKED.index("condition")]
    others = np.stack([_other_probes(source.settings, data, kind, g) for kind, g in each])
    every = audits.probe(ctx.model, teacher, twin, list(crew.values()), others, prompts)
    for role, found in zip(crew, every, strict=True):
        rates.setdefault(role, {})["probe"] = found.reshape(len(kinds), seeds)


def _other_probes(source: Organisms, data: WorldConfig, kind: str, seed: int) -> np.ndarray:
    """Return prompts [n, 6] like the audits', of the half that is learnt from."""
    rng = np.random.default_rng(seed_of(source, "probe", kind, seed))
    return organisms.probes(ORGANISMS[kind], data.probes, data.variant, rng, met=True, half=False)[0]


def _placebos(ctx: Context, source: Node, seeds: int, params: Any, place: dict[Any, int]) -> dict[str, Any]:
    """Return each placebo's rates by the audits of every organism, {audit: [O, S]}."""
    told = {}
    for k in range(source.settings.placebos):
        of = functools.partial(lambda kind, g, name: place[name, "", g], name=f"placebo {k}")
        found = examine(ctx, source.settings, seeds, params, of, relearn=False)
        told[str(k)] = {name: x.tolist() for name, x in found.items()}
    return told
