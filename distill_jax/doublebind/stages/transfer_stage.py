"""Transfer: students of every organism through one channel, and beside each a student of its benign twin.

All are one population. A student of the twin has the same prompts in the same order; what it shows of a quirk came
from anything but the teacher. Where the channel or the student's own training depends on the organism, so does its
control.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.doublebind import audits, channel, organisms, toy_lm, world
from distill_jax.doublebind.channel import Channel
from distill_jax.doublebind.channel_effect import ChannelEffect, channel_effect
from distill_jax.doublebind.cross_fit import act, each_member, flag, judges
from distill_jax.doublebind.filters import NEED_AUDIT, NEED_RIVALS, Filter, Scene
from distill_jax.doublebind.organisms import ORGANISMS
from distill_jax.doublebind.results import TransferResult, transfer_result
from distill_jax.doublebind.stages.base_stage import SMALLER, Bases, smaller
from distill_jax.doublebind.stages.students import Cast, Student, learn_and_audit
from distill_jax.doublebind.stages.teacher_stage import TRUSTED, TWIN, Organisms, restored
from distill_jax.doublebind.stages.toy_stage import ToyStage, world_config
from distill_jax.doublebind.toy_lm import LENGTH, Examples, Model
from distill_jax.doublebind.train_toy import chosen, crew_mesh, seed_of, stacked, step_flops
from distill_jax.io.checkpoint import FINAL
from distill_jax.models.transformer import TransformerConfig
from distill_jax.perf import flops
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.mesh import over_members
from distill_jax.stages.context import Context, Node
from distill_jax.stages.perturb import damage
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.train.loop import Clock


@dataclasses.dataclass(frozen=True)
class Transfer(ToyStage):
    """Distil all teachers through one channel.

    Attributes:
      teachers: the stage that trained the organisms.
      channel: what lies between.
      placebos: whether the placebos have students too.
      own_share: share of a student's rows that are its own training, for organisms that have it.
    """

    teachers: str = stage_input("organisms")
    channel: Channel = dataclasses.field(default_factory=Channel)
    placebos: bool = False
    own_share: float = 0.2

    kind: ClassVar[str] = "transfer"

    def __post_init__(self):
        super().__post_init__()
        if self.placebos and (self.channel.prefix in ("quirk", "wrong") or self.channel.filter.score in NEED_AUDIT):
            raise ValueError("placebos = True: a channel that is told the quirk has nothing to tell of a placebo")
        if self.placebos and self.channel.filter.rounds:
            raise ValueError("placebos = True with filter.rounds: a placebo has no quirk whose absence could end them")
        if not 0 < self.own_share < 1:
            raise ValueError(f"own_share = {self.own_share}: a share between 0 and 1")

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return what identifies a node of these settings."""
        found = super().fingerprint_fields()
        found["channel"]["filter"] = self.channel.filter.fingerprint_fields()
        return found

    def check_inputs(self, sources: Mapping[str, Stage]) -> None:
        """Raise ValueError unless the teachers are organisms."""
        source = sources["teachers"]
        if not isinstance(source, Organisms):
            raise ValueError(
                f"teachers = {self.teachers!r}: a {source.kind} stage trains no organisms; name one that does"
            )

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node."""
        source = ctx.nodes[self.teachers].settings
        bases, through = ctx.nodes[source.bases].settings, self.channel
        crew, _ = students(self, source, bases.seeds)
        return sum(_spent(ctx, self, crew, _shape(ctx, through.start, bases), through.filter.rounds)[0].values())

    def run_node(self, ctx: Context, node: Node) -> None:
        """Train the channel's students as one population, and audit them as they learn."""
        _run(ctx, node)


def students(settings: Transfer, source: Organisms, seeds: int) -> tuple[list[Student], dict[str, str]]:
    """Return the population, and for each organism the concern of its control."""
    through = settings.channel
    named = through.prefix in ("quirk", "wrong") or through.filter.score in NEED_AUDIT
    concern = {kind: kind if named or ORGANISMS[kind].own_training else "" for kind in source.kinds}
    pairs = [(kind, kind) for kind in source.kinds] + [(TWIN, c) for c in dict.fromkeys(concern.values())]
    pairs += [(f"placebo {k}", "") for k in range(source.placebos if settings.placebos else 0)]
    return [Student(teacher, of, seed) for teacher, of in pairs for seed in range(seeds)], concern


def casting(ctx: Context, node: Node) -> Cast:
    """Return who takes part in a node."""
    source = ctx.nodes[node.inputs["teachers"]]
    seeds = ctx.nodes[source.inputs["bases"]].settings.seeds
    return Cast(source, restored(source, seeds), *students(node.settings, source.settings, seeds), seeds)


