"""Random streams of data preparation: a function of the seed and of what is drawn."""

from __future__ import annotations

import zlib

import numpy as np


def random_stream(seed: int, *purpose: str) -> np.random.Generator:
    """Make the random stream of a purpose, independent of every other purpose's."""
    return np.random.default_rng([seed, zlib.crc32("/".join(purpose).encode())])
