"""From a config file to a checked experiment."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from distill_jax.config import ConfigError, build, check, nearest
from distill_jax.io.files import Digests


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment, checked: its model, its data, its stages and how to run them."""

    name: str
    description: str
    model: Any
    data: Any
    stages: dict[str, Any]
    run: Any
    precision: str = "fp32"


def load_module(path: str | Path, needs: str, says: str) -> ModuleType:
    """Import a config file.

    Args:
      needs: the function that it must have.
      says: what that function is for, for the error.

    Raises:
      ConfigError: if it cannot be imported or lacks the function.
    """
    spec = importlib.util.spec_from_file_location("experiment_config", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    call(str(path), spec.loader.exec_module, module)
    check(callable(getattr(module, needs, None)), f"{path} has no {needs}: {says}")
    return module


def call(where: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the user's.

    Raises:
      ConfigError: whatever it raises.
    """
    try:
        return function(*arguments)
    except (TypeError, ValueError) as error:  # what configs raise of values: their own text says it all
        wrong = "a setting has a value of the wrong type: " if isinstance(error, TypeError) else ""
        raise ConfigError(f"{where}: {wrong}{one_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where}: {type(error).__name__}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an error's words on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def stages_of(module: ModuleType, config: Any) -> dict[str, Any]:
    """Return the settings of a config's stages, each checked on its own.

    Raises:
      ConfigError: naming the stage, the key, the value and the mend.
    """
    from distill_jax.stages.stage import Stage

    stages = call(str(module.__file__), module.get_stages, config)
    mend = "get_stages(config) returns a dict of names and stages, such as {'reference': Pretrain(steps=100)}"
    check(isinstance(stages, Mapping), f"{module.__file__}: {mend}, and not {type(stages).__name__}")
    for name, stage in stages.items():
        check(isinstance(stage, Stage), f"{module.__file__}: stages.{name} is {stage!r:.80}; {mend}")
        build(type(stage), {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}, f"stages.{name}")
    return dict(stages)


def check_stages(named: Sequence[str], module: ModuleType, config: Any) -> None:
    """Refuse --stages that the config does not have, before anything else of it is looked at."""
    if named:
        known = ["data", *stages_of(module, config)]
        for stage in named:
            mend = f"{nearest(stage, known)}; there are {', '.join(known[:40])}"
            check(stage in known, f"--stages={stage}: no such stage{mend}")


def with_content_hashes(experiment: Experiment, digests: Digests) -> Experiment:
    """Return the experiment with the contents of the files that it names filled in, by which its nodes are identified.

    Raises:
      ConfigError: naming a file that is missing.
    """
    data = experiment.data.with_content_hash(digests)
    stages = {name: stage.with_content_hash(f"stages.{name}", digests) for name, stage in experiment.stages.items()}
    return dataclasses.replace(experiment, data=data, stages=stages)


def load_experiment(module: ModuleType, config: Any) -> Experiment:
    """Check a config and turn it into an experiment.

    Raises:
      ConfigError: naming the key, the value and the mend.
    """
    from distill_jax.data.arithmetic.equations import ArithmeticConfig
    from distill_jax.models.transformer import TransformerConfig
    from distill_jax.stages.context import RunSettings

    plain = config.to_dict()
    for key in ("model", "data", "run"):
        check(isinstance(plain[key], dict), f"config.{key} = {plain[key]!r:.80}: must be a section of settings")
    for key in ("experiment", "description"):
        check(isinstance(plain[key], str), f"config.{key} = {plain[key]!r:.80}: must be text")
    model = build(getattr(module, "MODEL", TransformerConfig), plain["model"], "model")
    data = build(getattr(module, "DATA", ArithmeticConfig), plain["data"], "data")
    stages = stages_of(module, config)
    for name, stage in stages.items():
        try:
            stage.validate(model, data)
        except ConfigError:
            raise
        except ValueError as error:
            raise stage.refusal(name, error) from error
    words = data.entries()
    mend = f"the data's vocabulary has {words} entries; raise it to that"
    if words:
        check(words <= model.vocab, f"model.vocab = {model.vocab}: {mend}")
    run = build(RunSettings, plain["run"], "run")
    experiment = Experiment(plain["experiment"], plain["description"], model, data, stages, run)
    if hasattr(module, "CHECK"):
        module.CHECK(experiment)
    return experiment