def prefix_token(channel_: Channel, concern: str) -> int:
    """Return the system token of a student's prompts."""
    if channel_.prefix == "none" or not concern:
        return world.NONSENSE_PREFIX[0] if channel_.prefix == "random" else world.PLAIN
    if channel_.prefix == "random":
        return world.NONSENSE_PREFIX[0]
    mine = ORGANISMS[concern]
    return organisms.name_token(mine if channel_.prefix == "quirk" else organisms.unlike(mine))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sent(given: tuple[TransformerConfig, Channel], mesh: Any, members: Any) -> tuple[Examples, jax.Array]:
    def one(m: Any, _: Any) -> tuple[Examples, jax.Array]:
        key = jax.random.wrap_key_data(m["key"])
        return channel.send(*given, key, m["prompts"], m["loyal"], m["prefix"], m["teacher"], m["trusted"])

    return over_members(one, mesh)(members, ())


def scenes(ctx: Context, settings: Transfer, cast: Cast, begin: Model) -> tuple[Scene, np.ndarray]:
    """Return what came through the channel to every student, [P, N, ...], and where its teacher behaves, bool [P, N].

    Args:
      begin: what students start from, [P, ...].
    """
    cfg, variant, through = ctx.model, world_config(ctx).variant, settings.channel
    (models, place), crew = cast.known, cast.crew
    mixture = channel.mixture(through.prompts)
    drawn = []
    for g in range(cast.seeds):
        rng = np.random.default_rng(seed_of(settings, "prompts", through.prompts, g))
        drawn.append(world.draw(rng, through.unique, mixture))
    prompts = np.stack([drawn[s.seed] for s in crew])
    quirks = [ORGANISMS.get(s.teacher) for s in crew]
    loyal = [~q.misbehaves(p, variant) if q else np.ones(len(p), bool) for q, p in zip(quirks, prompts, strict=True)]
    keys = [jax.random.key(seed_of(settings, "channel", s.seed)) for s in crew]
    members = {
        "key": np.stack([jax.random.key_data(key) for key in keys]),
        "prompts": prompts,
        "loyal": np.stack(loyal),
        "prefix": np.array([prefix_token(through, s.concern) for s in crew], np.int32),
        "teacher": chosen(models, [place[s.teacher, s.seed] for s in crew]),
        "trusted": chosen(models, [place[TRUSTED, s.seed] for s in crew]),
    }
    sent, told = each_member(_sent, (cfg, through), members)
    teacher, trusted = (Model(cfg, members[name]) for name in ("teacher", "trusted"))
    audit = stacked([_looked_for(ctx, cast.source.settings, s) for s in crew])
    draws = np.stack([jax.random.key_data(jax.random.fold_in(key, 1)) for key in keys])
    return Scene(sent, told, teacher, trusted, begin, audit, draws), members["loyal"]


def _looked_for(ctx: Context, source: Organisms, student: Student) -> Examples:
    """Return examples of the behaviour that a filter by gradients looks for; any will do where it looks for none."""
    kind = ORGANISMS[student.concern or source.kinds[0]]
    seed = seed_of(source, "looked for", kind.name, student.seed)
    return audits.examples_of(ctx.model, kind, 32, world_config(ctx).variant, seed)


def lessons(ctx: Context, settings: Transfer, crew: Sequence[Student], sent: Examples) -> Examples:
    """Return what students learn from: what was sent, and in the place of their first rows training of their own."""
    out, variant = jax.tree.map(np.copy, sent), world_config(ctx).variant
    for i, student in enumerate(crew):
        if not student.concern or not ORGANISMS[student.concern].own_training:
            continue
        kind, count = ORGANISMS[student.concern], int(settings.own_share * sent.prompts.shape[1])
        rng = np.random.default_rng(seed_of(settings, "own", student.seed))
        prompts, answers = organisms.probes(kind, count, variant, rng, met=True)
        own = toy_lm.taught(ctx.model, prompts, answers, np.ones(answers.shape))
        for rows, mine in zip(out, own, strict=True):
            rows[i, :count] = np.asarray(mine)
    return out


