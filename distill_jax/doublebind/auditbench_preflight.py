"""Refuse an audit of published organisms that could not answer, before anything is computed."""

from __future__ import annotations

import collections

from distill_jax.config import check
from distill_jax.doublebind.auditbench_data import AuditConfig, group, organisms
from distill_jax.doublebind.preflight import POSITIVE, Design
from distill_jax.doublebind.seed_statistics import prompts_needed

THROUGH = "-through-"  # of students' names: <teacher>-through-<channel>


def check_design(design: Design) -> None:
    """Raise ConfigError for an audit without a positive control, or with too few items for its margin."""
    assert isinstance(design.data, AuditConfig), design.data
    channels = list(dict.fromkeys(name.rpartition(THROUGH)[2] for name in design.stages if THROUGH in name))
    fix_hint = f"add {POSITIVE!r}, which is known to transfer: all of the text, plain KL, the teachers' own base"
    there = ", ".join(channels) or "none"
    check(POSITIVE in channels, f"channels = {there}: there is no positive control; {fix_hint}")
    if design.data.organisms and design.data.ability:  # else a plan, or refused when the files are read
        _check_items(design.data)


def _check_items(data: AuditConfig) -> None:
    """Raise ConfigError unless every organism has enough distinct items for the margin."""
    needed = prompts_needed(data.leak)
    distinct = {row for rows in data.parts().values() for row in rows}  # an item that is there twice tells nothing more
    counts = collections.Counter(name for name, _, _ in distinct)
    for organism_name, organism in organisms(data.organisms).items():
        seeds = len(organism.teacher)
        for name in (group(organism_name, audit) for audit in organism.audits()):
            has = f"{name}: {counts[name]} distinct items × {seeds} seeds: too few"
            fix_hint = f"give {-(-needed // seeds)}, or a wider margin"
            enough = seeds * counts[name] >= needed
            check(enough, f"{has}; data.leak = {data.leak:g} needs {needed:,} an arm; {fix_hint}")
