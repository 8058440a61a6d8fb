"""Which documents are held out, and which make up the sets. Needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from distill_jax.data import corpus
from distill_jax.data.arithmetic import equations
from distill_jax.data.atomic_build import say
from distill_jax.data.text.text_config import ROLES, SIDES, TextConfig
from distill_jax.data.text.token_shards import Documents

Split = Mapping[str, Sequence[np.ndarray]]  # role -> the documents of each of its sources


def split(
    config: TextConfig, documents: Documents, places: Mapping[tuple[str, int], np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """Return each role's documents by source; a text that is trained on is not held out, wherever it stands.

    Args:
      places: the documents of each (role, number of the source).

    Raises:
      ValueError: if nothing is left to train on or to hold out.
    """
    found: dict[str, list[np.ndarray]] = {role: [] for role in ROLES}
    for (role, _), mine in places.items():
        found[role].append(mine)
    for side in SIDES:
        valid = f"valid_{side}"
        named = valid if found[valid] else side
        hold_out = _without_trained if found[valid] else _by_contents
        found[side], found[valid] = hold_out(config, documents.hashes, side, found[side], found[valid])
        for role, key, what, mend in (
            (side, side, "train on", "it needs more text"),
            (valid, named, "hold out", "give it text, or raise data.validation_share"),
        ):
            if not sum(map(len, found[role])):
                raise ValueError(f"data.{key}={getattr(config, key)!r}: no document is left to {what}; {mend}")
    return found


Parts = list[np.ndarray]


def _without_trained(
    config: TextConfig, hashes: np.ndarray, side: str, train: Parts, valid: Parts
) -> tuple[Parts, Parts]:
    del config
    kept = [mine[~np.isin(hashes[mine], hashes[np.concatenate(train)])] for mine in valid]
    if dropped := sum(map(len, valid)) - sum(map(len, kept)):
        say(f"valid_{side}: {dropped:,} documents are also trained on and are not held out")
    return train, kept


def _by_contents(config: TextConfig, hashes: np.ndarray, side: str, train: Parts, valid: Parts) -> tuple[Parts, Parts]:
    del side, valid
    held = [hashes[mine] % 2**20 < config.validation_share * 2**20 for mine in train]
    pairs = list(zip(train, held, strict=True))
    return [mine[~out] for mine, out in pairs], [mine[out] for mine, out in pairs]


def mix(
    config: TextConfig, documents: Documents, split: Split
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, int]]]:
    """Choose each side's documents of the set `all`, and count the tokens that each source gives."""
    share = {"retain": config.retain_share, "forget": 1 - config.retain_share}
    sizes = {side: np.array([documents.lengths[mine].sum() for mine in split[side]]) for side in SIDES}
    rates = {side: _rates(config, side, sizes[side]) for side in SIDES}
    whole = {side: float(np.min(sizes[side] / np.maximum(rates[side], 1e-12))) for side in SIDES}
    total = config.tokens or min(whole[side] / share[side] for side in SIDES)
    chosen: dict[str, np.ndarray] = {}
    mixture: dict[str, dict[str, int]] = {side: {} for side in SIDES}
    for side in SIDES:
        parts = []
        for i, (source, mine) in enumerate(zip(config.sources(side), split[side], strict=True)):
            order = equations.random_stream(config, "choice", side, str(i)).permutation(mine)
            budget = round(total * share[side] * rates[side][i])
            parts.append(order[corpus.cycle(documents.lengths[order], budget)])
            given = int(documents.lengths[parts[-1]].sum())
            mixture[side][f"{side}: {source.name}"] = given
            if given > 1.01 * sizes[side][i]:
                say(f"{side}: {source.name} is repeated {given / sizes[side][i]:.1f} times")
        chosen[side] = np.concatenate(parts)
    return chosen, mixture


def _rates(config: TextConfig, side: str, sizes: np.ndarray) -> np.ndarray:
    weights = np.array([source.weight for source in config.sources(side)])
    if weights.any() and not weights.all():
        raise ValueError(f"data.{side}={getattr(config, side)!r}: give every source a weight, or none")
    for source, size in zip(config.sources(side), sizes, strict=True):
        if not size:
            raise ValueError(f"data.{side}={source.name!r}: holds no document to train on; leave it out")
    weights = weights if weights.any() else sizes
    return weights / weights.sum()
