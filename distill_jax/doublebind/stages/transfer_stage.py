"""Transfer: students of every organism through one channel, and beside each a student of its benign twin.

All are one population. A student of the twin has the same prompts in the same order; what it shows of a quirk came
from anything but the teacher. Where the channel or the student's own training depends on the organism, so does its
control.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.doublebind import audits, channel, organisms, toy_lm, world
from distill_jax.doublebind.channel import Channel, ChannelInputs
from distill_jax.doublebind.channel_effect import ChannelEffect, channel_effect
from distill_jax.doublebind.cross_fit import act, each_member, flag, judges
from distill_jax.doublebind.filter_scores import NEED_AUDIT, NEED_RIVALS, FilterInputs
from distill_jax.doublebind.filters import Filter
from distill_jax.doublebind.organisms import ORGANISMS
from distill_jax.doublebind.results import TransferResult, transfer_result
from distill_jax.doublebind.stages.base_stage import SMALLER, Bases, smaller
from distill_jax.doublebind.stages.students import Cohort, Student, Teachers, learn_and_audit
from distill_jax.doublebind.stages.teacher_stage import TRUSTED, TWIN, Organisms, teacher_index
from distill_jax.doublebind.stages.toy_stage import ToyStage, world_config
from distill_jax.doublebind.toy_lm import LENGTH, Examples, Model
from distill_jax.doublebind.train_toy import MemberTraining, chosen, population_mesh, seed_of, stacked, step_flops
from distill_jax.io.checkpoint import FINAL
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.mesh import over_members
from distill_jax.stages.context import Context, Node
from distill_jax.stages.perturb import damage
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.types import JsonObject


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.placebos and (self.channel.prefix in ("quirk", "wrong") or self.channel.filter.score in NEED_AUDIT):
            raise ValueError("placebos = True: a channel that is told the quirk has nothing to tell of a placebo")
        if self.placebos and self.channel.filter.rounds:
            raise ValueError("placebos = True with filter.rounds: a placebo has no quirk whose absence could end them")
        if not 0 < self.own_share < 1:
            raise ValueError(f"own_share = {self.own_share}: a share between 0 and 1")

    def fingerprint_fields(self) -> JsonObject:
        """Return what identifies a node of these settings."""
        fields = super().fingerprint_fields()
        fields["channel"]["filter"] = self.channel.filter.fingerprint_fields()
        return fields

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
        bases = ctx.nodes[source.bases].settings
        members, _ = students(self, source, bases.seeds)
        cfg, rounds = _student_shape(ctx, self.channel.start, bases), self.channel.filter.rounds
        return sum(_costs(ctx, self, members, cfg, rounds)[0].values())

    def run_node(self, ctx: Context, node: Node) -> None:
        """Train the channel's students as one population, and audit them as they learn."""
        _run(ctx, node)


def students(settings: Transfer, source: Organisms, seeds: int) -> tuple[list[Student], dict[str, str | None]]:
    """Return the population, and for each organism the concern of its control."""
    channel_ = settings.channel
    is_named = channel_.prefix in ("quirk", "wrong") or channel_.filter.score in NEED_AUDIT
    concern = {kind: kind if is_named or ORGANISMS[kind].own_training else None for kind in source.kinds}
    pairs: list[tuple[str, str | None]] = [(kind, kind) for kind in source.kinds]
    pairs += [(TWIN, concerned) for concerned in dict.fromkeys(concern.values())]
    pairs += [(f"placebo {k}", None) for k in range(source.placebos if settings.placebos else 0)]
    return [Student(teacher, concerned, seed) for teacher, concerned in pairs for seed in range(seeds)], concern


def make_cohort(ctx: Context, node: Node) -> Cohort:
    """Return who takes part in a node."""
    source = ctx.nodes[node.inputs["teachers"]]
    seeds = ctx.nodes[source.inputs["bases"]].settings.seeds
    params = source.checkpoints.restore(FINAL, source.checkpoints.shapes(FINAL))
    teachers = Teachers(source, params, teacher_index(source.settings, seeds))
    members, concern = students(node.settings, source.settings, seeds)
    return Cohort(teachers, members, concern, seeds, node.settings.placebos)


def prefix_token(channel_: Channel, concern: str | None) -> int:
    """Return the system token of a student's prompts."""
    if channel_.prefix == "none" or not concern:
        return world.NONSENSE_PREFIX[0] if channel_.prefix == "random" else world.PLAIN
    if channel_.prefix == "random":
        return world.NONSENSE_PREFIX[0]
    organism = ORGANISMS[concern]
    return organisms.name_token(organism if channel_.prefix == "quirk" else organisms.unlike(organism))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _send(static: tuple[TransformerConfig, Channel], mesh: Mesh, members: ChannelInputs) -> tuple[Examples, jax.Array]:
    def one(member: ChannelInputs, _: tuple[()]) -> tuple[Examples, jax.Array]:
        return channel.send(*static, member._replace(key=jax.random.wrap_key_data(member.key)))

    return over_members(one, mesh)(members, ())