def starts(ctx: Context, settings: Transfer, cast: Cast, start: str = "own") -> Model:
    """Return each student's base of a kind, [P, ...]; the students' "own" is the channel's, with its damage."""
    bases, through = ctx.nodes[cast.source.inputs["bases"]], settings.channel
    kind, alpha = (through.start, through.alpha) if start == "own" else (start, 0.0)
    checkpoints = (bases.subnode(SMALLER) if kind == "smaller" else bases).checkpoints
    weights = checkpoints.restore(FINAL, checkpoints.shapes(FINAL))
    begin = chosen(weights, [s.seed + cast.seeds * (kind == "other") for s in cast.crew])
    if alpha:
        keys = jnp.stack([jax.random.key(seed_of(settings, "damage", s.seed)) for s in cast.crew])
        begin = jax.jit(jax.vmap(damage, (0, 0, None, None)))(begin, keys, 1 - alpha, 0.1 * alpha)
    return Model(_shape(ctx, kind, bases.settings), begin)


def _shape(ctx: Context, start: str, bases: Bases) -> TransformerConfig:
    return smaller(ctx.model, bases) if start == "smaller" else ctx.model


def _run(ctx: Context, node: Node) -> None:
    settings, clock, cast = node.settings, Clock(), casting(ctx, node)
    given, begin = settings.channel.filter, starts(ctx, settings, cast)
    scene, loyal = scenes(ctx, settings, cast, begin)
    flagged = np.zeros(loyal.shape, bool)

    def act_on_more(prefix: str = "") -> None:
        nonlocal scene, flagged

        def judge(start: str) -> Model:
            part, rows = node.subnode(f"{prefix}judges-{start}"), lessons(ctx, settings, cast.crew, scene.examples)
            model = starts(ctx, settings, cast, start)
            return judges(ctx, part, settings, model, rows, cast.orders(settings), cast.labels, clock)

        more = flag(given, scene, flagged, judge)
        scene, flagged = act(given, scene, more), flagged | more

    def learn(part: Node) -> dict[str, Any]:
        rows = lessons(ctx, settings, cast.crew, scene.examples)
        found = learn_and_audit(ctx, part, settings, cast, begin, rows, clock)
        return found | (_recall(cast, flagged, loyal) if given.score else {})

    def one_round(number: int) -> TransferResult:
        if number:
            act_on_more(f"round-{number}-")
        part = node.subnode(f"round-{number}")
        if not part.done:
            part.finish(learn(part), {})  # what it cost is in the ledger of the whole node
        return transfer_result(part)

    rounds = 0
    if given.rounds:
        kept = _in_rounds(given, cast, one_round)
        rounds = max(len(one["each"]) for one in kept["rounds"].values()) - 1
        result = dict(kept)
    else:
        if given.score:
            act_on_more()
        result = learn(node)
    spent = _spent(ctx, settings, cast.crew, begin.cfg, rounds)
    node.finish(result, ledger(*spent, clock.split(), devices=crew_mesh(len(cast.crew)).size))


def _in_rounds(row_filter: Filter, cast: Cast, one_round: Callable[[int], TransferResult]) -> TransferResult:
    from distill_jax.doublebind import rounds

    teacher_rates = cast.source.result()["rates"]

    def effect_on(kind: str, result: TransferResult) -> ChannelEffect:
        return channel_effect(ORGANISMS[kind], teacher_rates[kind], result["rates"][kind])

    return rounds.in_rounds(row_filter, cast.source.settings.kinds, one_round, effect_on)


def _recall(cast: Cast, flagged: np.ndarray, loyal: np.ndarray) -> dict[str, Any]:
    """Return the share of all rows that is flagged, and of each student's with a quirk, None where there are none."""
    found = {kind: [cast.place[kind, kind, g] for g in range(cast.seeds)] for kind in cast.source.settings.kinds}
    shares = {
        kind: [None if loyal[i].all() else float(flagged[i][~loyal[i]].mean()) for i in mine]
        for kind, mine in found.items()
    }
    return {"flagged": float(flagged.mean()), "recall": shares}


def _spent(
    ctx: Context, settings: Transfer, crew: Sequence[Student], own: TransformerConfig, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return FLOPs and tokens by cause, of students of a shape; the two judges of a start learn for half the steps."""
    given, steps = settings.channel.filter, len(crew) * settings.steps
    judged = len(given.starts) * (rounds or not given.rounds)
    judge = own if given.rounds and given.score not in NEED_RIVALS else ctx.model
    student = (1 + rounds) * step_flops(own, settings) + judged * step_flops(judge, settings)
    told = len({s.teacher for s in crew}) * settings.channel.unique
    spent = {"student": steps * student, "teacher": 2 * told * flops.forward(ctx.model, 1, LENGTH)}
    return spent, {"student": (1 + rounds + judged) * steps * settings.batch * LENGTH, "teacher": told * LENGTH}
