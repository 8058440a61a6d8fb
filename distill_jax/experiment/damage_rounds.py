"""Several small rounds of damage and recovery in the place of a large one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distill_jax.config import SettingError
from distill_jax.stages import Perturb, Stage


def damage_rounds(
    name: str, start: str, rounds: int, recover: Callable[[str], Stage], alpha: float, **damage: Any
) -> dict[str, Stage]:
    """Return stages that damage a model and let it recover, round after round; the last is called `name`.

    A round's damage is 1 - (1 - α)^(1 / rounds): of the weights themselves all rounds leave what one of α does. The
    noise of each is its own, by its seed.

    Args:
      start: the stage whose model is damaged first.
      recover: the name of a damaged stage -> the stage that recovers it, such as a `Distill` that starts from it, or a
        `Finetune` on retain data.
      damage: further settings of `Perturb`; `seed` is that of the first round.

    Raises:
      ValueError: if there is no round.
    """
    if rounds < 1:
        raise SettingError("rounds", rounds, "must be at least 1")
    stages: dict[str, Stage] = {}
    each, seed = 1 - (1 - alpha) ** (1 / rounds), damage.pop("seed", 0)
    for i in range(rounds):
        damaged, recovered = f"{name}-damaged-{i}", name if i == rounds - 1 else f"{name}-recovered-{i}"
        stages[damaged] = Perturb(start=start, alpha=each, seed=seed + 1000 * i, **damage)
        stages[recovered] = recover(damaged)
        start = recovered
    return stages


def damage_settings(section: Mapping[str, Any], *elsewhere: str) -> dict[str, Any]:
    """Return the settings of `Perturb` in a section that has others too."""
    return {
        key: value for key, value in section.items() if key in Perturb.__dataclass_fields__ and key not in elsewhere
    }