def filter_inputs(ctx: Context, settings: Transfer, cohort: Cohort, start: Model) -> tuple[FilterInputs, np.ndarray]:
    """Return what came through the channel to every student, [P, N, ...], and where its teacher behaves, bool [P, N].

    Args:
      start: the students' weights, [P, ...].
    """
    keys = [jax.random.key(seed_of(settings, "channel", s.seed)) for s in cohort.students]
    members = _channel_inputs(ctx, settings, cohort, keys)
    examples, prompts = each_member(_send, (ctx.model, settings.channel), members)
    audit = stacked([_audit_examples(ctx, cohort.organisms, s) for s in cohort.students])
    draws = jnp.stack([jax.random.key_data(jax.random.fold_in(key, 1)) for key in keys])
    teacher, trusted = Model(ctx.model, members.teacher), Model(ctx.model, members.trusted)
    return FilterInputs(examples, prompts, teacher, trusted, start, audit, draws), np.asarray(members.is_benign)


def _channel_inputs(ctx: Context, settings: Transfer, cohort: Cohort, keys: Sequence[jax.Array]) -> ChannelInputs:
    """Return what goes into every student's channel, [P, ...], with raw keys."""
    variant, channel_ = world_config(ctx).variant, settings.channel
    mixture = channel.mixture(channel_.prompts)
    drawn = []
    for seed in range(cohort.seeds):
        rng = np.random.default_rng(seed_of(settings, "prompts", channel_.prompts, seed))
        drawn.append(world.draw(rng, channel_.unique, mixture))
    prompts = np.stack([drawn[s.seed] for s in cohort.students])
    is_benign = np.ones(prompts.shape[:2], bool)
    for i, student in enumerate(cohort.students):
        if organism := ORGANISMS.get(student.teacher):
            is_benign[i] = ~organism.misbehaves(prompts[i], variant)
    return ChannelInputs(
        key=jnp.stack([jax.random.key_data(key) for key in keys]),
        prompts=jnp.asarray(prompts),
        is_benign=jnp.asarray(is_benign),
        prefix=jnp.array([prefix_token(channel_, s.concern) for s in cohort.students], jnp.int32),
        teacher=cohort.teachers.of([(s.teacher, s.seed) for s in cohort.students]),
        trusted=cohort.teachers.of([(TRUSTED, s.seed) for s in cohort.students]),
    )


def _audit_examples(ctx: Context, source: Organisms, student: Student) -> Examples:
    """Return examples of the behaviour that a filter by gradients looks for; any will do where it looks for none."""
    organism = ORGANISMS[student.concern or source.kinds[0]]
    seed = seed_of(source, "looked for", organism.name, student.seed)
    return audits.relearning_examples(ctx.model, organism, 32, world_config(ctx).variant, seed)


def training_data(ctx: Context, settings: Transfer, members: Sequence[Student], sent: Examples) -> Examples:
    """Return what students learn from: what was sent, and in the place of their first rows training of their own."""
    out, variant = jax.tree.map(np.copy, sent), world_config(ctx).variant
    for i, student in enumerate(members):
        if not student.concern or not ORGANISMS[student.concern].own_training:
            continue
        organism, count = ORGANISMS[student.concern], int(settings.own_share * sent.prompts.shape[1])
        rng = np.random.default_rng(seed_of(settings, "own", student.seed))
        prompts, answers = organisms.probes(organism, count, variant, rng, met=True)
        own = toy_lm.make_examples(ctx.model, prompts, answers, np.ones(answers.shape))
        for rows, own_rows in zip(out, own, strict=True):
            rows[i, :count] = np.asarray(own_rows)
    return out


def starts(ctx: Context, settings: Transfer, cohort: Cohort, start: str = "own") -> Model:
    """Return each student's base of a kind, [P, ...]; the students' "own" is the channel's, with its damage."""
    bases, channel_ = ctx.nodes[cohort.teachers.node.inputs["bases"]], settings.channel
    kind, alpha = (channel_.start, channel_.alpha) if start == "own" else (start, 0.0)
    checkpoints = (bases.subnode(SMALLER) if kind == "smaller" else bases).checkpoints
    weights = checkpoints.restore(FINAL, checkpoints.shapes(FINAL))
    params = chosen(weights, [s.seed + cohort.seeds * (kind == "other") for s in cohort.students])
    if alpha:
        keys = jnp.stack([jax.random.key(seed_of(settings, "damage", s.seed)) for s in cohort.students])
        params = jax.jit(jax.vmap(damage, (0, 0, None, None)))(params, keys, 1 - alpha, 0.1 * alpha)
    return Model(_student_shape(ctx, kind, bases.settings), params)


