"""Every hyper-parameter that exists can be set from the command line, and none that can be set is ignored."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from distill_jax.config import ConfigError
from distill_jax.experiment.config_file import declared, load_module
from distill_jax.experiment.section import section
from distill_jax.models.presets import preset
from distill_jax.stages import Distill, Pretrain, Relearn, Stage

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
# Presets that use every section, with what else it takes.
EVERY: dict[str, tuple[str, dict[str, Any]]] = {
    "arithmetic": (
        "smoke,full",
        {
            "cache_teacher": True,
            "data.filter_labels": 10,
            "data.label_sets": ("filtered", "dropped"),
            "undo.recover": "train",
            "methods": ("gradascent", "wga", "npo", "simnpo", "undial", "dpo", "selective"),
        },
    ),
    "language": ("smoke", {"methods": ("maxent", "graddiff", "rmu")}),
    "wmdp": ("smoke", {}),
    "auditbench": ("smoke", {}),
    "organism": ("smoke", {}),
    "subliminal": ("smoke", {}),
    "double_bind": ("smoke", {}),
}
ELSEWHERE = {"model", "data", "run"}  # sections that are not of stages


def config_of(name: str, **changes: Any) -> tuple[Any, Any]:
    """Return the module and the config of a preset that uses every section."""
    arg, more = EVERY[name]
    module = load_module(ROOT / f"configs/{name}.py")
    config = module.get_config(arg)
    config.update_from_flattened_dict({**more, **changes})
    return module, config


def other(value: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return tuple(map(other, value)) or ("x",) if isinstance(value, tuple) else f"{value}x"


@pytest.mark.parametrize("name", EVERY)
def test_a_setting_of_a_section_reaches_a_stage(name):
    """Changed, it changes a stage, or that stage refuses the value."""
    module, config = config_of(name)
    before, ignored = declared(module, config).stages, []
    for group, keys in config.items():
        for key in keys if group not in ELSEWHERE and hasattr(keys, "keys") else ():
            changed = copy.deepcopy(config)
            changed[group][key] = other(keys[key])
            try:
                if declared(module, changed).stages == before:
                    ignored.append(f"{group}.{key}")
            except ConfigError:
                continue
    assert ignored == []


@pytest.mark.parametrize(
    ("setting", "stage", "value"),
    [
        ("distill.temperature", "student", 2.0),
        ("distill.divergence", "student", "reverse_kl"),
        ("reference.weight_decay", "reference", 0.3),
        ("relearn.beta2", "relearn-student", 0.9),
        ("cache.batch", "states-maxent", 7),
    ],
)
def test_a_setting_that_no_config_names_can_be_set(setting, stage, value):
    found = declared(*config_of("arithmetic", **{setting: value})).stages[stage]
    assert getattr(found, setting.partition(".")[2]) == value


def test_a_section_has_all_settings_but_what_the_graph_sets():
    found = section(Distill, "data", temperature=3.0)
    fields = {field.name: field.default for field in dataclasses.fields(Distill)}
    left_out = {"teacher", "start", "cache", "data", "seed"}
    assert found.to_dict() == {k: v for k, v in fields.items() if k not in left_out} | {"temperature": 3.0}
    assert section(preset("cpu"), layers=7).to_dict() == dataclasses.asdict(preset("cpu", layers=7))


@pytest.mark.parametrize(
    "make", [lambda: section(Relearn, "learning_rats"), lambda: section(Pretrain, learning_rats=(1.0,))]
)
def test_a_section_refuses_what_is_no_setting(make):
    with pytest.raises(ConfigError, match=r"no setting 'learning_rats' .did you mean 'learning_rate"):
        make()


def test_no_two_parts_of_a_stage_have_a_setting_in_common():
    """A dataclass takes the last of two equal fields without a word."""
    todo: list[type[Stage]] = [Stage]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        parts = [base for base in cls.__bases__ if dataclasses.is_dataclass(base)]
        names = [field.name for base in parts for field in dataclasses.fields(base)]
        assert len(names) == len(set(names)), cls
