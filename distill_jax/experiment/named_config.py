"""A config by its path or by the name of a shipped one, with a preset and with settings that are changed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from distill_jax import shipped
from distill_jax.config import ConfigError, SettingError, check, check_setting, nearest
from distill_jax.experiment.config_file import call, declared, load_module, settings_by_key
from distill_jax.io.staging import local_input

ALWAYS_READ = ("experiment", "description", "data", "model", "run")


@dataclasses.dataclass(frozen=True)
class NamedConfig:
    """A config file and the settings that one of its presets gives.

    Attributes:
      source: how it was named: FILE.py[:preset] or NAME[:preset].
      module: the file, which has `get_experiment(config)`.
      config: what its `get_config(preset)` returned.
    """

    source: str
    module: ModuleType
    config: ConfigDict


def open_config(source: str) -> NamedConfig:
    """Open a config, such as "arithmetic:cpu" or "mine/experiment.py".

    Raises:
      ConfigError: if there is none, or it lacks what every config has.
    """
    where, (name, *preset) = f"--config={source}", split_source(source)
    path = find_file(where, name, shipped.CONFIGS)
    module = load_module(path)
    config = call(where, module.get_config, *preset)
    mend = "get_config returns an ml_collections.ConfigDict"
    check(isinstance(config, ConfigDict), f"{where}: {mend}, and this one {type(config).__name__}")
    for key in ("experiment", "description", "model", "data", "run"):
        check(key in config, f"{where}: the config has no {key!r}; {mend} with it, as those in configs/ do")
    return NamedConfig(source, module, config)


def split_source(source: str) -> list[str]:
    """Return the file or name, and the preset if there is one, of FILE.py[:preset]; a file may have an address."""
    scheme, slashes, rest = source.rpartition("://")
    name, *preset = rest.split(":", 1)
    return [f"{scheme}{slashes}{name}", *preset]


def find_file(where: str, name: str, directory: Path) -> Path:
    """Return the Python file of a path, of an address, or of a shipped name."""
    return shipped.python_file(where, str(local_input(name)) if "://" in name else name, directory)


def check_key(config: ConfigDict, key: str, flag: str) -> None:
    """Refuse a key, such as "relearn.steps", that a config does not have, naming the nearest it has."""
    section: Any = config
    where = "config"
    for name in key.split("."):
        known = list(section) if isinstance(section, ConfigDict) else []
        mend = f"{nearest(name, known)}; {where} has {', '.join(known) or 'no settings of its own'}"
        check(name in known, f"{flag}: no such setting{mend}")
        section, where = section[name], f"{where}.{name}"


def change(config: ConfigDict, settings: Mapping[str, Any]) -> None:
    """Change settings of a config, such as {"relearn.steps": 100}.

    Raises:
      ConfigError: for a key that the config does not have or a value of another type.
    """
    for key, value in settings.items():
        check_key(config, key, key)
        before = value_of(config, key)
        kind = "a section" if isinstance(before, ConfigDict) else type(before).__name__
        expected = f"expected {kind}, got {type(value).__name__}"
        check_setting(value is not None or before is None, key, value, expected)
        try:
            config.update_from_flattened_dict({key: value})
        except TypeError as error:
            raise SettingError(key, value, expected) from error
        check_elements(f"config.{key}", before, value_of(config, key))


def check_settings_are_read(named: NamedConfig) -> None:
    """Refuse a changed setting with which the experiment is what it was without: no stage of this preset reads it.

    Settings of the data, the model and the run are always read.

    Raises:
      ConfigError: naming the setting and the presets that there are.
    """
    before, after = (settings_by_key(config) for config in (open_config(named.source).config, named.config))
    changed = [key for key in after if key in before and before[key] != after[key]]
    asked = [key for key in changed if key.partition(".")[0] not in ALWAYS_READ]
    experiment = declared(named.module, named.config) if asked else None
    for key in asked:
        without = copy.deepcopy(named.config)
        without.update_from_flattened_dict({key: before[key]})
        try:
            same = declared(named.module, without) == experiment
        except ConfigError:  # others that were changed need it
            continue
        mend = f"nothing of --config={named.source} reads it; leave it out, or name a preset whose stages do"
        check_setting(not same, key, after[key], mend)


def value_of(config: ConfigDict, key: str) -> Any:
    """Return a setting by its key, such as "relearn.steps"."""
    value: Any = config
    for name in key.split("."):
        value = value[name]
    return value


def check_elements(where: str, before: Any, after: Any) -> None:
    """Refuse an element of a tuple that is of no type which the tuple held before; of an empty one nothing is known."""
    if isinstance(before, tuple | list) and isinstance(after, tuple | list) and before:
        kinds = [_kind(element) for element in before]
        for i, element in enumerate(after):
            mend = f"expected {' or '.join(dict.fromkeys(kinds))}, got {type(element).__name__}"
            check(_kind(element) in kinds, f"{where}[{i}] = {element!r:.80}: {mend}")


def _kind(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if number else type(value).__name__
