"""Refuse an audit that could not answer, before anything is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from distill_jax.config import check
from distill_jax.data.data_config import DataConfig
from distill_jax.doublebind.audits import PROBE_SETS, draw_probes
from distill_jax.doublebind.channel import Channel
from distill_jax.doublebind.organisms import ORGANISMS
from distill_jax.doublebind.seed_statistics import prompts_needed
from distill_jax.doublebind.stages.base_stage import Bases, smaller
from distill_jax.doublebind.stages.teacher_stage import Organisms, all_probes
from distill_jax.doublebind.stages.transfer_stage import Transfer
from distill_jax.doublebind.world import WorldConfig
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages.stage import Stage

POSITIVE = "positive"  # the channel that must transfer
PREFIX = "through-"  # of the stages' names; the rest is the channel's
PROBED = ("ability", "behaviour", "condition")  # what a verdict rests on
POPULATION = 2000  # probes drawn to see how many different ones there are

Channels = Mapping[str, Channel]


class Design(Protocol):
    """What is read of a checked experiment."""

    @property
    def stages(self) -> Mapping[str, Stage]:
        """The stages, by name."""

    @property
    def data(self) -> DataConfig:
        """The settings of the data."""

    @property
    def model(self) -> TransformerConfig:
        """The shape of the models."""


def check_design(design: Design) -> None:
    """Raise ConfigError for an audit without controls, or with too few probes for its margin."""
    stages = design.stages.values()
    bases = [stage for stage in stages if isinstance(stage, Bases)]
    teachers = [stage for stage in stages if isinstance(stage, Organisms)]
    for kind, count in {"bases": len(bases), "organisms": len(teachers)}.items():
        check(count == 1, f"stages: {count} of them are {kind}; an audit has exactly one")
    channels = {n.removeprefix(PREFIX): s.channel for n, s in design.stages.items() if isinstance(s, Transfer)}
    _check_positive_control(channels)
    _check_prefix_arms(channels)
    _check_filter_arms(channels)
    if any(channel.start == "smaller" for channel in channels.values()):
        smaller(design.model, bases[0])
    assert isinstance(design.data, WorldConfig), design.data
    _check_probes(design.data, teachers[0], bases[0].seeds)


def _check_positive_control(channels: Channels) -> None:
    """Raise ConfigError unless there is a channel that is known to transfer."""
    fix_hint = f"add a stage {PREFIX}{POSITIVE} that is known to transfer (all prompts, soft, the teachers' own base)"
    there = ", ".join(channels) or "none"
    check(POSITIVE in channels, f"channels = {there}: there is no positive control; {fix_hint}")
    plain = Channel(prompts="all", soft=True, unique=channels[POSITIVE].unique)
    fix_hint = "a positive control has soft = True and prompts = 'all', and nothing else between teacher and student"
    check(channels[POSITIVE] == plain, f"channels.{POSITIVE}: {fix_hint}")


def _check_prefix_arms(channels: Channels) -> None:
    """Raise ConfigError if a prefix that names the quirk has no random or no wrong one to be compared with."""
    arms = {channel.prefix for channel in channels.values()}
    for control in ("random", "wrong"):
        fix_hint = f"add a channel with prefix = {control!r}: any prefix gates behaviour somewhat"
        check("quirk" not in arms or control in arms, f"channels: prefix = 'quirk' has no {control} arm; {fix_hint}")


def _check_filter_arms(channels: Channels) -> None:
    """Raise ConfigError if a filter has no random arm of the same action, share and rounds."""
    filters = [channel.filter for channel in channels.values() if channel.filter.score]
    for row_filter in filters:
        rounds = f" in {row_filter.rounds} rounds" if row_filter.rounds else ""
        has = f"channels: {row_filter.score}-{row_filter.action}{rounds} has no control"
        same = f"the same action and the same share, {row_filter.share:g}{rounds}"
        has_control = dataclasses.replace(row_filter, score="chance") in filters
        check(has_control, f"{has}; add a channel with filter.score = 'chance', {same}")


def _check_probes(data: WorldConfig, teachers: Organisms, seeds: int) -> None:
    """Raise ConfigError unless every organism has enough different probes for the margin.

    A prompt that is asked twice tells nothing more. Where there are but few, asking most of them leaves little to
    chance: d different ones of N tell as much as d / (1 - d / N) of endlessly many (finite population correction).
    """
    needed = prompts_needed(data.leak)
    prompts = all_probes(data, teachers, seeds).prompts.reshape(
        len(teachers.kinds), seeds, len(PROBE_SETS), data.probes, -1
    )
    for kind, by_seed in zip(teachers.kinds, prompts, strict=True):
        counts = {a: [_num_distinct(x) for x in by_seed[:, PROBE_SETS.index(a)]] for a in PROBED}
        short = {audit: distinct for audit, distinct in counts.items() if sum(distinct) < needed}
        population = draw_probes(ORGANISMS[kind], POPULATION, data.variant, seed=0).prompts if short else np.zeros(0)
        for audit, distinct in short.items():
            total = _num_distinct(population[PROBE_SETS.index(audit)])
            worth = sum(count / max(1 - count / total, 1e-9) for count in distinct)
            has = f"{kind} has {sum(distinct)} different probes of its {audit}, worth {worth:.0f}: too few"
            fix_hint = f"a margin of {data.leak:g} needs {needed:,} an arm; set data.probes higher, or a wider margin"
            check(worth >= needed, f"data.probes = {data.probes} × {seeds} seeds: {has}; {fix_hint}")


def _num_distinct(prompts: np.ndarray) -> int:
    return len(np.unique(prompts, axis=0))