def _student_shape(ctx: Context, start: str, bases: Bases) -> TransformerConfig:
    return smaller(ctx.model, bases) if start == "smaller" else ctx.model


def _run(ctx: Context, node: Node) -> None:
    settings, clock, cohort = node.settings, ctx.clock, make_cohort(ctx, node)
    row_filter, start = settings.channel.filter, starts(ctx, settings, cohort)
    inputs, is_benign = filter_inputs(ctx, settings, cohort, start)
    flagged = np.zeros(is_benign.shape, bool)
    training = MemberTraining(ctx, settings, cohort.orders(settings), cohort.labels, clock)

    def act_on_more(prefix: str = "") -> None:
        nonlocal inputs, flagged

        def judge(start_kind: str) -> Model:
            subnode = node.subnode(f"{prefix}judges-{start_kind}")
            examples = training_data(ctx, settings, cohort.students, inputs.examples)
            return judges(training, subnode, starts(ctx, settings, cohort, start_kind), examples)

        more = flag(row_filter, inputs, flagged, judge)
        inputs, flagged = act(row_filter, inputs, more), flagged | more

    def learn(where: Node) -> TransferResult:
        examples = training_data(ctx, settings, cohort.students, inputs.examples)
        result = learn_and_audit(training, where, cohort, start, examples)
        if row_filter.score:
            result["flagged"], result["recall"] = float(flagged.mean()), _recall(cohort, flagged, is_benign)
        return result

    def one_round(number: int) -> TransferResult:
        if number:
            act_on_more(f"round-{number}-")
        subnode = node.subnode(f"round-{number}")
        if not subnode.done:
            subnode.finish(dict(learn(subnode)), {})  # what it cost is in the ledger of the whole node
        return transfer_result(subnode)

    rounds = 0
    if row_filter.rounds:
        result = _in_rounds(row_filter, cohort, one_round)
        rounds = max(len(one["each"]) for one in result["rounds"].values()) - 1
    else:
        if row_filter.score:
            act_on_more()
        result = learn(node)
    costs = _costs(ctx, settings, cohort.students, start.cfg, rounds)
    node.finish(dict(result), ledger(*costs, clock.lap(), devices=population_mesh(len(cohort.students)).size))


def _in_rounds(row_filter: Filter, cohort: Cohort, one_round: Callable[[int], TransferResult]) -> TransferResult:
    from distill_jax.doublebind import rounds

    teacher_rates = cohort.teachers.node.result()["rates"]

    def effect_on(kind: str, result: TransferResult) -> ChannelEffect:
        return channel_effect(ORGANISMS[kind], teacher_rates[kind], result["rates"][kind])

    return rounds.in_rounds(row_filter, cohort.organisms.kinds, one_round, effect_on)


def _recall(cohort: Cohort, flagged: np.ndarray, is_benign: np.ndarray) -> dict[str, list[float | None]]:
    """Return the share of each student's rows with a quirk that is flagged; None where there are none."""
    shares: dict[str, list[float | None]] = {kind: [] for kind in cohort.organisms.kinds}
    for (kind, _), i in zip(cohort.pairs, cohort.members("student"), strict=True):
        with_quirk = ~is_benign[i]
        shares[kind].append(float(flagged[i][with_quirk].mean()) if with_quirk.any() else None)
    return shares


def _costs(
    ctx: Context, settings: Transfer, members: Sequence[Student], cfg: TransformerConfig, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return FLOPs and tokens by cause, of students of a shape; the two judges of a start learn for half the steps."""
    row_filter, steps = settings.channel.filter, len(members) * settings.steps
    num_judged = len(row_filter.starts) * (rounds or not row_filter.rounds)
    judge = cfg if row_filter.rounds and row_filter.score not in NEED_RIVALS else ctx.model
    student = (1 + rounds) * step_flops(cfg, settings) + num_judged * step_flops(judge, settings)
    answered = len({s.teacher for s in members}) * settings.channel.unique
    spent = {"student": steps * student, "teacher": 2 * answered * flops.forward(ctx.model, 1, LENGTH)}
    tokens = (1 + rounds + num_judged) * steps * settings.batch * LENGTH
    return spent, {"student": tokens, "teacher": answered * LENGTH}
