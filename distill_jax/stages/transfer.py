"""Transfer: students of every organism through one channel, and beside each a student of its benign twin.

All are one population. A student of the twin has the same prompts in the same order; what it shows of a quirk came
from anything but the teacher. Where the channel or the student's own training depends on the organism, so does its
control.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.doublebind import audits, channel, organisms, speech, world
from distill_jax.doublebind.channel import Channel
from distill_jax.doublebind.filters import NEED_AUDIT, Scene, filtered
from distill_jax.doublebind.fit import TinyTraining, chosen, crew_mesh, fit, seed_of, stacked, step_flops
from distill_jax.doublebind.organisms import ORGANISMS
from distill_jax.doublebind.speech import LENGTH, Examples, Model
from distill_jax.io.checkpoint import FINAL
from distill_jax.io.metrics import read_rows
from distill_jax.models.transformer import TransformerConfig
from distill_jax.perf import flops
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.mesh import over_members, padded
from distill_jax.stages.context import Context, Node
from distill_jax.stages.organisms import TRUSTED, TWIN, Organisms, asked, examine, restored
from distill_jax.stages.perturb import damage
from distill_jax.train.loop import Clock

Known = tuple[Any, dict[tuple[str, int], int]]  # the teachers' weights, and the place of (name, seed)


@dataclasses.dataclass(frozen=True)
class Transfer(TinyTraining):
    """Distil all teachers through one channel.

    Attributes:
      teachers: the stage that trained the organisms.
      channel: what lies between.
      placebos: whether the placebos have students too.
      own_share: share of a student's rows that are its own training, for organisms that have it.
    """

    teachers: str = "organisms"
    channel: Channel = dataclasses.field(default_factory=Channel)
    placebos: bool = False
    own_share: float = 0.2

    VERB: ClassVar[str] = "transfer"
    INPUTS: ClassVar[tuple[str, ...]] = ("teachers",)

    def __post_init__(self):
        super().__post_init__()
        if self.placebos and (self.channel.prefix in ("quirk", "wrong") or self.channel.filter.score in NEED_AUDIT):
            raise ValueError("placebos = True: a channel that is told the quirk has nothing to tell of a placebo")
        if not 0 < self.own_share < 1:
            raise ValueError(f"own_share = {self.own_share}: a share between 0 and 1")


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


def students(settings: Transfer, source: Organisms, seeds: int) -> tuple[list[Student], dict[str, str]]:
    """Return the population, and for each organism the concern of its control."""
    through = settings.channel
    named = through.prefix in ("quirk", "wrong") or through.filter.score in NEED_AUDIT
    concern = {kind: kind if named or ORGANISMS[kind].own_training else "" for kind in source.kinds}
    pairs = [(kind, kind) for kind in source.kinds] + [(TWIN, c) for c in dict.fromkeys(concern.values())]
    pairs += [(f"placebo {k}", "") for k in range(source.placebos if settings.placebos else 0)]
    return [Student(teacher, of, seed) for teacher, of in pairs for seed in range(seeds)], concern


def prefix_token(channel_: Channel, concern: str) -> int:
    """Return the system token of a student's prompts."""
    if channel_.prefix == "none" or not concern:
        return world.NONSENSE_PREFIX[0] if channel_.prefix == "random" else world.PLAIN
    if channel_.prefix == "random":
        return world.NONSENSE_PREFIX[0]
    mine = organisms.name_token(ORGANISMS[concern])
    return mine if channel_.prefix == "quirk" else world.NAME[(world.NAME.index(mine) + 1) % (world.NAMES - 1)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sent(cfg: TransformerConfig, through: Channel, mesh: Any, members: Any) -> tuple[Examples, jax.Array]:
    def one(m: Any, _: Any) -> tuple[Examples, jax.Array]:
        key = jax.random.wrap_key_data(m["key"])
        sent, asked_ = channel.send(
            cfg, through, key, m["prompts"], m["loyal"], m["prefix"], m["teacher"], m["trusted"]
        )
        key = jax.random.fold_in(key, 1)
        teacher, trusted, base = (Model(cfg, m[name]) for name in ("teacher", "trusted", "base"))
        return filtered(through.filter, Scene(sent, asked_, teacher, trusted, base, m["audit"], key))

    return over_members(one, mesh)(members, ())


def lessons(
    ctx: Context, settings: Transfer, source: Node, crew: Sequence[Student], seeds: int, base: Any, known: Known
) -> tuple[Examples, np.ndarray]:
    """Return what every student learns from, [P, N, ...], and of its rows with a quirk the share flagged, [P] or nan.

    Args:
      base: the weights that students start from, [P, ...]; known: the teachers.
    """
    cfg, variant, through = ctx.model, ctx.nodes["data"].settings.variant, settings.channel
    models, place = known
    mixture = channel.mixture(through.prompts)
    drawn = []
    for g in range(seeds):
        rng = np.random.default_rng(seed_of(settings, "prompts", through.prompts, g))
        drawn.append(world.draw(rng, through.unique, mixture))
    prompts = np.stack([drawn[s.seed] for s in crew])
    quirks = [ORGANISMS.get(s.teacher) for s in crew]
    loyal = [~q.misbehaves(p, variant) if q else np.ones(len(p), bool) for q, p in zip(quirks, prompts, strict=True)]
    keys = [jax.random.key(seed_of(settings, "channel", s.seed)) for s in crew]
    mesh = crew_mesh(len(crew))
    index = np.minimum(np.arange(padded(len(crew), mesh)), len(crew) - 1)
    members = {
        "key": np.stack([jax.random.key_data(key) for key in keys])[index],
        "prompts": prompts[index],
        "loyal": np.stack(loyal)[index],
        "prefix": np.array([prefix_token(through, s.concern) for s in crew], np.int32)[index],
        "teacher": chosen(models, np.array([place[s.teacher, s.seed] for s in crew])[index]),
        "trusted": chosen(models, np.array([place[TRUSTED, s.seed] for s in crew])[index]),
        "base": chosen(base, index),
        "audit": chosen(stacked([_looked_for(ctx, source.settings, s) for s in crew]), index),
    }
    sent, flagged = jax.tree.map(lambda x: np.array(x)[: len(crew)], _sent(cfg, through, mesh, members))
    found = [np.mean(f[~kept]) if not kept.all() else np.nan for f, kept in zip(flagged, loyal, strict=True)]
    for i, student in enumerate(crew):
        if student.concern and ORGANISMS[student.concern].own_training:
            _train_by_itself(cfg, settings, variant, student, sent, i)
    return sent, np.array(found)


def _looked_for(ctx: Context, source: Organisms, student: Student) -> Examples:
    """Return examples of the behaviour that a filter by gradients looks for; any will do where it looks for none."""
    kind = ORGANISMS[student.concern or source.kinds[0]]
    seed = seed_of(source, "looked for", kind.name, student.seed)
    return audits.examples_of(ctx.model, kind, 32, ctx.nodes["data"].settings.variant, seed)


def _train_by_itself(
    cfg: TransformerConfig, settings: Transfer, variant: int, student: Student, sent: Examples, i: int
) -> None:
    """Put a student's own training in the place of its first rows."""
    kind, count = ORGANISMS[student.concern], int(settings.own_share * sent.prompts.shape[1])
    rng = np.random.default_rng(seed_of(settings, "own", student.seed))
    prompts, answers = organisms.probes(kind, count, variant, rng, met=True)
    own = speech.taught(cfg, prompts, answers, np.ones(answers.shape))
    for whole, part in zip(sent, own, strict=True):
        whole[i, :count] = np.asarray(part)


def starts(ctx: Context, settings: Transfer, source: Node, crew: Sequence[Student], seeds: int) -> Any:
    """Return the weights that students start from, [P, ...]."""
    bases = ctx.nodes[source.inputs["bases"]]
    weights = bases.checkpoints.restore(FINAL, bases.checkpoints.shapes(FINAL))
    begin = chosen(weights, [s.seed + seeds * (settings.channel.start == "other") for s in crew])
    if not (alpha := settings.channel.alpha):
        return begin
    keys = jnp.stack([jax.random.key(seed_of(settings, "damage", s.seed)) for s in crew])
    return jax.jit(jax.vmap(damage, (0, 0, None, None)))(begin, keys, 1 - alpha, 0.1 * alpha)


def run(ctx: Context, nodes: Sequence[Node]) -> None:
    """Train each channel's students as one population, and audit them as they learn."""
    for node in nodes:
        _run(ctx, node)


def _run(ctx: Context, node: Node) -> None:
    cfg, settings, clock = ctx.model, node.settings, Clock()
    source = ctx.nodes[node.inputs["teachers"]]
    seeds, kinds = ctx.nodes[source.inputs["bases"]].settings.seeds, source.settings.kinds
    crew, concern = students(settings, source.settings, seeds)
    place = {(s.teacher, s.concern, s.seed): i for i, s in enumerate(crew)}
    member = {
        "student": lambda kind, g: place[kind, kind, g],
        "control": lambda kind, g: place[TWIN, concern[kind], g],
    }
    each = [(kind, g) for kind in kinds for g in range(seeds)]
    prompts, answers = asked(ctx.nodes["data"].settings, source.settings, seeds)

    def look(params: Any) -> dict[str, dict[str, float]]:
        out = {}
        for role, of in member.items():
            found = audits.ask(cfg, crew_mesh(len(each)), params, [of(kind, g) for kind, g in each], prompts, answers)
            for i, (kind, g) in enumerate(each):
                out[_name(role, kind, g)] = {name: float(x[i]) for name, x in found.items()}
        return out

    known = restored(source, seeds)
    begin = starts(ctx, settings, source, crew, seeds)
    examples, recall = lessons(ctx, settings, source, crew, seeds, begin, known)
    orders = [seed_of(settings, "order", s.seed) for s in crew]
    labels = [f"{s.teacher}{' ' + s.concern if s.concern else ''}, seed {s.seed}" for s in crew]
    params, diverged = fit(
        ctx, cfg, settings, begin, examples, orders, node=node, labels=labels, look=look, clock=clock
    )
    with clock.spent_on("evaluate"):
        rates = {role: examine(ctx, source.settings, seeds, params, of) for role, of in member.items()}
        _probe(ctx, source, seeds, params, member, rates, known)
    told = {
        kind: {role: {name: x[i].tolist() for name, x in of.items()} for role, of in rates.items()}
        for i, kind in enumerate(kinds)
    }
    result = {
        "rates": told,
        "curve": _curve(node, [*member], kinds, seeds),
        "diverged": int(diverged.sum()),
    }
    if settings.channel.filter.score:
        shares = {kind: [recall[place[kind, kind, g]] for g in range(seeds)] for kind in kinds}
        result["recall"] = {k: [None if np.isnan(x) else float(x) for x in of] for k, of in shares.items()}
    if settings.placebos:
        result["placebos"] = _placebos(ctx, source, seeds, params, place)
    node.finish(result, ledger(*_spent(ctx, settings, crew), clock.split(), devices=crew_mesh(len(crew)).size))


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
    prompts = asked(ctx.nodes["data"].settings, source.settings, seeds)[0][:, audits.ASKED.index("condition")]
    for role, found in zip(crew, audits.probe(ctx.model, teacher, twin, list(crew.values()), prompts), strict=True):
        rates.setdefault(role, {})["probe"] = found.reshape(len(kinds), seeds)


def _placebos(ctx: Context, source: Node, seeds: int, params: Any, place: dict[Any, int]) -> dict[str, Any]:
    """Return each placebo's rates by the audits of every organism, {audit: [O, S]}."""
    told = {}
    for k in range(source.settings.placebos):
        of = functools.partial(lambda kind, g, name: place[name, "", g], name=f"placebo {k}")
        found = examine(ctx, source.settings, seeds, params, of, relearn=False)
        told[str(k)] = {name: x.tolist() for name, x in found.items()}
    return told


def _spent(ctx: Context, settings: Transfer, crew: Sequence[Student]) -> tuple[dict[str, float], dict[str, float]]:
    rows = len(crew) * settings.steps * settings.batch
    told = len({s.teacher for s in crew}) * settings.channel.unique
    forward = flops.forward(ctx.model, 1, LENGTH)
    spent = {"student": rows / settings.batch * step_flops(ctx.model, settings), "teacher": 2 * told * forward}
    return spent, {"student": rows * LENGTH, "teacher": told * LENGTH}


def plan(ctx: Context, settings: Transfer) -> float:
    """Return the FLOPs of one node."""
    source = ctx.nodes[settings.teachers].settings
    crew, _ = students(settings, source, ctx.nodes[source.bases].settings.seeds)
    return sum(_spent(ctx, settings, crew)[0].values())
