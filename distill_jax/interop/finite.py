"""Weights that are no numbers: found as they are read, and named."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from distill_jax.config import ConfigError

# A float is infinite or NaN when all bits of its exponent are set: dtype -> (integer of its size, those bits).
EXPONENTS = {
    np.dtype("float32"): (np.uint32, 0x7F80_0000),
    np.dtype("float16"): (np.uint16, 0x7C00),
    np.dtype(jnp.bfloat16): (np.uint16, 0x7F80),
}
DAMAGED = "the weights are damaged"
AT_ONCE = 2**20  # numbers: what is compared takes little memory beside the weights


def check_finite(part: np.ndarray, what: str, start: Sequence[int] = (), mend: str = DAMAGED) -> None:
    """Hold an array against being infinite or NaN, with a few MiB of memory.

    Args:
      what: what it is called.
      start: the place of its first number in the tensor that it is a part of; its own when left out.
      mend: what may be done about it.

    Raises:
      ConfigError: naming the first such number's place and how many there are.
    """
    flat = np.ascontiguousarray(part).reshape(-1)
    count, first = 0, 0
    for begin in range(0, flat.size, AT_ONCE):
        wrong = _wrong(flat[begin : begin + AT_ONCE])
        if wrong.any():
            first = first if count else begin + int(wrong.argmax())
            count += int(wrong.sum())
    if count:
        place = np.unravel_index(first, part.shape)
        where = [int(i) + base for i, base in zip(place, [*start, *[0] * part.ndim], strict=False)]
        numbers = f"{count:,} of {flat.size:,} numbers read are not finite"
        raise ConfigError(f"{what}: {numbers}, the first {flat[first]} at {where}: {mend}")


def _wrong(numbers: np.ndarray) -> np.ndarray:
    kind, exponent = EXPONENTS[numbers.dtype]
    return (numbers.view(kind) & exponent) == exponent
