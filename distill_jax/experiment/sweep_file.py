"""A sweep's file: its `get_sweep(arg)` returns the config that it is over, and points."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from distill_jax import shipped
from distill_jax.config import ConfigError, check
from distill_jax.experiment.config_file import call, load_module
from distill_jax.experiment.named_config import find_file, split_source
from distill_jax.experiment.sweep_points import Point

FIX_HINT = "get_sweep(arg) returns the base config, a path, and a list of points, which are dicts of settings"


@dataclasses.dataclass(frozen=True)
class SweepFile:
    """What a sweep's file says.

    Attributes:
      name: of the file, with its preset.
      base: the config that it is over, as --config takes it.
      points: the settings of each point.
      description: the file's first paragraph.
    """

    name: str
    base: str
    points: list[Point]
    description: str


def open_sweep(source: str) -> SweepFile:
    """Open a sweep: a path, or the name of a shipped one, and a preset.

    Raises:
      ConfigError: if there is none, or its get_sweep returns something else.
    """
    where, (name, *preset) = f"--sweep={source}", split_source(source)
    arg = "".join(preset)
    path = find_file(where, name, shipped.SWEEPS)
    module = load_module(path, "get_sweep", "get_sweep(arg) returns the base config and the points")
    base, points = _checked(where, call(where, module.get_sweep, arg))
    file, *preset = split_source(base)
    as_named = "://" in file or (file in shipped.names(shipped.CONFIGS) and not (path.parent / file).exists())
    base = ":".join([file if as_named else str(path.parent / file), *preset])
    description = " ".join((module.__doc__ or "").split("\n\n")[0].split())
    return SweepFile(path.stem + (f":{arg}" if arg else ""), base, points, description)


def _checked(where: str, returned: object) -> tuple[str, list[Point]]:
    """Return what a get_sweep returned if it is what it should be."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise ConfigError(f"{where}: {FIX_HINT}")
    base, points = returned
    check(isinstance(base, str), f"{where}: its base config is {base!r}; {FIX_HINT}")
    check(isinstance(points, Iterable), f"{where}: its points are {type(points).__name__}; {FIX_HINT}")
    points = call(where, list, points)  # they may come from a generator, which is the user's code
    for i, point in enumerate(points):
        if not (isinstance(point, dict) and all(isinstance(key, str) for key in point)):
            raise ConfigError(f"{where}: point {i} is {str(point)[:80]}; {FIX_HINT}")
    return base, points
