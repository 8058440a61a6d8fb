"""TPU slices by their accelerator type: chips, how they are wired, and what one chip can do.

Peak FLOP/s, HBM and interconnect bandwidth are Google's published figures per chip
(cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}). The HBM a program may use is a little less than the chip has; these
are the limits that the compiler of libtpu 0.0.42 names when it refuses a program.

v5e and v6e count chips; v4, v5p and TPU7x (Ironwood) TensorCores, of which a chip has two. A v4 or v5p chip is one
device of JAX, a TPU7x chip two with half of its HBM each. Slices of TPU7x are named as XPK names them
(github.com/AI-Hypercomputer/xpk, system_characteristics.py): tpu7x-128 has 4 × 4 × 4 chips and 128 devices.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

from distill_jax.config import check, nearest

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation.

    Attributes:
      platform: what libtpu calls it; config: how it presents a chip's TensorCores ("megacore": two as one device).
      hbm: bytes a program may use.
      flops: bf16 peak, FLOP/s.
      bandwidth: HBM, bytes/s.
      link: one interconnect link one way, bytes/s.
      cores: TensorCores a chip, where the accelerator type counts these and not chips.
      wraps: the size from which an axis is a ring and not a line.
      devices: that JAX has of a chip, and that share what it has equally.
    """

    platform: str
    config: str
    hbm: float
    flops: float
    bandwidth: float
    link: float
    cores: int
    wraps: int
    devices: int = 1


CHIPS = {
    "v4": Chip("v4", "megacore", 30.75 * GIB, 275e12, 1228e9, 50e9, 2, 4),
    "v5e": Chip("v5e", "default", 15.75 * GIB, 197e12, 819e9, 50e9, 1, 16),
    "v5p": Chip("v5", "megacore", 95.74 * GIB, 459e12, 2765e9, 100e9, 2, 4),
    "v6e": Chip("v6e", "default", 31.25 * GIB, 918e12, 1640e9, 100e9, 1, 16),
    "tpu7x": Chip("tpu7x", "default", 189.50 * GIB, 2307e12, 7380e9, 100e9, 2, 4, devices=2),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice: its accelerator type, generation and shape in chips."""

    name: str
    generation: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """What each of its chips can do."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """How many chips it has."""
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """How many devices JAX has of it."""
        return self.chips * self.chip.devices

    @property
    def device_hbm(self) -> float:
        """Bytes that a program may use on each device."""
        return self.chip.hbm / self.chip.devices

    @property
    def device_flops(self) -> float:
        """The bf16 peak of a device, FLOP/s."""
        return self.chip.flops / self.chip.devices

    @property
    def device_bandwidth(self) -> float:
        """Bytes/s between a device and its HBM."""
        return self.chip.bandwidth / self.chip.devices

    @property
    def topology(self) -> str:
        """Its name for libtpu."""
        return f"{self.chip.platform}:{'x'.join(map(str, self.shape))}"

    @property
    def chips_per_host(self) -> tuple[int, int, int]:
        """The block of chips that one host drives."""
        return (1, 1, 1) if self.chips == 1 else (2, 2, 1)

    @property
    def interconnect(self) -> float:
        """Bytes/s that a chip can receive over its links: two an axis, one at the end of a line.

        Devices of one chip can pass on to each other what came in once.
        """
        # Small 3D slices have no rings: an axis of such a slice is one only where all are multiples of 4.
        rings = len(self.shape) == 2 or all(n % 4 == 0 for n in self.shape)
        return self.chip.link * sum(2 if rings and n >= self.chip.wraps else 1 for n in self.shape if n > 1)


def _cubes(max_cubes: int, max_in_row: int) -> list[tuple[int, ...]]:
    """Return the most cubic shape of each number of 4 × 4 × 4 cubes, up to `max_cubes` and `max_in_row`."""
    shapes: dict[int, tuple[int, ...]] = {}
    for a, b, c in itertools.combinations_with_replacement(range(1, max_in_row + 1), 3):
        n, shape = a * b * c, (4 * a, 4 * b, 4 * c)
        if n <= max_cubes and (n not in shapes or sum(shape) < sum(shapes[n])):
            shapes[n] = shape
    return [shapes[n] for n in sorted(shapes)]


_FLAT: list[tuple[int, ...]] = [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
_SMALL: list[tuple[int, ...]] = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
_SHAPES: dict[str, list[tuple[int, ...]]] = {
    "v4": [*_SMALL, *(s for s in _cubes(32, 4) if math.prod(s) // 64 in (1, 2, 3, 4, 8, 12, 16, 32))],
    "v5e": _FLAT,
    "v5p": [*_SMALL, *_cubes(96, 61)],
    "v6e": _FLAT,
    "tpu7x": [*_SMALL, *_cubes(96, 61)],
}

SLICES = {
    name: Slice(name, generation, shape)
    for generation, shapes in _SHAPES.items()
    for shape in shapes
    for name in [f"{generation}-{math.prod(shape) * CHIPS[generation].cores}"]
}


def find(name: str) -> Slice:
    """Return the slice of an accelerator type.

    Raises:
      ConfigError: if there is none, listing those there are.
    """
    known = "; ".join(f"{generation}-{_listed(generation)}" for generation in CHIPS)
    check(name in SLICES, f"--slice={name}: no such slice{nearest(name, SLICES)}; there are auto and {known}")
    return SLICES[name]


def _listed(generation: str) -> str:
    sizes = [s.name.split("-")[1] for s in SLICES.values() if s.generation == generation]
    more = f" and, of the further multiples of 128 up to {sizes[-1]}, most" if len(sizes) > 20 else ""
    return "|".join(sizes[:12] if more else sizes) + more
