"""Refuse an audit that could not answer, before anything is computed."""

from __future__ import annotations

import dataclasses
from typing import Any

from distill_jax.config import check
from distill_jax.doublebind.channel import Channel
from distill_jax.stages.bases import smaller

POSITIVE = "positive"  # the channel that must transfer
PREFIX = "through-"  # of the stages' names; the rest is the channel's


def check_design(experiment: Any) -> None:
    """Raise ConfigError for an audit without controls, or with too few probes for its margin."""
    from distill_jax.doublebind.statistics import prompts_needed

    stages, data = experiment.stages, experiment.data
    verbs = {name: stage.VERB for name, stage in stages.items()}
    channels = {n.removeprefix(PREFIX): s.channel for n, s in stages.items() if s.VERB == "transfer"}
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
    (bases,) = (stage for stage in stages.values() if stage.VERB == "bases")
    if any(channel.start == "smaller" for channel in channels.values()):
        smaller(experiment.model, bases)
    needed, seeds = prompts_needed(data.leak), bases.seeds
    mend = (
        f"a margin of {data.leak:g} needs {needed:,} an arm; set data.probes = {-(-needed // seeds)}, or a wider margin"
    )
    check(seeds * data.probes >= needed, f"data.probes = {data.probes} × {seeds} seeds: too few; {mend}")
