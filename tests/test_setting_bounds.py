"""No number of a config may be one that means nothing: -1 is refused, by name, wherever it is no choice."""

from __future__ import annotations

import copy

import pytest

from distill_jax.config import ConfigError
from distill_jax.experiment.config_file import load_experiment, settings_by_key
from distill_jax.experiment.named_config import change, open_config

pytestmark = pytest.mark.unit
CHOICES = {"seed", "fsdp"}  # any whole number; all devices
# What the smoke preset's stages are made of; a section of a method that it does not run is not looked at.
SECTIONS = ("model", "data", "run", "reference", "oracle", "maxent", "distill", "relearn")
NAMED = open_config("arithmetic:smoke")
NUMBERS = {
    key: type(value)(-1)
    for key, value in settings_by_key(NAMED.config).items()
    if type(value) in (int, float) and key.split(".")[0] in SECTIONS and key.split(".")[-1] not in CHOICES
}


def test_there_are_numbers_of_every_section():
    assert {key.split(".")[0] for key in NUMBERS} == set(SECTIONS)
    assert {"reference.beta2", "maxent.retain_weight", "model.query_scale", "run.loss_chunk"} <= set(NUMBERS)


@pytest.mark.parametrize("key", NUMBERS)
def test_minus_one_is_refused_by_name(key):
    config = copy.deepcopy(NAMED.config)
    change(config, {key: NUMBERS[key]})
    with pytest.raises(ConfigError, match=key.split(".")[-1]):
        load_experiment(NAMED.module, config)


@pytest.mark.parametrize("key", ["reference.beta1", "relearn.beta2"])
def test_a_moment_that_nothing_leaves_is_refused(key):
    """Adam divides a moment by 1 - β: at 1 that is a division by zero."""
    config = copy.deepcopy(NAMED.config)
    change(config, {key: 1.0})
    with pytest.raises(ConfigError, match=r"beta. = 1\.0.*must be at least 0 and below 1"):
        load_experiment(NAMED.module, config)


@pytest.mark.parametrize("rates", [(1e-3, 1e-3), (1e-3, 1.0000001e-3)])
def test_learning_rates_that_would_share_a_label_are_refused(rates):
    """Rows of metrics know an attacker by its rate: of two that are one, the rows of the first would be lost."""
    config = copy.deepcopy(NAMED.config)
    change(config, {"relearn.learning_rates": rates})
    with pytest.raises(ConfigError, match=r"relearn\.learning_rates = .*give each once"):
        load_experiment(NAMED.module, config)
