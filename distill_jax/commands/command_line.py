"""A command's flags: fields of a frozen dataclass, which absl reads and `--help` shows.

@dataclasses.dataclass(frozen=True)
class Flags(ConfigFlags):
    workdir: str = flag("", "DIR: where everything is written", required=True, path=True)
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from distill_jax.commands import COMMANDS, module_name
from distill_jax.config import ConfigError, check, check_path, nearest
from distill_jax.experiment.config_file import one_line
from distill_jax.io.storage import check_output, location

T = TypeVar("T")
_DEFINE: dict[str, Callable[..., Any]] = {
    "str": flags.DEFINE_string,
    "int": flags.DEFINE_integer,
    "float": flags.DEFINE_float,
    "bool": flags.DEFINE_bool,
    "tuple[str, ...]": flags.DEFINE_list,
}
_NO_VALUE = {  # Python's words for a value of the wrong type, and ours
    "invalid literal for int()": "must be a whole number",
    "could not convert string to float": "must be a number",
    "('Non-boolean argument": "must be true or false",
}


def flag(
    default: T,
    help: str,
    *,
    required: bool | str = False,
    path: bool | Literal["file", "directory"] = False,
    bounds: tuple[float | None, float | None] = (None, None),
) -> T:
    """Declare a flag.

    Args:
      required: it must not be left out; a text is what is said then.
      path: it names a file or directory, or has an address of one; of one that is written, which of them, and where
        none can be it is refused before the work.
      bounds: the least and the largest value.
    """
    lower, upper = bounds
    limits = {"lower_bound": lower, "upper_bound": upper} if bounds != (None, None) else {}
    metadata = {"help": help, "required": required, "path": path, "limits": limits}
    return dataclasses.field(default=default, metadata=metadata)


class Parsed(NamedTuple, Generic[T]):
    """A command line that was read."""

    flags: T
    words: list[str]  # that stand between the flags


def read(
    command: str,
    cls: type[T],
    arguments: Sequence[str],
    config: ConfigDict | None = None,
    words: bool = False,
) -> Parsed[T]:
    """Read what follows the command's name.

    Args:
      config: whose settings --config.key=value changes.
      words: there may be some between the flags.

    Raises:
      ConfigError: naming what is unknown, missing or of the wrong type.
    """
    values = flags.FlagValues()
    for name, field in _named(cls):
        define = _DEFINE[str(field.type).removesuffix(" | None")]
        define(name, field.default, field.metadata["help"], flag_values=values, **field.metadata["limits"])
    rest = _parse(values, [command, *map(_underscored, arguments)], config)
    form = "--flag=value" if config is None else "--config.key=value"
    check(words or not rest, f"unexpected argument {rest[-1:] and rest[-1]!r}; settings are given as {form}")
    given = {field.name: _value(command, name, field, values[name].value) for name, field in _named(cls)}
    return Parsed(cls(**given), rest)


def _parse(values: flags.FlagValues, line: Sequence[str], config: ConfigDict | None) -> list[str]:
    """Parse a line and return its words; ConfigError says what is wrong with it."""
    try:
        if (
            config is not None
        ):  # without sys_argv, ml_collections looks for --config.key=value in the process's own line
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=list(line))
        return list(values(line)[1:])
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown(line[0], error.flagname, values)) from error
    except flags.IllegalFlagValueError as error:
        raise ConfigError(_illegal(one_line(error))) from error
    except Exception as error:  # absl's and ml_collections' own, of many kinds
        raise ConfigError(one_line(error)) from error


def _value(command: str, name: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """Return a flag's value for the dataclass; ConfigError if it must not be left out, or is no path."""
    required = field.metadata["required"]
    if required and not value:
        raise ConfigError(f"{command}: --{name} is missing: {field.metadata['help']}" if required is True else required)
    if field.metadata["path"]:
        for path in value if isinstance(value, list) else [value or ""]:
            check_path(f"--{name}", path)
    if isinstance(field.metadata["path"], str) and value:
        check_output(f"--{name}={value}", location(value), field.metadata["path"])
    check(not isinstance(value, float) or math.isfinite(value), f"--{name}={value}: must be finite")
    return tuple(value) if isinstance(value, list) else value


def usage(command: str, cls: type, synopsis: str, *more: str) -> str:
    """Return a command's help: its line, what it does, its flags, and more paragraphs."""
    lines = [f"usage: distill-jax {command} {synopsis}", "", COMMANDS[command], "", "flags:"]
    for name, field in _named(cls):
        default = "" if field.default in ("", None, False, ()) else f" (default {field.default})"
        lines.append(f"  --{name:17}{field.metadata['help']}{default}")
    return "\n".join([*lines, *(line for paragraph in more for line in ("", paragraph))])


def _named(cls: type) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield a flag's name and its field, whose own name ends in _ where Python has the word."""
    yield from ((field.name.rstrip("_"), field) for field in dataclasses.fields(cls))


def _underscored(argument: str) -> str:
    """Return --dry-run=x as --dry_run=x: absl's flags have no hyphens."""
    if not argument.startswith("--") or argument.startswith("--config."):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _illegal(message: str) -> str:
    """Return absl's message on a value, which for a wrong type says what is needed in place of Python's words."""
    for words, mend in _NO_VALUE.items():
        given, found, _ = message.partition(f": {words}")
        if found:
            return f"{given.removeprefix('flag ')}: {mend}"
    return message


def _unknown(command: str, name: str, values: flags.FlagValues) -> str:
    """Say that a command has no such flag, and which other has it or which of its own is near."""
    mend = f"`distill-jax {command} --help` shows those it has"
    return _elsewhere(command, name) or f"--{name}: {command} has no such flag{nearest(name, values)}; {mend}"


def _elsewhere(command: str, name: str) -> str:
    """Say which other commands have a flag; "" if none has."""
    owners = [other for other in COMMANDS if name in dict(_named(importlib.import_module(module_name(other)).Flags))]
    if not owners:
        return ""
    *others, last = (f"`distill-jax {owner}`" for owner in owners)
    have = " and ".join([", ".join(others), last] if others else [last])
    return f"--{name}: {command} has no such flag; only {have} {'has' if len(owners) == 1 else 'have'} it"
