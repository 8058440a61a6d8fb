"""Which documents are held out, and which make up the sets. Needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from distill_jax.data import corpus
from distill_jax.data.atomic_build import log
from distill_jax.data.random_stream import random_stream
from distill_jax.data.text.text_config import ROLES, SIDES, TextConfig
from distill_jax.data.text.token_shards import Documents

Split = Mapping[str, Sequence[np.ndarray]]  # role -> the documents of each of its sources


def split(
    config: TextConfig, documents: Documents, places: Mapping[tuple[str, int], np.ndarray], measured: bool = True
) -> dict[str, list[np.ndarray]]:
    """Return each role's documents by source; a text that is trained on is not held out, wherever it stands.

    Args:
      places: the documents of each (role, number of the source).
      measured: whether models are measured on what is held out, so that some must be.

    Raises:
      ValueError: if nothing is left to train on or to hold out.
    """
    by_role: dict[str, list[np.ndarray]] = {role: [] for role in ROLES}
    for (role, _), indices in places.items():
        by_role[role].append(indices)
    for side in SIDES:
        valid = f"valid_{side}"
        named = valid if by_role[valid] else side
        hold_out = _without_trained if by_role[valid] else _by_contents
        by_role[side], by_role[valid] = hold_out(config, documents.hashes, side, by_role[side], by_role[valid])
        for role, key, what, fix_hint in (
            (side, side, "train on", "it needs more text"),
            (valid, named, "hold out", "give it text, or raise data.validation_share"),
        ):
            if (measured or role == side) and not sum(map(len, by_role[role])):
                raise ValueError(f"data.{key}={config.text(key)!r}: no document is left to {what}; {fix_hint}")
    return by_role


Parts = list[np.ndarray]


def _without_trained(
    config: TextConfig, hashes: np.ndarray, side: str, train: Parts, valid: Parts
) -> tuple[Parts, Parts]:
    del config
    kept = [indices[~np.isin(hashes[indices], hashes[np.concatenate(train)])] for indices in valid]
    if dropped := sum(map(len, valid)) - sum(map(len, kept)):
        log(f"valid_{side}: {dropped:,} documents are also trained on and are not held out")
    return train, kept


def _by_contents(config: TextConfig, hashes: np.ndarray, side: str, train: Parts, valid: Parts) -> tuple[Parts, Parts]:
    del side, valid
    held = [hashes[indices] % 2**20 < config.validation_share * 2**20 for indices in train]
    pairs = list(zip(train, held, strict=True))
    return [indices[~out] for indices, out in pairs], [indices[out] for indices, out in pairs]


def mix(
    config: TextConfig, documents: Documents, split: Split
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, int]]]:
    """Choose each side's documents of the set `all`, and count the tokens that each source gives."""
    sizes = {side: np.array([documents.lengths[indices].sum() for indices in split[side]]) for side in SIDES}
    share = config.side_shares({side: int(sizes[side].sum()) for side in SIDES})
    rates = {side: _rates(config, side, sizes[side]) for side in SIDES}
    available = {side: float(np.min(sizes[side] / np.maximum(rates[side], 1e-12))) for side in SIDES}
    total = config.tokens or min(available[side] / share[side] for side in SIDES)
    chosen: dict[str, np.ndarray] = {}
    mixture: dict[str, dict[str, int]] = {side: {} for side in SIDES}
    for side in SIDES:
        parts = []
        for i, (source, indices) in enumerate(zip(config.sources(side), split[side], strict=True)):
            order = random_stream(config.seed, "choice", side, str(i)).permutation(indices)
            budget = round(total * share[side] * rates[side][i])
            parts.append(order[corpus.cycle(documents.lengths[order], budget)])
            given = int(documents.lengths[parts[-1]].sum())
            mixture[side][f"{side}: {source.name}"] = given
            if given > 1.01 * sizes[side][i]:
                log(f"{side}: {source.name} is repeated {given / sizes[side][i]:.1f} times")
        chosen[side] = np.concatenate(parts)
    return chosen, mixture


def _rates(config: TextConfig, side: str, sizes: np.ndarray) -> np.ndarray:
    weights = np.array([source.weight for source in config.sources(side)])
    if weights.any() and not weights.all():
        raise ValueError(f"data.{side}={config.text(side)!r}: give every source a weight, or none")
    for source, size in zip(config.sources(side), sizes, strict=True):
        if not size:
            raise ValueError(f"data.{side}={source.name!r}: holds no document to train on; leave it out")
    weights = weights if weights.any() else sizes
    return weights / weights.sum()
