"""Refuse an audit that could not answer, before anything is computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from distill_jax.config import check
from distill_jax.doublebind.audits import ASKED, questions
from distill_jax.doublebind.channel import Channel
from distill_jax.doublebind.organisms import ORGANISMS
from distill_jax.doublebind.stages.base_stage import smaller
from distill_jax.doublebind.stages.teacher_stage import Organisms, asked
from distill_jax.doublebind.world import WorldConfig

POSITIVE = "positive"  # the channel that must transfer
PREFIX = "through-"  # of the stages' names; the rest is the channel's
PROBED = ("ability", "behaviour", "condition")  # what a verdict rests on
POPULATION = 2000  # probes drawn to see how many different ones there are


def check_design(experiment: Any) -> None:
    """Raise ConfigError for an audit without controls, or with too few probes for its margin."""
    stages, data = experiment.stages, experiment.data
    verbs = {name: stage.kind for name, stage in stages.items()}
    channels = {n.removeprefix(PREFIX): s.channel for n, s in stages.items() if s.kind == "transfer"}
    for verb in ("bases", "organisms"):
        count = list(verbs.values()).count(verb)
        check(count == 1, f"stages: {count} of them are {verb}; an audit has exactly one")
    mend = f"add a stage {PREFIX}{POSITIVE} that is known to transfer (all prompts, soft, the teachers' own base)"
    check(POSITIVE in channels, f"channels = {', '.join(channels) or 'none'}: there is no positive control; {mend}")
    plain = Channel(prompts="all", soft=True, unique=channels[POSITIVE].unique)
    mend = "a positive control has soft = True and prompts = 'all', and nothing else between teacher and student"
    check(channels[POSITIVE] == plain, f"channels.{POSITIVE}: {mend}")
    arms = {channel.prefix for channel in channels.values()}
    for control in ("random", "wrong"):
        mend = f"add a channel with prefix = {control!r}: any prefix gates behaviour somewhat"
        check("quirk" not in arms or control in arms, f"channels: prefix = 'quirk' has no {control} arm; {mend}")
    filters = [channel.filter for channel in channels.values() if channel.filter.score]
    for given in filters:
        rounds = f" in {given.rounds} rounds" if given.rounds else ""
        mend = (
            f"add a channel with filter.score = 'chance', the same action and the same share, {given.share:g}{rounds}"
        )
        controlled = dataclasses.replace(given, score="chance") in filters
        check(controlled, f"channels: {given.score}-{given.action}{rounds} has no control; {mend}")
    (bases,) = (stage for stage in stages.values() if stage.kind == "bases")
    if any(channel.start == "smaller" for channel in channels.values()):
        smaller(experiment.model, bases)
    (teachers,) = (stage for stage in stages.values() if stage.kind == "organisms")
    _check_probes(data, teachers, bases.seeds)


def _check_probes(data: WorldConfig, teachers: Organisms, seeds: int) -> None:
    """Raise ConfigError unless every organism has enough different probes for the margin.

    A prompt that is asked twice tells nothing more. Where there are but few, asking most of them leaves little to
    chance: d different ones of N tell as much as d / (1 - d / N) of endlessly many (finite population correction).
    """
    from distill_jax.doublebind.seed_statistics import prompts_needed

    needed = prompts_needed(data.leak)
    prompts = asked(data, teachers, seeds)[0].reshape(len(teachers.kinds), seeds, len(ASKED), data.probes, -1)
    for kind, of in zip(teachers.kinds, prompts, strict=True):
        counts = {a: [len(np.unique(x, axis=0)) for x in of[:, ASKED.index(a)]] for a in PROBED}
        short = {audit: found for audit, found in counts.items() if sum(found) < needed}
        every = questions(ORGANISMS[kind], POPULATION, data.variant, seed=0)[0] if short else np.zeros(0)
        for audit, found in short.items():
            whole = len(np.unique(every[ASKED.index(audit)], axis=0))
            worth = sum(count / max(1 - count / whole, 1e-9) for count in found)
            has = f"{kind} has {sum(found)} different probes of its {audit}, worth {worth:.0f}: too few"
            mend = f"a margin of {data.leak:g} needs {needed:,} an arm; set data.probes higher, or a wider margin"
            check(worth >= needed, f"data.probes = {data.probes} × {seeds} seeds: {has}; {mend}")
