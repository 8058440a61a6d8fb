"""Every preset's nodes have the identities that they had, so that a finished run is found again by a new version.

An identity is the hash of settings and contents and the same on every machine. Presets for a smoke name files that ship
with the code; of the others no file is there, and their nodes are named as `distill-jax plan` names them.

  python -m tests.test_identities    writes tests/recordings/identities.json anew
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill_jax.experiment import graph
from distill_jax.experiment.config_file import load_experiment, load_module, with_content_hashes
from distill_jax.io.files import Digests

ROOT = Path(__file__).parents[1]
RECORDING = ROOT / "tests/recordings/identities.json"
PRESETS = {
    "arithmetic": ("", "cpu", "cpu,full", "smoke", "smoke,full"),
    "language": ("", "cpu", "why", "smoke", "why-smoke"),
    "subliminal": ("digits", "mnist", "smoke"),
    "double_bind": ("cpu", "smoke"),
    "wmdp": ("2b", "9b", "70b", "smoke"),
    "organism": ("qwen3-14b", "llama-3.3-70b", "smoke"),
    "smollm2": ("smoke", "smoke,invented"),  # of the others the model's path is part until a run begins
    "attack_catalogue": ("", "search", "smoke"),
    "auditbench": ("qwen3-14b", "llama-3.3-70b", "smoke"),
}
OF_A_MODEL = {"attack", "protect"}  # have no stages before a model is named
ALL = [f"{config}:{preset}" for config, presets in PRESETS.items() for preset in presets]
MEND = "identities are kept results' names: change them once, on purpose, and say so in CHANGELOG.md"


def identities(named: str) -> dict[str, str]:
    """Return the identity of each node of a config and preset, "arithmetic:cpu", by its name."""
    config, _, preset = named.partition(":")
    module = load_module(ROOT / f"configs/{config}.py")
    experiment = load_experiment(module, module.get_config(preset))
    if "smoke" in preset:
        experiment = with_content_hashes(experiment, Digests())
    return {name: node.identity for name, node in graph.build(experiment, Path("nowhere")).items()}


@pytest.mark.unit
def test_every_config_is_recorded():
    assert sorted(PRESETS) == sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - OF_A_MODEL)
    assert sorted(json.loads(RECORDING.read_text())) == sorted(ALL)


@pytest.mark.unit
@pytest.mark.parametrize("named", ALL)
def test_identities_are_those_recorded(named):
    before, now = json.loads(RECORDING.read_text())[named], identities(named)
    changed = {
        name: f"{before.get(name, 'nothing')} -> {now.get(name, 'nothing')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }
    assert not changed, f"{named}: {changed}\n{MEND}"


if __name__ == "__main__":
    text = json.dumps({named: identities(named) for named in ALL}, indent=1, sort_keys=True)
    RECORDING.write_text(text + "\n")
