"""From a config file to a checked experiment."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from distill_jax.config import ConfigError, SettingError, build, check, nearest
from distill_jax.io.files import Digests
from distill_jax.io.storage import location

if TYPE_CHECKING:  # what follows brings JAX, which a process that only reads its command line does not need
    from distill_jax.data.data_config import DataConfig
    from distill_jax.experiment.experiment import CheckedExperiment, Experiment
    from distill_jax.models.transformer_config import TransformerConfig
    from distill_jax.stages.stage import Stage

RETURNS = "get_experiment(config) returns an Experiment, such as Experiment(stages={'reference': Pretrain(steps=100)})"


_MODULE = "config "  # and the file, as no importable module is called


def load_module(path: str | Path, needs: str = "get_experiment", says: str = RETURNS) -> ModuleType:
    """Import a config file.

    Args:
      needs: the function that it must have.
      says: what that function is for, for the error.

    Raises:
      ConfigError: if it cannot be imported or lacks the function.
    """
    spec = importlib.util.spec_from_file_location(f"{_MODULE}{location(path).resolve()}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the annotations of a stage that the file defines
    call(str(path), spec.loader.exec_module, module)
    check(callable(vars(module).get(needs)), f"{path} has no {needs}: {says}")
    return module


def user_modules() -> list[ModuleType]:
    """Return the config files that were imported, whose names another process cannot import."""
    return [module for name, module in sys.modules.items() if name.startswith(_MODULE)]


def call(where: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the user's.

    Raises:
      ConfigError: whatever it raises.
    """
    try:
        return function(*arguments)
    except ValueError as error:  # what configs raise of values: their own text says it all
        raise ConfigError(f"{where}: {one_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where}: {type(error).__name__}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an error's words on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def declared(module: ModuleType, config: ConfigDict) -> Experiment:
    """Return a config's experiment, each of its stages checked on its own.

    Raises:
      ConfigError: naming the stage, the key, the value and the fix.
    """
    from distill_jax.experiment.experiment import Experiment
    from distill_jax.stages.stage import Stage

    path = str(module.__file__)
    with by_config_keys(config):
        experiment: Experiment = call(path, module.get_experiment, config)
    check(isinstance(experiment, Experiment), f"{path}: {RETURNS}, and not {type(experiment).__name__}")
    stages = experiment.stages
    check(isinstance(stages, Mapping), f"{path}: stages is {stages!r:.80}; {RETURNS}")
    for name, stage in stages.items():
        check(isinstance(stage, Stage), f"{path}: stages.{name} is {stage!r:.80}; {RETURNS}")
        fix_hint = "say in the class what it is called, such as `kind: ClassVar[str] = 'anchor'`"
        check(bool(stage.kind), f"{path}: stages.{name}: {type(stage).__name__} has no kind; {fix_hint}")
        with by_config_keys(config):
            build(type(stage), {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}, f"stages.{name}")
    return experiment


@contextlib.contextmanager
def by_config_keys(config: ConfigDict) -> Iterator[None]:
    """Have an error of a stage's setting name that of the config which the stage was made from, if it is there."""
    try:
        yield
    except ConfigError as error:
        refused = error if isinstance(error, SettingError) else error.__cause__  # `call` adds the file
        named = _in_config(config, refused) if isinstance(refused, SettingError) else None
        if named is None:
            raise
        raise named from error


def _in_config(config: ConfigDict, error: SettingError) -> SettingError | None:
    """Return the error by the key of the config, `damage.alpha` or `undo.alphas`, that has the value; None if none has.

    A stage knows what a setting of its own is called, and not the section of the config that it was made from. A tuple
    of several stages' values has the plural of its name.
    """
    if error.key in set(settings_by_key(config)):
        return error
    alone, several = error.setting, f"{error.setting}s"
    named = {key: value for key, value in settings_by_key(config).items() if key.rpartition(".")[2] in (alone, several)}
    same = {key: value for key, value in named.items() if _holds(value, error.value)}
    keys = [key for key in same if "." not in key] or list(same)
    return SettingError(", ".join(keys), same[keys[0]], error.mend) if keys else None


def settings_by_key(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return every setting of a config by its key, such as "damage.alpha"."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, Mapping | ConfigDict)
        out |= settings_by_key(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return out


def _holds(value: Any, refused: Any) -> bool:
    """Return whether a config's value is what was refused, or a tuple that has it among others."""
    if not isinstance(value, tuple | list):
        return bool(value == refused)
    return set(map(repr, refused if isinstance(refused, tuple | list) else [refused])) <= set(map(repr, value))


def check_stages(named: Sequence[str], module: ModuleType, config: ConfigDict) -> None:
    """Refuse --stages that the config does not have, before anything else of it is looked at."""
    if named:
        known = ["data", *declared(module, config).stages]
        for stage in named:
            fix_hint = f"{nearest(stage, known)}; there are {', '.join(known[:40])}"
            check(stage in known, f"--stages={stage}: no such stage{fix_hint}")


def with_content_hashes(experiment: CheckedExperiment, digests: Digests) -> CheckedExperiment:
    """Return the experiment with the contents of the files that it names filled in, by which its nodes are identified.

    Raises:
      ConfigError: naming a file that is missing.
    """
    data = experiment.data.with_content_hash(digests)
    stages = {name: stage.with_content_hash(f"stages.{name}", digests) for name, stage in experiment.stages.items()}
    return dataclasses.replace(experiment, data=data, stages=stages)


def validate(stages: Mapping[str, Stage], model: TransformerConfig, data: DataConfig) -> None:
    """Refuse stages that do not fit the model or the data, by ConfigError."""
    for name, stage in stages.items():
        try:
            stage.validate(model, data)
        except ValueError as error:
            raise stage.refusal(name, error) from error
    if words := data.entries():
        fix_hint = f"the data's vocabulary has {words} entries; raise it to that"
        check(words <= model.vocab, f"model.vocab = {model.vocab}: {fix_hint}")


def _shape(experiment: Experiment, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the model; where they leave out its shape, with that of the model that is imported."""
    from distill_jax.models.transformer_config import TransformerConfig
    from distill_jax.stages import Import

    if experiment.model is not TransformerConfig or "vocab" in given:
        return dict(given)
    paths = [(stage.path, stage.adapter) for stage in experiment.stages.values() if isinstance(stage, Import)]
    missing = "config.model has no shape, and no Import stage has a path whose config.json says one; name the model"
    check(bool(paths and paths[0][0]), missing)
    from distill_jax.interop.importing import Published

    return {**dataclasses.asdict(Published(*paths[0]).cfg), **given}


def load_experiment(module: ModuleType, config: ConfigDict) -> CheckedExperiment:
    """Check a config and turn it into an experiment.

    Raises:
      ConfigError: naming the key, the value and the fix.
    """
    from distill_jax.experiment.experiment import CheckedExperiment
    from distill_jax.stages.context import RunSettings

    plain = config.to_dict()
    for key in ("model", "data", "run"):
        check(isinstance(plain[key], dict), f"config.{key} = {plain[key]!r:.80}: must be a section of settings")
    for key in ("experiment", "description"):
        check(isinstance(plain[key], str), f"config.{key} = {plain[key]!r:.80}: must be text")
    experiment = declared(module, config)
    model = build(experiment.model, _shape(experiment, plain["model"]), "model")
    data = build(experiment.data, plain["data"], "data")
    with by_config_keys(config):
        validate(experiment.stages, model, data)
    checked = CheckedExperiment(
        name=plain["experiment"],
        description=plain["description"],
        model=model,
        data=data,
        stages=dict(experiment.stages),
        run=build(RunSettings, plain["run"], "run"),
        report=experiment.report,
        audited=experiment.check is not None,
        notes=experiment.notes,
    )
    if experiment.check:
        experiment.check(checked)
    return checked
