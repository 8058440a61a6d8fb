"""A wrong value is refused by the name it was set by, `section.key = value`, whichever stage it reaches."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from distill_jax.config import ConfigError, SettingError, build, check_setting
from distill_jax.experiment.config_file import by_config_keys, load_experiment
from distill_jax.experiment.named_config import change, open_config
from distill_jax.main import main
from distill_jax.shipped import TINY
from distill_jax.stages import Perturb
from distill_jax.train.settings import Optimizer

pytestmark = pytest.mark.unit

RANDOM = str(TINY / "choices" / "model")
READ = {"reference.path": RANDOM, "data.vocabulary": RANDOM, "data.row_length": 64}
SHAPE = "is another model"  # of numbers that the imported model's own file says
# Not refused by a setting's own name: a file that is not there, and one of two settings that do not fit each other.
OTHERWISE = {"reference.adapter", "suppress.layer"}


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def wrong(value: Any) -> Any:
    """Return what hardly any setting of this type may be; None where that is not known."""
    if isinstance(value, tuple):
        return (wrong(value[0]), *value[1:]) if value else None
    return {int: -7, float: -1.5, str: "nonsense"}.get(type(value))


@pytest.mark.parametrize("source", ["smollm2:smoke", "protect:questions", "protect:documents,rmu"])
def test_every_wrong_value_is_refused_by_its_key(source):
    """All that is refused; and every section has something that is."""
    given = READ if source.startswith("protect") else {}
    others, refused = [], set()
    for key, value in leaves(open_config(source).config):
        if key in given or wrong(value) is None:
            continue
        named = open_config(source)
        try:
            change(named.config, {**given, key: wrong(value)})
            load_experiment(named.module, named.config)
        except ConfigError as error:
            refused.add(key.partition(".")[0])
            by_key = str(error).startswith((f"{key} = ", f"{key}=")) and ": " in str(error)
            others += [] if by_key or SHAPE in str(error) or key in OTHERWISE else [str(error)]
    assert others == []
    sections = {key for key, value in open_config(source).config.items() if hasattr(value, "items") and len(value)}
    assert sections - refused <= {"knowledge", "export", "published", "reference", "inject"}


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    out = {}
    for side in ("forget", "retain"):
        rows = [{"question": f"What is the {side} of {i}?", "answer": f"the {i}th"} for i in range(40)]
        path = tmp_path / f"{side}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out[side] = str(path)
    return out


@pytest.mark.parametrize(
    ("command", "setting", "said"),
    [
        ("protect", "damage.alpha=1.5", "damage.alpha = 1.5: the damaged fraction lies in [0, 1]"),
        ("protect", "suppress.lora_rank=-1", "suppress.lora_rank = -1: must not be negative"),
        ("protect", "distill.data=nonsense", "distill.data = 'nonsense': these data have no such set"),
        ("protect", "attack.seeds=0", "attack.seeds = 0: must be from 1 to"),
        ("protect", "run.fsdp=0", "run.fsdp = 0: must be at least 1, or -1"),
        ("attack", "attack.learning_rates=(0.0,)", "attack.learning_rates = (0.0,): give at least one, all positive"),
        ("attack", "attack.evaluate_steps=(5,10)", "attack.evaluate_steps = (5, 10): must have 0"),
        ("attack", "model.dtype=int3", "model.dtype = 'int3': choose float32 or bfloat16"),
        ("run", "undo.steps=(0,60)", "undo.steps = (0, 60): must be at least 1"),
        ("run", "undo.alphas=(1.5,0.1)", "undo.alphas = (1.5, 0.1): the damaged fraction lies in [0, 1]"),
        ("run", "undo.steps=(40,)", "undo.steps = (40,): undo.alphas = (0.05, 0.1); give each α its steps"),
        ("run", "attack.full=(-1.0,)", "attack.full = (-1.0,): learning rates must be positive"),
        ("run", "maxent.lora_rank=-1", "maxent.lora_rank = -1: must not be negative"),
    ],
)
def test_a_command_names_what_was_typed(command, setting, said, files, tmp_path, capsys):
    given = [f"--model={RANDOM}", *(f"--{side}={path}" for side, path in files.items())]
    given = ["--config=smollm2:smoke"] if command == "run" else given
    line = ["distill-jax", command, *given, f"--workdir={tmp_path / 'run'}", f"--config.{setting}"]
    assert main(line) == 2
    printed = capsys.readouterr().err.strip()
    assert said in printed and "configs/" not in printed and printed.count("\n") <= 1
    assert not (tmp_path / "run" / "nodes").exists()


def test_an_error_carries_its_setting():
    error = SettingError("alpha", 1.5, "the damaged fraction lies in [0, 1]")
    assert str(error.within("stages.damaged")) == "stages.damaged.alpha = 1.5: the damaged fraction lies in [0, 1]"
    assert (error.within("a").setting, SettingError("a.rates[3]", 1, "").setting) == ("alpha", "rates")
    with pytest.raises(SettingError, match=r"^damage\.alpha = 1\.5: ") as caught:
        build(Perturb, {"alpha": 1.5}, "damage")
    assert caught.value.value == 1.5


def refused(config: dict[str, Any], key: str, value: Any) -> str:
    with pytest.raises(SettingError) as caught, by_config_keys(ConfigDict(config)):
        raise SettingError(key, value, "mend")
    return str(caught.value)


def test_where_a_value_stands_decides_which_setting_is_named():
    config = {"first": {"steps": 0, "inner": {"share": 2.0}}, "second": {"steps": 4}, "undo": {"alphas": (0.5, 1.5)}}
    assert refused(config, "steps", 0) == "first.steps = 0: mend"
    assert refused(config, "stages.a.alpha", 1.5) == "undo.alphas = (0.5, 1.5): mend"
    assert refused(config, "share", 2.0) == "first.inner.share = 2.0: mend"
    assert refused({**config, "third": {"steps": 0}}, "steps", 0) == "first.steps, third.steps = 0: mend"
    assert refused(config, "stages.a.steps", 7) == "stages.a.steps = 7: mend"  # a number that the config worked out
    assert refused(config, "second.steps", 4) == "second.steps = 4: mend"


@pytest.mark.parametrize("change", [{"beta1": 1.0}, {"beta2": -0.1}, {"epsilon": -1e-8}])
def test_momenta_are_shares(change):
    with pytest.raises(SettingError, match=next(iter(change))):
        dataclasses.replace(Optimizer(), **change)
    check_setting(True, "a", 1, "never")


def test_a_check_of_a_files_own_keeps_its_file(tmp_path):
    """An error of a setting that no config has names the file that raised it."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from distill_jax.experiment.experiment import Experiment\nfrom distill_jax.stages import Perturb\n"
        "from distill_jax.experiment.named_config import open_config\n"
        "def get_config(arg=''):\n    return open_config('smollm2:smoke').config\n"
        "def get_experiment(c):\n    return Experiment(stages={'a': Perturb(alpha=2.5)}, data=None)\n"
    )
    named = open_config(str(path))
    with pytest.raises(ConfigError, match=r"mine\.py: alpha = 2\.5: "):
        load_experiment(named.module, named.config)
    assert Path(str(named.module.__file__)) == path
