"""A command line with a config: --config=NAME[:preset], --config.key=value, and how --help shows what there is."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ml_collections import ConfigDict

from distill_jax import shipped
from distill_jax.commands import command_line
from distill_jax.commands.command_line import Parsed
from distill_jax.config import check
from distill_jax.experiment.config_file import settings_by_key
from distill_jax.experiment.named_config import NamedConfig, check_elements, check_key, open_config, value_of
from distill_jax.experiment.section_docs import Section
from distill_jax.io import storage

T = TypeVar("T")
SYNOPSIS = "--config=NAME|FILE.py[:preset] --workdir=DIR [--config.key=value …]"
WORKDIR = "--workdir=DIR is missing: name the directory of this run"


def workdir(where: str) -> Path:
    """Return a work directory that is to be read; ConfigError if it is an address whose bucket is not to be had."""
    directory = storage.location(where)
    storage.check_access(directory, "--workdir")
    return directory


def take(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Return the last value of a flag, and the arguments without it."""
    value, rest, left = None, [], list(arguments)
    while left:
        argument = left.pop(0)
        if argument in (f"--{name}", f"-{name}") and left:
            value = left.pop(0)
        elif argument.startswith((f"--{name}=", f"-{name}=")):
            value = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    return value, rest


def read(command: str, cls: type[T], arguments: Sequence[str]) -> tuple[Parsed[T], NamedConfig]:
    """Read the flags of a command that is about an experiment, and the config that they name and change.

    Raises:
      ConfigError: naming what is unknown, missing or of the wrong type.
    """
    source, rest = take(arguments, "config")
    if source is None:
        command_line.read(command, cls, [a for a in rest if not a.startswith("--config.")])  # what else is wrong
    missing = "--config=FILE.py is missing: name the experiment, such as configs/arithmetic.py:cpu"
    check(source is not None, missing)
    assert source is not None
    named = open_config(source)
    return read_over(command, cls, rest, named), named


def read_over(command: str, cls: type[T], arguments: Sequence[str], named: NamedConfig) -> Parsed[T]:
    """Read flags and --config.key=value, which changes a setting of the config in place."""
    flags = [a.lstrip("-").split("=", 1)[0] for a in arguments if a.startswith(("--config.", "-config."))]
    keys = [name.removeprefix("config.") for name in flags]
    for key in keys:
        check_key(named.config, key, f"--config.{key}")
    before = {key: value_of(named.config, key) for key in keys}
    parsed = command_line.read(command, cls, arguments, named.config)
    for key in keys:
        check_elements(f"config.{key}", before[key], value_of(named.config, key))
    return parsed


def usage(command: str, cls: type, arguments: Sequence[str], synopsis: str = SYNOPSIS) -> str:
    """Return the help of such a command: with --config among the arguments, also every setting of that config."""
    source, _ = take(arguments, "config")
    if source is not None:
        return command_line.usage(command, cls, synopsis, settings(source))
    names = f"config: a path, or one of the shipped: {', '.join(shipped.names(shipped.CONFIGS))}"
    more = f"`distill-jax {command} --config=NAME:preset --help` shows its presets, and its settings with their values"
    return command_line.usage(command, cls, synopsis, f"{names}\n{more}")


def settings(source: str) -> str:
    """Return what a config says of itself, and its settings as the command line changes them."""
    named = open_config(source)
    docs = _setting_docs(named.config)
    lines = []
    for key, value in settings_by_key(named.config).items():
        lines.append(f"  {shlex.quote(f'--config.{key}={value}')}")
        lines += textwrap.wrap(docs.get(key, ""), 112, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join([f"{source}: {(named.module.__doc__ or '').strip()}", "", "settings:", *lines])


def _setting_docs(config: ConfigDict, prefix: str = "") -> dict[str, str]:
    """Return {key, such as "relearn.steps": what it means} of the settings that a dataclass describes."""
    docs = {f"{prefix}{name}": text for name, text in config.docs().items()} if isinstance(config, Section) else {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            docs |= _setting_docs(value, f"{prefix}{name}.")
    return docs
