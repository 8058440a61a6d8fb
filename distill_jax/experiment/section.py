"""A section of a config, made from the dataclass that it becomes: every setting there is, at its default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from distill_jax.config import ConfigError, nearest
from distill_jax.experiment.section_docs import Section
from distill_jax.stages.stage import Stage
from distill_jax.stages.unlearn import Unlearn, unread_settings

SEED = "seed"  # of a stage: an experiment has one for all


def section(settings: Any, *set_elsewhere: str, **values: Any) -> Section:
    """Return a section with every setting of a dataclass, all of which the command line may change and a sweep vary.

    Args:
      settings: the dataclass; or an instance of it, such as a preset, whose values are then the defaults.
      set_elsewhere: settings that the config gives each stage by itself, left out here. So are, of a stage, those that
        name what it starts from, and its seed.
      values: of settings that are not at their defaults.

    Raises:
      ConfigError: for a name that is no setting of the dataclass.
    """
    cls = settings if isinstance(settings, type) else type(settings)
    known = _defaults(cls) if cls is settings else {f.name: getattr(settings, f.name) for f in dataclasses.fields(cls)}
    if issubclass(cls, Stage):
        set_elsewhere = (*set_elsewhere, *cls.roles(), SEED)
    for name in (*set_elsewhere, *values):
        if name not in known and name != SEED:
            raise ConfigError(f"section({cls.__name__}): it has no setting {name!r}{nearest(name, known)}")
    return Section.of(cls, {key: value for key, value in {**known, **values}.items() if key not in set_elsewhere})


def unlearn_section(method: str, *set_elsewhere: str, **values: Any) -> Section:
    """Return a section of `Unlearn` for a method, without the settings that are there for other methods."""
    return section(Unlearn, "method", *unread_settings(method), *set_elsewhere, **values)


def _defaults(cls: type) -> Mapping[str, Any]:
    """Return the default of each setting that has one."""
    defaults = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
    return defaults
